/**
 * References of the row-wise ops in plain TypeScript and float64, written from docs/ops.md alone.
 * Matrices are row-major; inputs are values as stored (already rounded to their dtype).
 */

type Values = ArrayLike<number>

function mapRows(
  rows: number,
  cols: number,
  row: (index: number, out: Float64Array) => void,
): Float64Array {
  const out = new Float64Array(rows * cols)
  for (let r = 0; r < rows; r++) row(r, out.subarray(r * cols, (r + 1) * cols))
  return out
}

function slice(x: Values, begin: number, end: number): Float64Array {
  return Float64Array.from({ length: end - begin }, (_, i) => x[begin + i]!)
}

/** One row: x / sqrt(mean(x²) + eps) · weight. */
export function normalize(x: Values, weight: Values, eps: number): Float64Array {
  let squares = 0
  for (let i = 0; i < x.length; i++) squares += x[i]! ** 2
  const scale = 1 / Math.sqrt(squares / x.length + eps)
  return Float64Array.from({ length: x.length }, (_, i) => x[i]! * scale * weight[i]!)
}

export function rmsNorm(x: Values, weight: Values, eps: number): Float64Array {
  const cols = weight.length
  return mapRows(x.length / cols, cols, (r, out) => {
    out.set(normalize(slice(x, r * cols, (r + 1) * cols), weight, eps))
  })
}

export function addRmsNorm(
  x: Values,
  residual: Values,
  weight: Values,
  postWeight: Values | undefined,
  eps: number,
): { y: Float64Array; residual: Float64Array } {
  const cols = weight.length
  const added = postWeight === undefined ? x : rmsNorm(x, postWeight, eps)
  const sum = Float64Array.from({ length: x.length }, (_, i) => residual[i]! + added[i]!)
  return { y: rmsNorm(sum, weight, eps), residual: sum.slice(0, (x.length / cols) * cols) }
}

/** x [rows, depth] · weight [n, depth]ᵀ + bias. */
export function matmul(
  x: Values,
  weight: Values,
  depth: number,
  bias: Values | undefined,
): Float64Array {
  const n = weight.length / depth
  return mapRows(x.length / depth, n, (r, out) => {
    for (let j = 0; j < n; j++) {
      let sum = bias === undefined ? 0 : bias[j]!
      for (let k = 0; k < depth; k++) sum += x[r * depth + k]! * weight[j * depth + k]!
      out[j] = sum
    }
  })
}

export function softcapped(values: Values, cap: number): Float64Array {
  return Float64Array.from(values, (value) => cap * Math.tanh(value / cap))
}

export function siluMul(gateUp: Values, width: number): Float64Array {
  return gated(gateUp, width, (x) => x / (1 + Math.exp(-x)))
}

export function geluMul(gateUp: Values, width: number): Float64Array {
  const c = Math.sqrt(2 / Math.PI)
  return gated(gateUp, width, (x) => 0.5 * x * (1 + Math.tanh(c * (x + 0.044715 * x ** 3))))
}

function gated(gateUp: Values, width: number, act: (x: number) => number): Float64Array {
  return mapRows(gateUp.length / (2 * width), width, (r, out) => {
    const row = 2 * width * r
    for (let i = 0; i < width; i++) out[i] = act(gateUp[row + i]!) * gateUp[row + width + i]!
  })
}

export interface RopeOptions {
  readonly invFreq: readonly number[]
  readonly attentionFactor?: number
  readonly dynamic?: { readonly factor: number; readonly base: number; readonly original: number }
}

/** Per position: cosines, then sines. The angle is a product of two float32 numbers. */
export function ropeTable(positions: Values, options: RopeOptions): Float64Array {
  const half = options.invFreq.length
  const factor = options.attentionFactor ?? 1
  return mapRows(positions.length, 2 * half, (r, out) => {
    const position = positions[r]!
    for (let i = 0; i < half; i++) {
      let frequency = options.invFreq[i]!
      if (options.dynamic !== undefined && position >= options.dynamic.original) {
        const { factor: stretch, base, original } = options.dynamic
        const grown = (stretch * (position + 1)) / original - (stretch - 1)
        frequency = (base * grown ** ((2 * half) / (2 * half - 2))) ** ((-2 * i) / (2 * half))
      }
      const angle = Math.fround(position * Math.fround(frequency))
      out[i] = Math.cos(angle) * factor
      out[half + i] = Math.sin(angle) * factor
    }
  })
}

/** One head: normalised if there is a weight, its first rotary elements turned. */
export function ropeHead(
  head: Values,
  table: Values,
  norm: Values | undefined,
  eps: number,
): Float64Array {
  const out = norm === undefined ? Float64Array.from(head) : normalize(head, norm, eps)
  const half = table.length / 2
  for (let i = 0; i < half; i++) {
    const [a, b] = [out[i]!, out[i + half]!]
    out[i] = a * table[i]! - b * table[half + i]!
    out[i + half] = b * table[i]! + a * table[half + i]!
  }
  return out
}

export interface AttentionOptions {
  readonly scale: number
  readonly softcap?: number
  readonly window?: number
  /** A logit more in the softmax, without a value. */
  readonly sink?: number
}

/**
 * One query head at `position`: keys and values [context, headDim] of its sequence and KV head.
 */
export function attendHead(
  query: Values,
  position: number,
  keys: Values,
  values: Values,
  options: AttentionOptions,
): Float64Array {
  const dim = query.length
  const first = options.window === undefined ? 0 : Math.max(0, position - options.window + 1)
  const scores: number[] = []
  for (let p = first; p <= position; p++) {
    let score = 0
    for (let d = 0; d < dim; d++) score += query[d]! * keys[p * dim + d]!
    score *= options.scale
    if (options.softcap !== undefined) score = options.softcap * Math.tanh(score / options.softcap)
    scores.push(score)
  }
  const largest = Math.max(...scores, options.sink ?? -Infinity)
  const weights = scores.map((score) => Math.exp(score - largest))
  const sink = Math.exp((options.sink ?? -Infinity) - largest)
  const total = weights.reduce((sum, weight) => sum + weight, sink)
  const out = new Float64Array(dim)
  weights.forEach((weight, i) => {
    for (let d = 0; d < dim; d++) out[d]! += (weight / total) * values[(first + i) * dim + d]!
  })
  return out
}

/** Sum over ranks, in float32 and rank order as the collectives do it. */
export function sumOverRanks(partials: readonly Values[]): Float64Array {
  return Float64Array.from(partials[0]!, (_, i) => {
    let sum = Math.fround(partials[0]![i]!)
    for (const partial of partials.slice(1)) sum = Math.fround(sum + partial[i]!)
    return sum
  })
}
