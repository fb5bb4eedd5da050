/**
 * Weight plans and manifests: pieces are applied to a checkpoint whose elements are named after their
 * place, and the buffers of all ranks compared with what each rank must hold.
 */

import { describe, expect, it } from 'vitest'
import { buildDecoder } from '../lib/models/decoder.ts'
import type { LayerChoices } from '../lib/models/families/common.ts'
import type { DecoderSpec } from '../lib/models/spec.ts'
import {
  checkTensors,
  countParameters,
  dominantDtype,
  expectedTensors,
} from '../lib/models/weights.ts'
import { resolveManifest } from '../lib/weights/manifest.ts'
import type { TensorIndex, TensorInfo } from '../lib/weights/safetensors.ts'
import type { WeightManifest } from '../lib/weights/types.ts'
import { codeOf } from './support/errors.ts'
import { paperIndex, SMALL_LIMITS, smallSpec } from './support/programs.ts'

const HIDDEN = 16
const HEAD_DIM = 4
const VOCAB = 100

interface Case {
  readonly tp: number
  readonly precision?: 'auto' | 'f32' | 'bf16'
  readonly choices?: Partial<LayerChoices>
  readonly change?: (spec: DecoderSpec) => DecoderSpec
  readonly retype?: (tensors: Map<string, TensorInfo>) => void
}

function manifestOf({ tp, precision = 'auto', choices = {}, change, retype }: Case): {
  manifest: WeightManifest
  index: TensorIndex
} {
  const plain = smallSpec({ layers: 1, hiddenSize: HIDDEN, choices })
  const spec = change ? change(plain) : plain
  const index = paperIndex(spec)
  const tensors = new Map(index.tensors)
  retype?.(tensors)
  const changed = { ...index, tensors }
  const { weights, kv } = buildDecoder(spec, changed, {
    name: 'test',
    tp,
    limits: { ...SMALL_LIMITS, vocabSize: VOCAB },
    dtype: 'f32',
    kvDtype: 'f32',
    precision,
    maxModelLen: 512,
  })
  return { manifest: resolveManifest(changed, weights, kv), index: changed }
}

/** A rank's buffer, cell by cell: `tensor:row,col`, with `+add` where something is added; '' is zero. */
function materialize(
  { manifest, index }: { manifest: WeightManifest; index: TensorIndex },
  name: string,
  rank: number,
): string[][] {
  const buffer = manifest.buffers.find((candidate) => candidate.name === name)!
  const [rows, cols] =
    buffer.shape.length === 1 ? [1, buffer.shape[0]!] : (buffer.shape as [number, number])
  const cells = Array.from({ length: rows }, () => Array<string>(cols).fill(''))
  const nameAt = new Map([...index.tensors].map(([tensor, info]) => [info.offset, tensor]))
  for (const piece of buffer.ranks[rank]!) {
    const tensor = nameAt.get(piece.offset)!
    expect(piece.rowStart + piece.rowCount).toBeLessThanOrEqual(piece.rows)
    expect(piece.colStart + piece.colCount).toBeLessThanOrEqual(piece.cols)
    for (let row = 0; row < piece.rowCount; row++) {
      for (let col = 0; col < piece.colCount; col++) {
        // Pieces are disjoint and inside the buffer.
        expect(cells[piece.destRow + row]![piece.destCol + col]).toBe('')
        const add = piece.add === undefined ? '' : `+${piece.add}`
        cells[piece.destRow + row]![piece.destCol + col] =
          `${tensor}:${piece.rowStart + row},${piece.colStart + col}${add}`
      }
    }
  }
  return cells
}

const range = (start: number, count: number) => Array.from({ length: count }, (_, i) => start + i)

/** Rows of a tensor of HIDDEN columns. */
const rowsOf = (tensor: string, rows: readonly number[], cols = range(0, HIDDEN)) =>
  rows.map((row) => cols.map((col) => `${tensor}:${row},${col}`))

const LAYER = 'model.layers.0.'

