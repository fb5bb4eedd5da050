/** Golden checkpoints and their reference results; see test/fixtures/golden/README.md. */

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

export interface GoldenPrompt {
  readonly tokens: readonly number[]
  readonly greedy: readonly { readonly token: number; readonly margin: number }[]
  /** [tokens][vocab]. */
  readonly logits: readonly Float32Array[]
}

export const DENSE_FAMILIES = [
  'llama',
  'llama3-rope-tied-bf16',
  'mistral-sliding',
  'qwen2-bias',
  'qwen3-qknorm',
  'phi3-fused-qkv',
  'gemma2-softcap',
  'gemma3',
] as const

export const EXPERT_FAMILIES = [
  'mixtral',
  'qwen2-moe-shared',
  'qwen3-moe',
  'olmoe',
  'glm4-moe',
  'gpt-oss-sinks',
  'deepseek-v2-mla',
  'deepseek-v3-mla',
] as const

export function goldenFolder(family: string): string {
  return fileURLToPath(new URL(`../fixtures/golden/${family}`, import.meta.url))
}

/** The prompts of a golden folder with their reference logits. */
export function readGolden(folder: string): GoldenPrompt[] {
  const { prompts } = JSON.parse(readFileSync(join(folder, 'golden.json'), 'utf8')) as {
    prompts: readonly Omit<GoldenPrompt, 'logits'>[]
  }
  const bytes = readFileSync(join(folder, 'golden.safetensors'))
  const headerBytes = Number(bytes.readBigUInt64LE())
  const header = JSON.parse(bytes.subarray(8, 8 + headerBytes).toString()) as Record<
    string,
    { shape: readonly [number, number]; data_offsets: readonly [number, number] }
  >
  return prompts.map((prompt, index) => {
    const { shape, data_offsets: offsets } = header[`logits.${index}`]!
    const [rows, vocab] = shape
    const data = bytes.subarray(8 + headerBytes + offsets[0], 8 + headerBytes + offsets[1])
    const floats = new Float32Array(Uint8Array.from(data).buffer)
    const logits = Array.from({ length: rows }, (_, row) =>
      floats.subarray(row * vocab, (row + 1) * vocab),
    )
    return { ...prompt, logits }
  })
}

/** Largest |a - b|; NaN counts as infinite. */
export function maxDifference(a: readonly Float32Array[], b: readonly Float32Array[]): number {
  if (a.length !== b.length) return Infinity
  let largest = 0
  a.forEach((row, index) => {
    const other = b[index]!
    if (row.length !== other.length) largest = Infinity
    for (let column = 0; column < row.length; column++) {
      const difference = Math.abs(row[column]! - other[column]!)
      if (!(difference <= largest)) largest = Number.isNaN(difference) ? Infinity : difference
    }
  })
  return largest
}
