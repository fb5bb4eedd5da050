/**
 * Seeded random numbers for synthetic load: the same seed gives the same requests everywhere, in the
 * load generator and in the simulator.
 */

export interface Random {
  /** Uniform in (0, 1): never 0 and never 1, so that every inverse CDF is finite. */
  uniform(): number
  /** Standard normal. */
  normal(): number
  /** Exponential of mean 1. */
  exponential(): number
  /** Gamma of this shape and mean 1. */
  gamma(shape: number): number
  /** Whole number from 0 to `count` - 1. */
  below(count: number): number
}

const TWO_32 = 2 ** 32

/** xoshiro128** (Blackman and Vigna, 2018), its state filled by SplitMix32 from `seed`. */
export function createRandom(seed: number): Random {
  const state = seedState(seed)
  const next = (): number => {
    const word = Math.imul(rotateLeft(Math.imul(state[1], 5), 7), 9) >>> 0
    const shifted = state[1] << 9
    state[2] ^= state[0]
    state[3] ^= state[1]
    state[1] ^= state[2]
    state[0] ^= state[3]
    state[2] ^= shifted
    state[3] = rotateLeft(state[3], 11)
    return word
  }
  const uniform = (): number => (next() + 0.5) / TWO_32
  const random: Random = {
    uniform,
    normal: () => normalQuantile(uniform()),
    exponential: () => -Math.log(uniform()),
    gamma: (shape) => drawGamma(random, shape) / shape,
    below: (count) => Math.floor((next() / TWO_32) * count),
  }
  return random
}

function seedState(seed: number): Int32Array {
  const state = new Int32Array(4)
  let counter = (seed ^ Math.floor(seed / TWO_32)) | 0
  for (let i = 0; i < state.length; i++) {
    counter = (counter + 0x9e3779b9) | 0
    let word = counter
    word = Math.imul(word ^ (word >>> 16), 0x21f0aaad)
    word = Math.imul(word ^ (word >>> 15), 0x735a2d97)
    state[i] = word ^ (word >>> 15)
  }
  return state
}

function rotateLeft(word: number, bits: number): number {
  return (word << bits) | (word >>> (32 - bits))
}

/** Gamma of scale 1 (Marsaglia and Tsang, 2000); shapes below 1 by their boost from shape + 1. */
function drawGamma(random: Random, shape: number): number {
  if (shape < 1) return drawGamma(random, shape + 1) * random.uniform() ** (1 / shape)
  const d = shape - 1 / 3
  const c = 1 / Math.sqrt(9 * d)
  for (;;) {
    const x = random.normal()
    const v = (1 + c * x) ** 3
    if (v > 0 && Math.log(random.uniform()) < x * x * 0.5 + d - d * v + d * Math.log(v))
      return d * v
  }
}

const CENTRAL_NUMERATOR = [
  -3.969683028665376e1, 2.209460984245205e2, -2.759285104469687e2, 1.38357751867269e2,
  -3.066479806614716e1, 2.506628277459239,
]
const CENTRAL_DENOMINATOR = [
  -5.447609879822406e1, 1.615858368580409e2, -1.556989798598866e2, 6.680131188771972e1,
  -1.328068155288572e1, 1,
]
const TAIL_NUMERATOR = [
  -7.784894002430293e-3, -3.223964580411365e-1, -2.400758277161838, -2.549732539343734,
  4.374664141464968, 2.938163982698783,
]
const TAIL_DENOMINATOR = [
  7.784695709041462e-3, 3.224671290700398e-1, 2.445134137142996, 3.754408661907416, 1,
]
/** Below this probability, and above its complement, the tail's polynomials hold. */
const TAIL = 0.02425

/** Inverse of the standard normal CDF, 0 < p < 1; relative error under 1.2e-9 (Acklam, 2003). */
export function normalQuantile(p: number): number {
  if (p > 1 - TAIL) return -normalQuantile(1 - p)
  if (p < TAIL) {
    const q = Math.sqrt(-2 * Math.log(p))
    return polynomial(TAIL_NUMERATOR, q) / polynomial(TAIL_DENOMINATOR, q)
  }
  const q = p - 0.5
  const r = q * q
  return (q * polynomial(CENTRAL_NUMERATOR, r)) / polynomial(CENTRAL_DENOMINATOR, r)
}

/** Coefficients from the highest power down. */
function polynomial(coefficients: readonly number[], x: number): number {
  let sum = 0
  for (const coefficient of coefficients) sum = sum * x + coefficient
  return sum
}