describe('one rank', () => {
  const packed = manifestOf({ tp: 1 })

  it('stacks q, k, v and gate, up', () => {
    expect(materialize(packed, 'layers.0.qkv.weight', 0)).toEqual([
      ...rowsOf(`${LAYER}self_attn.q_proj.weight`, range(0, 16)),
      ...rowsOf(`${LAYER}self_attn.k_proj.weight`, range(0, 8)),
      ...rowsOf(`${LAYER}self_attn.v_proj.weight`, range(0, 8)),
    ])
    expect(materialize(packed, 'layers.0.gate_up.weight', 0)).toEqual([
      ...rowsOf(`${LAYER}mlp.gate_proj.weight`, range(0, 32)),
      ...rowsOf(`${LAYER}mlp.up_proj.weight`, range(0, 32)),
    ])
  })

  it('pads the vocabulary to a multiple of 16', () => {
    const cells = materialize(packed, 'embed.weight', 0)
    expect(cells).toHaveLength(112)
    expect(cells.slice(0, VOCAB)).toEqual(rowsOf('model.embed_tokens.weight', range(0, VOCAB)))
    expect(
      cells
        .slice(VOCAB)
        .flat()
        .every((cell) => cell === ''),
    ).toBe(true)
  })

  it('uses one buffer for tied embedding and head', () => {
    const tied = manifestOf({
      tp: 1,
      change: (spec) => ({ ...spec, head: { tensor: spec.embedding.tensor } }),
    })
    expect(tied.manifest.buffers.some((buffer) => buffer.name === 'head.weight')).toBe(false)
    expect(packed.manifest.buffers.some((buffer) => buffer.name === 'head.weight')).toBe(true)
  })

  it('lists KV caches without pieces', () => {
    const kv = packed.manifest.buffers.filter((buffer) => buffer.space === 'kv')
    expect(kv.map(({ name, shape, ranks }) => ({ name, shape, ranks }))).toEqual([
      { name: 'layers.0.kv', shape: [16, 2, 2, 8, HEAD_DIM], ranks: [[]] },
    ])
  })
})

