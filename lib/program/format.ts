/** A program as text for people and for snapshots: sizes, buffers, then one line per op. */

import type { AttrValue, Program, ProgramBuffer, View } from './types.ts'

export function formatProgram(program: Program): string {
  const { name, world, tp, parts, arenaBytes, limits } = program
  const lines = [
    `program ${name}: world ${world}, tp ${tp}, parts ${parts}, arena ${arenaBytes} bytes`,
    `limits ${Object.entries(limits)
      .map(([key, value]) => `${key} ${value}`)
      .join(', ')}`,
    '',
    ...table(program.buffers.map(bufferCells)),
    '',
    ...table(
      program.ops.map((op, index) => [
        `${index}`,
        op.lane,
        op.kind,
        op.label,
        `${formatViews(program, op.inputs)} -> ${formatViews(program, op.outputs)}`,
        formatAttrs(op.attrs),
        op.waits.length > 0 ? `after ${op.waits.join(' ')}` : '',
      ]),
    ),
  ]
  return `${lines.join('\n')}\n`
}

function bufferCells({ name, space, dtype, shape, layout, offset }: ProgramBuffer): string[] {
  const place = offset === undefined ? space : `arena+${offset}`
  return [name, place, `${dtype}[${shape.join(', ')}]`, layout === 'matmul' ? layout : '']
}

function formatViews(program: Program, views: readonly (View | null)[]): string {
  const names = views.map((view) => {
    if (view === null) return '-'
    const part = view.part === undefined ? '' : `#${view.upTo ? '..' : ''}${view.part}`
    return `${program.buffers[view.buffer]!.name}${part}`
  })
  return names.join(', ')
}

function formatAttrs(attrs: Readonly<Record<string, AttrValue>>): string {
  return Object.entries(attrs)
    .map(([name, value]) => `${name}=${formatAttr(value)}`)
    .join(' ')
}

function formatAttr(value: AttrValue): string {
  if (typeof value === 'number') return `${Number(value.toPrecision(6))}`
  if (typeof value === 'object') return `[${value.map((n) => Number(n.toPrecision(6))).join(',')}]`
  return `${value}`
}

/** Columns aligned, trailing blanks cut. */
function table(rows: readonly (readonly string[])[]): string[] {
  const widths: number[] = []
  for (const row of rows) {
    row.forEach((cell, column) => {
      widths[column] = Math.max(widths[column] ?? 0, cell.length)
    })
  }
  return rows.map((row) =>
    row
      .map((cell, column) => cell.padEnd(widths[column]!))
      .join('  ')
      .trimEnd(),
  )
}
