/**
 * The contract each native op states at load: programs that break it are refused with ERR_PROGRAM,
 * before anything runs. Every case starts from a program that loads.
 */

import { describe, expect, test } from 'vitest'
import type { Program, ProgramBuffer, ProgramOp } from '../../lib/program/types.ts'
import { OpRuntime, placeApart, splitIntoParts } from '../support/native.ts'
import { ATTENTION_CASES } from './attention.cases.ts'
import { COLLECTIVE_CASES } from './collectives.cases.ts'
import { EXPERT_CASES } from './experts.cases.ts'
import { MATMUL_CASES } from './matmul.cases.ts'
import { MLA_CASES } from './mla.cases.ts'
import type { OpCase } from './op-case.ts'
import { OVERLAP_CASES } from './overlap.cases.ts'
import { ROPE_CASES } from './rope.cases.ts'
import { ROW_CASES } from './rows.cases.ts'

function programOf(cases: readonly OpCase[], name: string): Program {
  const found = cases.find((opCase) => opCase.name.startsWith(name))!
  return placeApart(found.make().builder)
}

function changeBuffer(name: string, change: Partial<ProgramBuffer>) {
  return (program: Program): Program => ({
    ...program,
    buffers: program.buffers.map((buffer) =>
      buffer.name === name ? { ...buffer, ...change } : buffer,
    ),
  })
}

function changeOp(change: (op: ProgramOp) => Partial<ProgramOp>) {
  return (program: Program): Program => ({
    ...program,
    ops: program.ops.map((op, index) =>
      index === program.ops.length - 1 ? { ...op, ...change(op) } : op,
    ),
  })
}

function setAttr(name: string, value: number | string | readonly number[]) {
  return changeOp((op) => ({ attrs: { ...op.attrs, [name]: value } }))
}

const dropAttr = (name: string) =>
  changeOp((op) => ({
    attrs: Object.fromEntries(Object.entries(op.attrs).filter(([key]) => key !== name)),
  }))

const kvOf = (program: Program) => program.buffers.find(({ space }) => space === 'kv')!

type Change = (program: Program) => Program