describe('several ranks', () => {
  it('split heads, and copy KV heads where there are too few', () => {
    for (const [tp, kvHeads] of [
      [2, [[0], [1]]],
      [4, [[0], [0], [1], [1]]],
    ] as const) {
      const packed = manifestOf({ tp })
      for (const rank of range(0, tp)) {
        const queries = range((rank * 16) / tp, 16 / tp)
        const keys = kvHeads[rank]!.flatMap((head) => range(head * HEAD_DIM, HEAD_DIM))
        expect(materialize(packed, 'layers.0.qkv.weight', rank)).toEqual([
          ...rowsOf(`${LAYER}self_attn.q_proj.weight`, queries),
          ...rowsOf(`${LAYER}self_attn.k_proj.weight`, keys),
          ...rowsOf(`${LAYER}self_attn.v_proj.weight`, keys),
        ])
        expect(materialize(packed, 'layers.0.o.weight', rank)).toEqual(
          rowsOf(`${LAYER}self_attn.o_proj.weight`, range(0, HIDDEN), queries),
        )
      }
    }
  })

  it('split the vocabulary in equal blocks', () => {
    const packed = manifestOf({ tp: 4 })
    for (const rank of range(0, 4)) {
      const count = Math.min(32, VOCAB - rank * 32)
      const cells = materialize(packed, 'head.weight', rank)
      expect(cells).toHaveLength(32)
      expect(cells.slice(0, count)).toEqual(rowsOf('lm_head.weight', range(rank * 32, count)))
      expect(cells.slice(count).flat().join('')).toBe('')
    }
  })

  it('pad a width that does not split evenly, alike in gate, up and down', () => {
    const packed = manifestOf({
      tp: 4,
      change: (spec) => ({
        ...spec,
        layers: spec.layers.map((layer) => ({
          ...layer,
          feedForward: { ...layer.feedForward, intermediateSize: 18 },
        })),
      }),
    })
    for (const rank of range(0, 4)) {
      const columns = range(rank * 8, Math.max(0, Math.min(8, 18 - rank * 8)))
      const gateUp = materialize(packed, 'layers.0.gate_up.weight', rank)
      expect(gateUp).toHaveLength(16)
      const gate = rowsOf(`${LAYER}mlp.gate_proj.weight`, columns)
      const up = rowsOf(`${LAYER}mlp.up_proj.weight`, columns)
      expect(gateUp.slice(0, columns.length)).toEqual(gate)
      expect(gateUp.slice(8, 8 + columns.length)).toEqual(up)
      expect(gateUp.flat().filter((cell) => cell !== '')).toHaveLength(2 * columns.length * HIDDEN)
      const down = materialize(packed, 'layers.0.down.weight', rank)
      const expected = rowsOf(`${LAYER}mlp.down_proj.weight`, range(0, HIDDEN), columns)
      expect(down.map((row) => row.slice(0, columns.length))).toEqual(expected)
      expect(down.every((row) => row.slice(columns.length).join('') === '')).toBe(true)
    }
  })

  it('split biases like their rows; a row-parallel bias is whole on every rank', () => {
    const choices = { queryKeyValueBias: true, outputBias: true, feedForwardBias: true }
    const packed = manifestOf({ tp: 2, choices })
    for (const rank of [0, 1]) {
      const bias = (name: string, cols: readonly number[]) =>
        rowsOf(`${LAYER}${name}.bias`, [0], [...cols])[0]!
      expect(materialize(packed, 'layers.0.qkv.bias', rank)[0]).toEqual([
        ...bias('self_attn.q_proj', range(rank * 8, 8)),
        ...bias('self_attn.k_proj', range(rank * 4, 4)),
        ...bias('self_attn.v_proj', range(rank * 4, 4)),
      ])
      expect(materialize(packed, 'layers.0.gate_up.bias', rank)[0]).toEqual([
        ...bias('mlp.gate_proj', range(rank * 16, 16)),
        ...bias('mlp.up_proj', range(rank * 16, 16)),
      ])
      for (const name of ['self_attn.o_proj', 'mlp.down_proj']) {
        const buffer = `layers.0.${name === 'mlp.down_proj' ? 'down' : 'o'}.bias`
        expect(materialize(packed, buffer, rank)[0]).toEqual(bias(name, range(0, HIDDEN)))
      }
    }
  })

  it('take their rows from fused tensors', () => {
    const packed = manifestOf({ tp: 2, choices: { fused: true } })
    const tensor = `${LAYER}self_attn.qkv_proj.weight`
    expect(materialize(packed, 'layers.0.qkv.weight', 1)).toEqual(
      rowsOf(tensor, [...range(8, 8), ...range(20, 4), ...range(28, 4)]),
    )
    const gateUp = `${LAYER}mlp.gate_up_proj.weight`
    expect(materialize(packed, 'layers.0.gate_up.weight', 1)).toEqual(
      rowsOf(gateUp, [...range(16, 16), ...range(48, 16)]),
    )
  })
})

