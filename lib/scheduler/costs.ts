/**
 * StepCosts: how long a step is expected to take. The millisecond budget and the break-even between
 * swapping and recomputing ask it. Injected: the engine and tests use the learning model below, the
 * simulator its own.
 */

export interface StepCosts {
  /**
   * Expected time of a step of `tokens` rows that attend to `context` positions, all rows together,
   * and copy `swappedBlocks` KV blocks from or to the host. Grows with each of them.
   */
  predictMs(tokens: number, context: number, swappedBlocks: number): number
  /** A step has taken this long. */
  observe(tokens: number, context: number, swappedBlocks: number, ms: number): void
}

/** What is believed before the first step, milliseconds. */
export interface CostPrior {
  readonly perStep: number
  readonly perToken: number
  readonly perContextToken: number
  readonly perSwappedBlock: number
}

/** A small model on a CPU; what is measured replaces it soon. */
export const DEFAULT_PRIOR: CostPrior = {
  perStep: 0.2,
  perToken: 0.1,
  perContextToken: 1e-5,
  perSwappedBlock: 0.02,
}

const TERMS = 4
/** Weight of what was seen one step earlier. */
const MEMORY = 0.995
/** How little the prior is trusted, and how far forgetting may go where nothing is seen. */
const INITIAL_VARIANCE = 10
const MIN_FACTOR = 1e-3

/**
 * Recursive least squares with forgetting (Haykin, Adaptive Filter Theory) on relative errors: the
 * time is a sum of the prior's terms, each with a factor that is learnt. Factors stay positive, so
 * that predictions grow with the work.
 */
export function createStepCosts(prior: CostPrior): StepCosts {
  const factors = new Float64Array(TERMS).fill(1)
  const variance = new Float64Array(TERMS * TERMS)
  for (let i = 0; i < TERMS; i++) variance[i * TERMS + i] = INITIAL_VARIANCE
  const terms = new Float64Array(TERMS)
  const gain = new Float64Array(TERMS)

  const fillTerms = (tokens: number, context: number, swappedBlocks: number) => {
    terms[0] = prior.perStep
    terms[1] = prior.perToken * tokens
    terms[2] = prior.perContextToken * context
    terms[3] = prior.perSwappedBlock * swappedBlocks
  }
  const predicted = () => {
    let sum = 0
    for (let i = 0; i < TERMS; i++) sum += factors[i] * terms[i]
    return sum
  }

  return {
    predictMs(tokens, context, swappedBlocks) {
      fillTerms(tokens, context, swappedBlocks)
      return predicted()
    },
    observe(tokens, context, swappedBlocks, ms) {
      if (!(ms > 0 && ms < Number.POSITIVE_INFINITY)) return
      fillTerms(tokens, context, swappedBlocks)
      for (let i = 0; i < TERMS; i++) terms[i] /= ms
      const error = 1 - predicted()
      let scale = MEMORY
      for (let i = 0; i < TERMS; i++) {
        gain[i] = 0
        for (let j = 0; j < TERMS; j++) gain[i] += variance[i * TERMS + j] * terms[j]
        scale += terms[i] * gain[i]
      }
      for (let i = 0; i < TERMS; i++)
        factors[i] = Math.max(MIN_FACTOR, factors[i] + (gain[i] / scale) * error)
      shrinkVariance(variance, gain, scale)
    },
  }
}

/** variance = (variance − gain · gainᵀ / scale) / MEMORY, without growing beyond where it began. */
function shrinkVariance(variance: Float64Array, gain: Float64Array, scale: number): void {
  for (let i = 0; i < TERMS; i++)
    for (let j = 0; j < TERMS; j++) variance[i * TERMS + j] -= (gain[i] * gain[j]) / scale
  let largest = 0
  for (let i = 0; i < TERMS; i++) largest = Math.max(largest, variance[i * TERMS + i])
  const growth = Math.min(1 / MEMORY, INITIAL_VARIANCE / largest)
  if (growth > 1) for (let i = 0; i < variance.length; i++) variance[i] *= growth
}