const BROKEN: readonly (readonly [string, readonly OpCase[], string, Change])[] = [
  ['an op of no kind', ROW_CASES, 'copy', changeOp(() => ({ kind: 'copies' }))],
  ['too few inputs', ROW_CASES, 'copy', changeOp(() => ({ inputs: [] }))],
  ['a missing input', ROW_CASES, 'copy', changeOp(() => ({ inputs: [null] }))],
  [
    'too many outputs',
    ROW_CASES,
    'copy',
    changeOp((op) => ({ outputs: [...op.outputs, ...op.outputs] })),
  ],
  ['an unknown attribute', ROW_CASES, 'copy', setAttr('speed', 1)],
  ['another width', ROW_CASES, 'copy [7, 13] f32', changeBuffer('y', { shape: ['T', 12] })],
  ['another dtype', ROW_CASES, 'copy [7, 13] f32', changeBuffer('y', { dtype: 'bf16' })],
  ['another row symbol', ROW_CASES, 'copy [7, 13] f32', changeBuffer('y', { shape: ['R', 13] })],
  ['integers', ROW_CASES, 'copy [7, 13] f32', changeBuffer('x', { dtype: 'i32' })],
  ['a missing eps', ROW_CASES, 'rms_norm [7', dropAttr('eps')],
  ['an eps of another type', ROW_CASES, 'rms_norm [7', setAttr('eps', '1e-5')],
  ['a negative eps', ROW_CASES, 'rms_norm [7', setAttr('eps', -1)],
  ['a short norm weight', ROW_CASES, 'rms_norm [7', changeBuffer('weight', { shape: [12] })],
  ['a bf16 norm weight', ROW_CASES, 'rms_norm [7', changeBuffer('weight', { dtype: 'bf16' })],
  [
    'a residual that is not updated in place',
    ROW_CASES,
    'add_rms_norm [7',
    changeOp((op) => ({ outputs: [op.outputs[0]!, { buffer: op.inputs[0]!.buffer }] })),
  ],
  ['a gate of odd width', ROW_CASES, 'silu_mul [7', changeBuffer('gate_up', { shape: ['T', 25] })],
  ['a gather of tokens', ROW_CASES, 'gather_rows', changeBuffer('y', { shape: ['T', 13] })],
  ['a table in the plain layout', ROW_CASES, 'embed 1', changeBuffer('table', { layout: 'plain' })],
  ['a table of too few ids', ROW_CASES, 'embed 1', changeBuffer('table', { shape: [95, 13] })],
  ['no frequencies', ROPE_CASES, 'rope_table plain', setAttr('inv_freq', [])],
  ['frequencies that are no numbers', ROPE_CASES, 'rope_table plain', setAttr('inv_freq', 'all')],
  ['a narrow table', ROPE_CASES, 'rope_table plain', changeBuffer('table', { shape: ['T', 62] })],
  ['dynamic scaling without its base', ROPE_CASES, 'rope_table dynamic', dropAttr('dynamic_base')],
  ['an odd rotary size', ROPE_CASES, 'split_rope_cache f32', setAttr('rotary_dim', 15)],
  ['a rotary size above the head', ROPE_CASES, 'split_rope_cache f32', setAttr('rotary_dim', 18)],
  ['a fractional head count', ROPE_CASES, 'split_rope_cache f32', setAttr('heads', 4.5)],
  ['an absurd head count', ROPE_CASES, 'split_rope_cache f32', setAttr('heads', 2 ** 40)],
  ['norms without eps', ROPE_CASES, 'split_rope_cache q and k', dropAttr('eps')],
  [
    'a cache of other heads',
    ROPE_CASES,
    'split_rope_cache f32',
    changeBuffer('kv', { shape: [6, 2, 3, 16, 16] }),
  ],
  ['KV heads that do not divide heads', ATTENTION_CASES, 'attention grouped', setAttr('heads', 5)],
  ['no KV heads', ATTENTION_CASES, 'attention grouped', setAttr('kv_heads', 0)],
  ['a window of none', ATTENTION_CASES, 'attention grouped', setAttr('window', 0)],
  ['a negative soft cap', ATTENTION_CASES, 'attention grouped', setAttr('softcap', -1)],
  ['no scale', ATTENTION_CASES, 'attention grouped', dropAttr('scale')],
  ['a narrow output', ATTENTION_CASES, 'attention grouped', changeBuffer('o', { shape: ['T', 8] })],
  ['latent vectors of another size', MLA_CASES, 'mla_attention f32', setAttr('latent_dim', 33)],
  ['more heads than queries', MLA_CASES, 'mla_attention f32', setAttr('heads', 7)],
  [
    'a latent cache of keys and values',
    MLA_CASES,
    'mla_attention f32',
    (program) => changeBuffer('kv', { shape: kvOf(program).shape.with(1, 2) })(program),
  ],
  [
    'rotated queries of another dtype',
    MLA_CASES,
    'mla_attention f32',
    changeBuffer('q_rope', { dtype: 'bf16' }),
  ],
  ['a negative eps of a latent norm', MLA_CASES, 'mla_split_rope_cache f32', setAttr('eps', -1)],
  [
    'an odd number of rotated columns',
    MLA_CASES,
    'mla_split_rope_cache f32',
    setAttr('rope_dim', 7),
  ],
  [
    'queries narrower than their rotated part',
    MLA_CASES,
    'mla_split_rope_cache f32',
    changeBuffer('q', { shape: ['T', 28] }),
  ],
  ['heads that do not divide the columns', MLA_CASES, 'head_matmul [7, 3', setAttr('heads', 5)],
  [
    'a head deeper than its columns',
    MLA_CASES,
    'head_matmul [7, 3',
    changeBuffer('weight', { shape: [96, 14] }),
  ],
  ['means of other heads', ROPE_CASES, 'mean_squares [7', setAttr('heads', 4)],
  [
    'norms over all heads with weights of one',
    ROPE_CASES,
    'split_rope_cache q and k norm over all',
    changeBuffer('q_norm', { shape: [16] }),
  ],
  [
    'a weight of other depth',
    MATMUL_CASES,
    'matmul [1, 97',
    changeBuffer('x', { shape: ['T', 96] }),
  ],
  ['a bias on no rank', MATMUL_CASES, 'matmul [1, 97', setAttr('bias_on', 'rank1')],
  ['bf16 logits', MATMUL_CASES, 'logits', changeBuffer('l', { dtype: 'bf16' })],
  [
    'a gather as wide as its input',
    COLLECTIVE_CASES,
    'all_gather [31, 64]',
    (program) => changeBuffer('y', { shape: program.buffers[0]!.shape })(program),
  ],
  [
    'a sum in place, which peers still read',
    COLLECTIVE_CASES,
    'all_reduce [1,',
    changeOp((op) => ({ outputs: [op.inputs[0]!] })),
  ],
  [
    'partials that are the residual',
    COLLECTIVE_CASES,
    'all_reduce_rms_norm [1,',
    changeOp((op) => ({ inputs: [op.inputs[1]!, ...op.inputs.slice(1)] })),
  ],
  [
    'more choices than the kept groups have experts',
    EXPERT_CASES,
    'moe_route groups by their best',
    setAttr('groups', 16),
  ],
  ['an unknown form', COLLECTIVE_CASES, 'all_reduce_rms_norm [1,', setAttr('form', 'three_shot')],
  ['no row groups', OVERLAP_CASES, 'matmul_all_reduce [1, 8]', setAttr('groups', 0)],
  ['too many row groups', OVERLAP_CASES, 'all_gather_rows [1, 8]', setAttr('groups', 9)],
  [
    'sums of another 16-bit type',
    OVERLAP_CASES,
    'matmul_all_reduce [37, 24]·[24, 24]ᵀ bf16',
    changeBuffer('y', { dtype: 'f16' }),
  ],
  [
    'a partial that is the sum',
    OVERLAP_CASES,
    'matmul_reduce_scatter [1, 8]',
    changeOp((op) => ({ outputs: [op.outputs[0]!, op.outputs[0]!] })),
  ],
  [
    'gathered rows that are the product',
    OVERLAP_CASES,
    'all_gather_matmul [1, 8]',
    changeOp((op) => ({ outputs: [op.outputs[0]!, op.outputs[0]!] })),
  ],
  [
    'a late rank that is not there',
    COLLECTIVE_CASES,
    'all_reduce [7',
    (program) => ({
      ...program,
      ops: program.ops.map((op) =>
        op.kind === 'stall' ? { ...op, attrs: { ...op.attrs, rank: 4 } } : op,
      ),
    }),
  ],
]

async function load(program: Program): Promise<void> {
  const runtime = await OpRuntime.open(program)
  await runtime.close()
}

describe('refused at load', () => {
  test.each(BROKEN)('%s', async (_, cases, name, change) => {
    const program = programOf(cases, name)
    await load(program)
    await expect(load(change(program))).rejects.toMatchObject({ code: 'ERR_PROGRAM' })
  })

  test('operands of two parts in one op', async () => {
    const program = splitIntoParts(programOf(ROW_CASES, 'copy [7'), 2)
    await load(program)
    const crossed = changeOp((op) => ({ inputs: [{ ...op.inputs[0]!, part: 0 }] }))(program)
    await expect(load(crossed)).rejects.toMatchObject({ code: 'ERR_PROGRAM' })
  })
})
