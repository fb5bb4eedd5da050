/**
 * Checkpoints with the experts of a layer in one tensor: copies of golden ones, made here, must give
 * the very logits of those with a tensor for each expert.
 */

import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { loadModel } from '../lib/models/index.ts'
import { BareModel } from './support/bare-model.ts'
import { createFolder } from './support/checkpoint-folder.ts'
import { errorOf } from './support/errors.ts'
import { goldenFolder, readGolden } from './support/golden.ts'
import { readTensors, type Tensor, writeTensors } from './support/tensors.ts'

/** Names of an expert's gate, up and down, and what its block is called in the fused form. */
const FAMILIES = {
  mixtral: { parts: ['w1', 'w3', 'w2'], block: ['.block_sparse_moe.', '.mlp.'] },
  'qwen3-moe': { parts: ['gate_proj', 'up_proj', 'down_proj'], block: ['.mlp.', '.mlp.'] },
  'qwen2-moe-shared': { parts: ['gate_proj', 'up_proj', 'down_proj'], block: ['.mlp.', '.mlp.'] },
  'glm4-moe': { parts: ['gate_proj', 'up_proj', 'down_proj'], block: ['.mlp.', '.mlp.'] },
} as const

type FamilyName = keyof typeof FAMILIES

function stack(tensors: readonly Tensor[], shape: readonly number[]): Tensor {
  return { ...tensors[0]!, shape, bytes: Buffer.concat(tensors.map(({ bytes }) => bytes)) }
}

function fusedCopy(family: FamilyName): Map<string, Tensor> {
  const { parts, block } = FAMILIES[family]
  const tensors = readTensors(`${goldenFolder(family)}/model.safetensors`)
  const bases = [...tensors.keys()].flatMap((name) => /^(.*\.)experts\.0\./.exec(name)?.[1] ?? [])
  for (const base of new Set(bases)) {
    const experts: Tensor[][] = []
    for (let expert = 0; tensors.has(`${base}experts.${expert}.${parts[0]}.weight`); expert++) {
      const names = parts.map((part) => `${base}experts.${expert}.${part}.weight`)
      experts.push(names.map((name) => tensors.get(name)!))
      for (const name of names) tensors.delete(name)
    }
    const [width, hidden] = experts[0]![0]!.shape as [number, number]
    const fused = base.replace(block[0], block[1])
    const gateUps = experts.flatMap(([gate, up]) => [gate!, up!])
    tensors.set(`${fused}experts.gate_up_proj`, stack(gateUps, [experts.length, 2 * width, hidden]))
    const downs = experts.map(([, , down]) => down!)
    tensors.set(`${fused}experts.down_proj`, stack(downs, [experts.length, hidden, width]))
    const router = tensors.get(`${base}gate.weight`)!
    tensors.delete(`${base}gate.weight`)
    tensors.set(`${fused}gate.weight`, router)
  }
  return tensors
}

function folderOf(family: FamilyName, tensors: ReadonlyMap<string, Tensor>) {
  return createFolder({
    'config.json': readFileSync(`${goldenFolder(family)}/config.json`),
    'model.safetensors': writeTensors(tensors),
  })
}

async function logitsOf(folder: string, tp: number, ep: number, tokens: readonly number[]) {
  const options = { tp, ep, parts: [1], maxTokens: tokens.length }
  const bare = await BareModel.load(loadModel(folder), options)
  try {
    return await bare.forward(tokens, tokens.length, 1)
  } finally {
    await bare.close()
  }
}

describe.each(Object.keys(FAMILIES) as FamilyName[])('%s', (family) => {
  const { tokens } = readGolden(goldenFolder(family))[1]!

  it.each([
    [1, 1],
    [2, 1],
    [1, 4],
  ])('fused experts compute the same, tp %i, ep %i', async (tp, ep) => {
    using folder = folderOf(family, fusedCopy(family))
    const expected = await logitsOf(goldenFolder(family), tp, ep, tokens)
    expect(await logitsOf(folder.path, tp, ep, tokens)).toEqual(expected)
  })

  it('fused tensors of another shape are refused', () => {
    const tensors = fusedCopy(family)
    const [name, tensor] = [...tensors].find(([key]) => key.endsWith('gate_up_proj'))!
    const [experts, rows, cols] = tensor.shape as [number, number, number]
    tensors.set(name, { ...tensor, shape: [experts, rows / 2, 2 * cols] })
    using folder = folderOf(family, tensors)
    expect(errorOf(() => loadModel(folder.path)).code).toBe('ERR_TENSOR_SHAPE')
  })
})
