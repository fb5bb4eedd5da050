/**
 * FakeBinding: the addon's surface with a "model" that is a hash. The next token of a row is a
 * function of every token the row can see through its block table, so a wrong block, slot, position
 * or reused prefix changes the output. Steps run in order, with any latency, and can be made to fail.
 * What the native side checks of a step is checked here too.
 */

import { ROW_FLAG, SLOT_PARAM_WORDS, STEP_SECTION } from '../../lib/engine/step.ts'
import { floatOfWord, wordOfFloat } from '../../lib/engine/words.ts'
import type {
  DevicesDescription,
  LoadProgress,
  NativeBinding,
  NativeRuntime,
  RuntimeOptions,
} from '../../lib/native/binding.ts'
import type { ProgramLimits } from '../../lib/program/types.ts'

export interface FakeOptions {
  /** How long a step takes; undefined: one turn of the event loop. */
  readonly latencyMs?: number
  /** Steps are held back until `release` is called. */
  readonly manual?: boolean
  readonly freeMemoryBytes?: number
  readonly failLoadWeights?: boolean
}

interface Slot {
  seed: number
  temperature: number
  lastToken: number
  penalised: boolean
  readonly bias: Map<number, number>
  readonly counts: Map<number, number>
}

/** FNV-1a over words. */
function mix(hash: number, word: number): number {
  return Math.imul(hash ^ word, 16777619) >>> 0
}

/** Greedy continuation of a context; never one of the first ten ids. */
export function fakeNext(context: readonly number[], vocabSize: number, seed = 0): number {
  let hash = mix(2166136261, seed)
  for (const token of context) hash = mix(hash, token)
  return 10 + (hash % (vocabSize - 10))
}

export function fakeContinuation(
  prompt: readonly number[],
  count: number,
  vocabSize: number,
  seed = 0,
): number[] {
  const tokens = [...prompt]
  for (let i = 0; i < count; i++) tokens.push(fakeNext(tokens, vocabSize, seed))
  return tokens.slice(prompt.length)
}

export function fakeLogprob(context: readonly number[], token: number): number {
  let hash = mix(99, token)
  for (const word of context) hash = mix(hash, word)
  return Math.fround(-(hash % 1000) / 100)
}

export class FakeRuntime implements NativeRuntime {
  readonly options: RuntimeOptions
  readonly #fake: FakeOptions
  readonly steps: Int32Array[] = []
  /** Rejects this step (counted from 0), and all after it. */
  failAt = Number.POSITIVE_INFINITY
  failure: Error & { code?: string } = Object.assign(new Error('rank 1 failed'), {
    code: 'ERR_RANK_FAULT',
    rank: 1,
    op: 'layers.0.attention',
  })
  closed = false
  maxInFlight = 0
  #inFlight = 0
  #limits: ProgramLimits | undefined
  #kv = new Int32Array(0)
  #host = new Int32Array(0)
  #slots: Slot[] = []
  #queue: Promise<void> = Promise.resolve()
  #gates: (() => void)[] = []
  #open = 0

  constructor(options: RuntimeOptions, fake: FakeOptions) {
    this.options = options
    this.#fake = fake
  }

