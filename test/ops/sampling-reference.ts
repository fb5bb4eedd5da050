/**
 * Sampling in plain TypeScript and float64, written from docs/ops.md: penalties, bias, temperature,
 * top-k, top-p, min-p, and a draw that inverts the cumulative sum in token order with
 * Philox4x32-10 (Salmon et al., SC 2011) keyed by (seed, position).
 */

export interface SamplingParams {
  readonly seed?: bigint
  readonly temperature?: number
  readonly topK?: number
  readonly topP?: number
  readonly minP?: number
  readonly repetition?: number
  readonly presence?: number
  readonly frequency?: number
}

/** Product of two unsigned 32-bit words, as [high, low]. */
function multiply(a: number, b: number): [number, number] {
  const product = BigInt(a) * BigInt(b)
  return [Number(product >> 32n), Number(product & 0xffffffffn)]
}

export function philox4x32(
  counter: readonly [number, number, number, number],
  key: readonly [number, number],
): [number, number, number, number] {
  let [c0, c1, c2, c3] = counter
  let [k0, k1] = key
  for (let round = 0; round < 10; round++) {
    const [high0, low0] = multiply(0xd2511f53, c0)
    const [high1, low1] = multiply(0xcd9e8d57, c2)
    const mixed0 = (high1 ^ c1 ^ k0) >>> 0
    const mixed2 = (high0 ^ c3 ^ k1) >>> 0
    c0 = mixed0
    c1 = low1
    c2 = mixed2
    c3 = low0
    k0 = (k0 + 0x9e3779b9) >>> 0
    k1 = (k1 + 0xbb67ae85) >>> 0
  }
  return [c0, c1, c2, c3]
}

/** [0, 1) of 53 bits. */
export function uniform(seed: bigint, position: number): number {
  const key = [Number(seed & 0xffffffffn), Number((seed >> 32n) & 0xffffffffn)] as const
  const [a, b] = philox4x32([position, 0, 0, 0], key)
  return Number(((BigInt(a) << 32n) | BigInt(b)) >> 11n) * 2 ** -53
}

/** What a slot remembers. */
export interface SlotMemory {
  readonly prompt: readonly number[]
  readonly output: readonly number[]
  readonly bias: ReadonlyMap<number, number>
}

export const FRESH: SlotMemory = { prompt: [], output: [], bias: new Map() }

export function adjustLogits(
  logits: ArrayLike<number>,
  params: SamplingParams,
  memory: SlotMemory,
): number[] {
  const adjusted = Array.from(logits, (logit) => (Number.isNaN(logit) ? -Infinity : logit))
  const { repetition = 1, presence = 0, frequency = 0 } = params
  for (const token of new Set([...memory.prompt, ...memory.output])) {
    const logit = adjusted[token]!
    adjusted[token] = logit > 0 ? logit / repetition : logit * repetition
  }
  for (const token of memory.output) adjusted[token]! -= frequency
  for (const token of new Set(memory.output)) adjusted[token]! -= presence
  for (const [token, bias] of memory.bias) adjusted[token]! += bias
  return adjusted
}

/** Probability of each token after all cuts; 0 for those cut. The temperature is above zero. */
export function cutProbabilities(logits: readonly number[], params: SamplingParams): number[] {
  const { temperature = 0, topK = 0, topP = 1, minP = 0 } = params
  const largest = Math.max(...logits)
  const weights = logits.map((logit) => Math.exp((logit - largest) / temperature))
  const order = weights.map((_, token) => token).sort((a, b) => weights[b]! - weights[a]! || a - b)
  let kept = order
  if (topK > 0 && topK < order.length) {
    const least = weights[order[topK - 1]!]!
    kept = kept.filter((token) => weights[token]! >= least)
  }
  if (topP < 1) {
    const total = kept.reduce((sum, token) => sum + weights[token]!, 0)
    let mass = 0
    let length = 0
    while (length < kept.length && (length === 0 || mass < topP * total)) {
      mass += weights[kept[length++]!]!
    }
    kept = kept.slice(0, length)
  }
  if (minP > 0) kept = kept.filter((token) => weights[token]! >= minP)
  const total = kept.reduce((sum, token) => sum + weights[token]!, 0)
  const probabilities = new Array<number>(logits.length).fill(0)
  for (const token of kept) probabilities[token] = weights[token]! / total
  return probabilities
}

export function argmax(logits: readonly number[]): number {
  let best = 0
  for (let token = 1; token < logits.length; token++) {
    if (logits[token]! > logits[best]!) best = token
  }
  return best
}

/**
 * The token, and how far the draw was from one that would give another token (in probability):
 * rounding may decide the other way when that is tiny.
 */
export function sampleReference(
  logits: ArrayLike<number>,
  params: SamplingParams,
  memory: SlotMemory,
  position: number,
): { token: number; margin: number } {
  const adjusted = adjustLogits(logits, params, memory)
  if ((params.temperature ?? 0) === 0) return { token: argmax(adjusted), margin: 1 }
  const probabilities = cutProbabilities(adjusted, params)
  const target = uniform(params.seed ?? 0n, position)
  let sum = 0
  for (let token = 0; token < probabilities.length; token++) {
    const before = sum
    sum += probabilities[token]!
    if (target < sum) return { token, margin: Math.min(target - before, sum - target) }
  }
  return { token: probabilities.findLastIndex((probability) => probability > 0), margin: 0 }
}

export function logSumExp(logits: ArrayLike<number>): number {
  const values = Array.from(logits, (logit) => (Number.isNaN(logit) ? -Infinity : logit))
  const largest = Math.max(...values)
  return largest + Math.log(values.reduce((sum, value) => sum + Math.exp(value - largest), 0))
}
