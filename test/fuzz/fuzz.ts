/**
 * Fuzzing of everything read from a model folder: configs, safetensors headers, shard indexes. Every
 * case must load and compile, or throw an EngineError; none may hang, leak a descriptor or take
 * memory without bound. Repeatable from its seed.
 *
 *   npx tsx test/fuzz/fuzz.ts [iterations] [seed]        (defaults: 100000 1)
 */

import { readdirSync, readFileSync, symlinkSync, truncateSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { EngineError } from '../../lib/errors.ts'
import { checkLayout, compileModel, loadModel, modelFootprint } from '../../lib/models/index.ts'
import { expectedTensors } from '../../lib/models/weights.ts'
import { DTYPE_BYTES } from '../../lib/program/types.ts'
import type { WeightManifest } from '../../lib/weights/types.ts'
import { createFolder, encodeSafetensors, withHeader } from '../support/checkpoint-folder.ts'
import { DENSE_FAMILIES, goldenFolder } from '../support/golden.ts'
import { smallSpec } from '../support/programs.ts'
import { createRandom, type Random } from '../support/random.ts'
import { mutateBytes, mutateStructure, pick } from './mutate.ts'

/** A case that takes longer is taken for a hang. */
const MAX_CASE_MS = 20_000
const MAX_GROWTH_BYTES = 600e6

const LIMITS = {
  maxTokens: 8,
  maxRows: 2,
  maxSeqs: 1,
  numBlocks: 2,
  blockSize: 8,
  maxBlocksPerSeq: 2,
  numSlots: 1,
}

export interface FuzzReport {
  /** How often each error code was thrown; `loaded` where nothing was. */
  readonly outcomes: Readonly<Record<string, number>>
  readonly iterations: number
}

type Folder = ReturnType<typeof createFolder>

/** Everything the loader would map lies inside its file. */
function checkPieces({ files, buffers }: WeightManifest, where: string): void {
  for (const piece of buffers.flatMap(({ ranks }) => ranks.flat())) {
    const end = piece.offset + piece.rows * piece.cols * DTYPE_BYTES[piece.dtype]
    const fits =
      piece.rowStart + piece.rowCount <= piece.rows && piece.colStart + piece.colCount <= piece.cols
    if (!fits || end > files[piece.file]!.bytes) throw new Error(`${where}: a piece out of bounds`)
  }
}

interface Target {
  readonly name: string
  readonly path: string
  /** Overwrites the mutated file. */
  mutate(random: Random): void
}

/** Runs `iterations` mutations; throws at the first case that breaks a rule, naming seed and case. */
export function fuzz(iterations: number, seed: number): FuzzReport {
  const folders: Folder[] = []
  try {
    const targets = createTargets(folders)
    const outcomes: Record<string, number> = {}
    const descriptors = countDescriptors()
    const baseline = process.memoryUsage().rss
    for (let iteration = 0; iteration < iterations; iteration++) {
      // A generator per case, so that one case can be repeated alone.
      const random = createRandom(seed * 1_000_003 + iteration)
      const target = pick(random, pick(random, targets))
      const where = `seed ${seed}, case ${iteration} (${target.name})`
      const started = performance.now()
      const outcome = runCase(target, random, where)
      outcomes[outcome] = (outcomes[outcome] ?? 0) + 1
      if (performance.now() - started > MAX_CASE_MS) throw new Error(`${where} hangs`)
      if (iteration % 500 === 0 && process.memoryUsage().rss - baseline > MAX_GROWTH_BYTES) {
        throw new Error(`${where}: memory grew by more than ${MAX_GROWTH_BYTES} bytes`)
      }
    }
    if (countDescriptors() > descriptors) throw new Error('descriptors were left open')
    return { outcomes, iterations }
  } finally {
    for (const folder of folders) folder[Symbol.dispose]()
  }
}

function countDescriptors(): number {
  return readdirSync('/proc/self/fd').length
}

function runCase(target: Target, random: Random, where: string): string {
  target.mutate(random)
  try {
    const model = loadModel(target.path)
    const tensorParallel = pick(random, [1, 2, 4])
    checkLayout(model, tensorParallel)
    modelFootprint(model, { tensorParallel, precision: 'auto' })
    const { manifest } = compileModel(model, {
      tensorParallel,
      parts: 2,
      precision: 'auto',
      limits: LIMITS,
    })
    checkPieces(manifest, where)
    return 'loaded'
  } catch (error) {
    if (error instanceof EngineError) return error.code
    throw new Error(`${where} threw what is no EngineError`, { cause: error })
  }
}

/** Folders by what is mutated in them: configs, headers, indexes. */
function createTargets(folders: Folder[]): Target[][] {
  const createTarget = (name: string, folder: Folder, mutate: Target['mutate']): Target => {
    folders.push(folder)
    return { name, path: folder.path, mutate }
  }
  const configs = DENSE_FAMILIES.map((family) => {
    const config = JSON.parse(readFileSync(join(goldenFolder(family), 'config.json'), 'utf8'))
    const folder = createFolder({})
    symlinkSync(
      join(goldenFolder(family), 'model.safetensors'),
      join(folder.path, 'model.safetensors'),
    )
    return createTarget(`config of ${family}`, folder, (random) => {
      folder.write('config.json', mutateDocument(random, config))
    })
  })
  const config = JSON.stringify(SMALL_CONFIG)
  const tensors = smallTensors()
  const checkpoint = encodeSafetensors(tensors)

  const headers = createFolder({ 'config.json': config })
  const headerBytes = Number(checkpoint.readBigUInt64LE())
  const header = JSON.parse(checkpoint.subarray(8, 8 + headerBytes).toString())
  const headerTarget = createTarget('header', headers, (random) => {
    const text = mutateDocument(random, header)
    const file = withHeader(text)
    // Lengths that lie, in one of eight.
    if (random.int(0, 7) === 0) file.writeBigUInt64LE(randomLength(random, text.length))
    headers.write('model.safetensors', file)
    const data = checkpoint.length - 8 - headerBytes
    const size = file.length + data + (random.int(0, 7) === 0 ? random.int(-data, 100) : 0)
    truncateSync(join(headers.path, 'model.safetensors'), size)
  })

  const names = Object.keys(tensors)
  const half = (from: number, to: number) =>
    encodeSafetensors(
      Object.fromEntries(names.slice(from, to).map((name) => [name, tensors[name]!])),
    )
  const middle = names.length >> 1
  const shards = createFolder({
    'config.json': config,
    'one.safetensors': half(0, middle),
    'two.safetensors': half(middle, names.length),
  })
  const map = Object.fromEntries(
    names.map((name, i) => [name, i < middle ? 'one.safetensors' : 'two.safetensors']),
  )
  const indexTarget = createTarget('shard index', shards, (random) => {
    const text = mutateDocument(random, { metadata: { total_size: 1 }, weight_map: map })
    shards.write('model.safetensors.index.json', text)
  })
  return [configs, [headerTarget], [indexTarget]]
}

/** The config of smallSpec. */
const SMALL_CONFIG = {
  architectures: ['LlamaForCausalLM'],
  vocab_size: 100,
  hidden_size: 16,
  intermediate_size: 32,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  max_position_embeddings: 512,
  rms_norm_eps: 1e-5,
  rope_theta: 10_000,
}

function smallTensors(): Record<string, { shape: readonly number[]; dtype: string }> {
  const shapes = expectedTensors(smallSpec({ layers: 2, hiddenSize: 16 }))
  return Object.fromEntries([...shapes].map(([name, shape]) => [name, { shape, dtype: 'F32' }]))
}

function mutateDocument(random: Random, document: object): Buffer {
  const structured = random.next() < 0.7 ? mutateStructure(random, document) : document
  const text = Buffer.from(JSON.stringify(structured))
  return random.next() < 0.4 ? mutateBytes(random, text) : text
}

function randomLength(random: Random, length: number): bigint {
  const near = BigInt(Math.max(0, length + random.int(-3, 3)))
  return pick(random, [0n, 1n, near, 100_000_001n, 2n ** 32n, 2n ** 63n, 2n ** 64n - 1n])
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [iterations = 100_000, seed = 1] = process.argv.slice(2).map(Number)
  process.stdout.write(`${JSON.stringify(fuzz(iterations, seed), null, 2)}\n`)
}