describe('dtypes', () => {
  const dtypeOf = ({ manifest }: { manifest: WeightManifest }, name: string) =>
    manifest.buffers.find((buffer) => buffer.name === name)!.dtype
  const allBf16 = (tensors: Map<string, TensorInfo>) => {
    for (const [name, info] of tensors) tensors.set(name, { ...info, dtype: 'BF16' })
  }

  it('matmul weights as stored, norms and biases f32', () => {
    const packed = manifestOf({
      tp: 1,
      precision: 'f32',
      retype: allBf16,
      choices: { queryKeyValueBias: true },
    })
    expect(dtypeOf(packed, 'layers.0.qkv.weight')).toBe('bf16')
    expect(dtypeOf(packed, 'embed.weight')).toBe('bf16')
    expect(dtypeOf(packed, 'layers.0.norm1.weight')).toBe('f32')
    expect(dtypeOf(packed, 'layers.0.qkv.bias')).toBe('f32')
  })

  it('bf16 where it is asked for', () => {
    const packed = manifestOf({ tp: 1, precision: 'bf16' })
    expect(dtypeOf(packed, 'layers.0.qkv.weight')).toBe('bf16')
    expect(dtypeOf(packed, 'layers.0.norm1.weight')).toBe('f32')
  })

  it('f32 where sources of one buffer differ', () => {
    const packed = manifestOf({
      tp: 1,
      retype(tensors) {
        const name = `${LAYER}self_attn.k_proj.weight`
        tensors.set(name, { ...tensors.get(name)!, dtype: 'F16' })
      },
    })
    expect(dtypeOf(packed, 'layers.0.qkv.weight')).toBe('f32')
  })

  it('others are refused', () => {
    const name = `${LAYER}self_attn.k_proj.weight`
    const retype = (tensors: Map<string, TensorInfo>) => {
      tensors.set(name, { ...tensors.get(name)!, dtype: 'F8_E4M3' })
    }
    expect(codeOf(() => manifestOf({ tp: 1, retype }))).toBe('ERR_UNSUPPORTED_MODEL')
  })

  it('Gemma’s norms get their 1', () => {
    const packed = manifestOf({ tp: 1, choices: { normOffset: 1 } })
    const [row] = materialize(packed, 'layers.0.norm1.weight', 0)
    expect(row![3]).toBe(`${LAYER}post_attention_layernorm.weight:0,3+1`)
  })
})

describe('checkTensors', () => {
  const spec = smallSpec({ layers: 2, hiddenSize: HIDDEN, choices: { queryKeyNorm: true } })
  const changed = (change: (tensors: Map<string, TensorInfo>) => void): TensorIndex => {
    const index = paperIndex(spec)
    const tensors = new Map(index.tensors)
    change(tensors)
    return { ...index, tensors }
  }
  const any = paperIndex(spec).tensors.get('model.norm.weight')!

  it('accepts what the spec needs, and tensors outside the decoder', () => {
    checkTensors(spec, paperIndex(spec))
    checkTensors(
      spec,
      changed((tensors) => tensors.set('vision_tower.x', any)),
    )
    const buffer = `${LAYER}self_attn.rotary_emb.inv_freq`
    checkTensors(
      spec,
      changed((tensors) => tensors.set(buffer, any)),
    )
  })

  it('refuses a missing tensor, another shape, another rank, an unused tensor', () => {
    for (const name of expectedTensors(spec).keys()) {
      const without = changed((tensors) => tensors.delete(name))
      expect(codeOf(() => checkTensors(spec, without))).toBe('ERR_TENSOR_MISSING')
      const wrong = changed((tensors) => {
        const info = tensors.get(name)!
        tensors.set(name, { ...info, shape: info.shape.with(0, info.shape[0]! + 1) })
      })
      expect(codeOf(() => checkTensors(spec, wrong))).toBe('ERR_TENSOR_SHAPE')
      const flat = changed((tensors) => {
        tensors.set(name, { ...tensors.get(name)!, shape: [...tensors.get(name)!.shape, 1] })
      })
      expect(codeOf(() => checkTensors(spec, flat))).toBe('ERR_TENSOR_SHAPE')
    }
    const unused = changed((tensors) => tensors.set(`${LAYER}self_attn.sinks`, any))
    expect(codeOf(() => checkTensors(spec, unused))).toBe('ERR_UNSUPPORTED_MODEL')
  })

  it('counts parameters and finds their dtype', () => {
    let total = 0
    for (const shape of expectedTensors(spec).values()) total += shape.reduce((a, b) => a * b, 1)
    expect(countParameters(spec)).toBe(total)
    expect(dominantDtype(spec, paperIndex(spec))).toBe('f32')
    expect(dominantDtype(spec, paperIndex(spec, 'BF16'))).toBe('bf16')
  })
})
