/**
 * Where the command line writes: data to stdout, everything else to stderr. A reader that goes
 * away (`nanoweave generate … | head -1`) ends the work quietly.
 */

/** Cuts numbers to what a person reads: 12.3, 1.23, 123. */
export function formatNumber(value: number): string {
  if (!Number.isFinite(value)) return '–'
  if (value >= 100) return value.toFixed(0)
  return value >= 10 ? value.toFixed(1) : value.toFixed(2)
}

const byteUnits = ['B', 'KiB', 'MiB', 'GiB', 'TiB'] as const

export function formatBytes(bytes: number): string {
  let value = bytes
  let unit = 0
  while (value >= 1024 && unit < byteUnits.length - 1) {
    value /= 1024
    unit++
  }
  return unit === 0 ? `${bytes} B` : `${formatNumber(value)} ${byteUnits[unit]}`
}

/** Parameters and other large counts: 3.71 M, 7.24 B. */
export function formatCount(count: number): string {
  if (count >= 1e9) return `${formatNumber(count / 1e9)} B`
  if (count >= 1e6) return `${formatNumber(count / 1e6)} M`
  return String(count)
}

/** Writes to stdout; resolves when it is written, or failed: interrupt.ts deals with failures. */
export async function writeOut(text: string): Promise<void> {
  if (text === '' || process.stdout.destroyed) return
  await new Promise<void>((resolve) => process.stdout.write(text, () => resolve()))
}

/** The one JSON document of `--json`. */
export function writeJson(value: unknown): Promise<void> {
  return writeOut(`${JSON.stringify(value, null, 2)}\n`)
}

export function note(text: string): void {
  process.stderr.write(`${text}\n`)
}

/** Lines of `name  value`, names padded to one column. */
export function formatPairs(pairs: readonly (readonly [string, string])[]): string {
  const width = Math.max(...pairs.map(([name]) => name.length))
  return pairs.map(([name, value]) => `${name.padEnd(width)}  ${value}`).join('\n')
}