  async loadWeights(_: string, onProgress?: (progress: LoadProgress) => void): Promise<void> {
    if (this.#fake.failLoadWeights)
      throw Object.assign(new Error('weights do not load'), { code: 'ERR_IO' })
    onProgress?.({ bytesDone: 1, bytesTotal: 1 })
  }

  async loadProgram(program: string): Promise<number> {
    const { limits } = JSON.parse(program) as { limits: ProgramLimits }
    this.#limits = limits
    this.#kv = new Int32Array(limits.numBlocks * limits.blockSize).fill(-1)
    this.#host = new Int32Array((limits.numHostBlocks ?? 0) * limits.blockSize).fill(-1)
    this.#slots = Array.from({ length: limits.numSlots }, () => ({
      seed: 0,
      temperature: 0,
      lastToken: -1,
      penalised: false,
      bias: new Map(),
      counts: new Map(),
    }))
    return 0
  }

  submit(_: number, step: Int32Array): Promise<Int32Array> {
    if (this.closed)
      return Promise.reject(Object.assign(new Error('closed'), { code: 'ERR_CLOSED' }))
    const index = this.steps.length
    const words = step.slice()
    this.steps.push(words)
    this.maxInFlight = Math.max(this.maxInFlight, ++this.#inFlight)
    const run = this.#queue.then(async () => {
      await this.#wait()
      if (index >= this.failAt) throw this.failure
      return this.#run(words)
    })
    this.#queue = run.then(
      () => {},
      () => {},
    )
    return run.finally(() => this.#inFlight--)
  }

  /** Lets `count` held-back steps run. */
  release(count = 1): void {
    for (let i = 0; i < count; i++) {
      const gate = this.#gates.shift()
      if (gate === undefined) this.#open++
      else gate()
    }
  }

  async #wait(): Promise<void> {
    if (this.#fake.manual) {
      if (this.#open > 0) this.#open--
      else await new Promise<void>((resolve) => this.#gates.push(resolve))
    } else if (this.#fake.latencyMs === undefined) {
      await new Promise((resolve) => setImmediate(resolve))
    } else {
      await new Promise((resolve) => setTimeout(resolve, this.#fake.latencyMs))
    }
  }

  read(): Promise<Uint8Array> {
    return Promise.reject(new Error('the fake has no buffers'))
  }
  write(): Promise<void> {
    return Promise.reject(new Error('the fake has no buffers'))
  }

  async close(): Promise<void> {
    this.closed = true
    await this.#queue
  }

  #run(words: Int32Array): Int32Array {
    const limits = this.#limits as ProgramLimits
    const section = (kind: number): Int32Array => {
      for (let i = 0; i < words[4]; i++) {
        const [found, , offset, length] = words.subarray(5 + 4 * i, 9 + 4 * i)
        if (found === kind) return words.subarray(offset, offset + length)
      }
      return new Int32Array(0)
    }
    const require = (condition: boolean, what: string) => {
      if (!condition) throw Object.assign(new Error(`step: ${what}`), { code: 'ERR_STEP' })
    }
    const size = limits.blockSize
    for (const kind of [STEP_SECTION.swapOut, STEP_SECTION.swapIn]) {
      const runs = section(kind)
      for (let at = 0; at < runs.length; at += 3) {
        const [device, host, count] = runs.subarray(at, at + 3)
        require(count > 0 && device + count <= limits.numBlocks, 'swapped device blocks')
        require(host >= 0 && (host + count) * size <= this.#host.length, 'swapped host blocks')
        const isOut = kind === STEP_SECTION.swapOut
        const [from, to] = isOut ? [this.#kv, this.#host] : [this.#host, this.#kv]
        const [source, target] = isOut ? [device, host] : [host, device]
        to.set(from.subarray(source * size, (source + count) * size), target * size)
      }
    }
    const copies = section(STEP_SECTION.blockCopies)
    for (let at = 0; at < copies.length; at += 2) {
      const [source, destination] = copies.subarray(at, at + 2)
      require(Math.max(source, destination) < limits.numBlocks, 'copied blocks')
      this.#kv.copyWithin(destination * size, source * size, (source + 1) * size)
    }
    this.#applySlots(section)

    const tokens = section(STEP_SECTION.tokens)
    const positions = section(STEP_SECTION.positions)
    const kvSlots = section(STEP_SECTION.kvSlots)
    const starts = section(STEP_SECTION.seqStarts)
    const lengths = section(STEP_SECTION.seqLens)
    const tables = section(STEP_SECTION.blockTables)
    const rows = section(STEP_SECTION.rows)
    const bounds = section(STEP_SECTION.partBounds)
    require(tokens.length > 0 && tokens.length <= limits.maxTokens, 'tokens')
    require(lengths.length <= limits.maxSeqs, 'sequences')
    require(rows.length / 4 <= limits.maxRows, 'rows')
    require(bounds[bounds.length - 1] === tokens.length, 'part bounds')
    const width = tables.length / lengths.length
    const sequenceOf = new Int32Array(tokens.length)
    const resolved = tokens.map((word) => (word >= 0 ? word : this.#slots[-word - 1].lastToken))
    for (let s = 0; s < lengths.length; s++) {
      for (let row = starts[s]; row < starts[s + 1]; row++) {
        const position = positions[row]
        const block = tables[s * width + Math.floor(position / limits.blockSize)]
        require(position < lengths[s], 'position beyond the length')
        require(kvSlots[row] ===
          block * limits.blockSize +
            (position % limits.blockSize), 'KV slot is not where the block table says')
        require(resolved[row] >= 0 && resolved[row] < limits.vocabSize, 'token')
        sequenceOf[row] = s
        this.#kv[kvSlots[row]] = resolved[row]
      }
    }
    const contextOf = (row: number): number[] => {
      const table = sequenceOf[row] * width
      return Array.from({ length: positions[row] + 1 }, (_, position) => {
        const block = tables[table + Math.floor(position / limits.blockSize)]
        return this.#kv[block * limits.blockSize + (position % limits.blockSize)]
      })
    }

    const numRows = rows.length / 4
    const sampled = new Int32Array(numRows).fill(-1)
    const logprobs = new Float32Array(numRows).fill(Number.NaN)
    const top: number[] = []
    const logits: number[] = []
    for (let r = 0; r < numRows; r++) {
      const [row, slot, target, flags] = rows.subarray(4 * r, 4 * r + 4)
      const context = contextOf(row)
      if (flags & ROW_FLAG.sample) sampled[r] = this.#sample(this.#slots[slot], context)
      const token = target >= 0 ? target : sampled[r]
      if (flags & ROW_FLAG.logprob) logprobs[r] = fakeLogprob(context, token)
      const count = flags >> 8
      if (count > 0) top.push(r, count)
      for (let i = 0; i < count; i++) top.push(10 + i, wordOfFloat(-i))
      if (flags & ROW_FLAG.logits) {
        logits.push(r)
        for (let v = 0; v < limits.vocabSize; v++) logits.push(wordOfFloat(fakeLogprob(context, v)))
      }
    }
    return envelope(words[1], [
      [1, sampled],
      [2, new Int32Array(logprobs.buffer)],
      [3, Int32Array.from(top)],
      [4, Int32Array.from(logits)],
      [5, Int32Array.of(0, 1)],
    ])
  }

  #applySlots(section: (kind: number) => Int32Array): void {
    const params = section(STEP_SECTION.slotParams)
    for (let at = 0; at < params.length; at += SLOT_PARAM_WORDS) {
      const slot = this.#slots[params[at]]
      slot.seed = params[at + 1] ^ params[at + 2]
      slot.temperature = floatOfWord(params[at + 3])
      slot.penalised = floatOfWord(params[at + 9]) !== 0
      slot.lastToken = -1
      slot.bias.clear()
      slot.counts.clear()
    }
    const bias = section(STEP_SECTION.slotBias)
    for (let at = 0; at < bias.length; at += 2 + 2 * bias[at + 1]) {
      const slot = this.#slots[bias[at]]
      for (let i = 0; i < bias[at + 1]; i++) {
        const token = bias[at + 2 + 2 * i]
        slot.bias.set(token, (slot.bias.get(token) ?? 0) + floatOfWord(bias[at + 3 + 2 * i]))
      }
    }
  }

  /** Greedy or seeded; the token with the largest bias above 50 wins; banned ones give way. */
  #sample(slot: Slot, context: readonly number[]): number {
    const { vocabSize } = this.#limits as ProgramLimits
    let token = fakeNext(context, vocabSize, slot.temperature > 0 ? slot.seed : 0)
    const [favourite] = [...slot.bias].filter(([, bias]) => bias > 50)
    if (favourite !== undefined) token = favourite[0]
    // A frequency penalty makes a token that was sampled before give way.
    while ((slot.bias.get(token) ?? 0) < -50 || (slot.penalised && slot.counts.has(token))) token++
    slot.counts.set(token, (slot.counts.get(token) ?? 0) + 1)
    slot.lastToken = token
    return token
  }
}

function envelope(step: number, sections: readonly (readonly [number, Int32Array])[]): Int32Array {
  const words = [1, step, 0, 0, sections.length]
  let offset = 5 + 4 * sections.length
  for (const [kind, body] of sections) {
    words.push(kind, 0, offset, body.length)
    offset += body.length
  }
  for (const [, body] of sections) for (const word of body) words.push(word)
  return Int32Array.from(words)
}

/** A binding whose runtimes can be looked at. */
export function createFakeBinding(
  fake: FakeOptions = {},
): NativeBinding & { readonly runtimes: FakeRuntime[] } {
  const runtimes: FakeRuntime[] = []
  const devices: DevicesDescription = {
    devices: [
      {
        name: 'cpu',
        backend: 'cpu',
        model: 'fake',
        memoryBytes: 64 * 2 ** 30,
        freeMemoryBytes: fake.freeMemoryBytes ?? 32 * 2 ** 30,
        units: 4,
        features: [],
        peers: [],
      },
    ],
    missing: { cuda: 'built without CUDA' },
    build: {},
  }
  class Runtime extends FakeRuntime {
    constructor(options: RuntimeOptions) {
      super(options, fake)
      runtimes.push(this)
    }
  }
  return {
    describeDevices: () => devices,
    describeLibraries: () => [],
    describeOps: () => [],
    Runtime,
    runtimes,
  }
}
