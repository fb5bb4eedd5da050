/**
 * Summaries of repeated measurements, and the order in which sides take turns. On a shared machine
 * only ratios within one run mean anything, so sides alternate and medians are compared.
 */

export interface Spread {
  readonly medianUs: number
  readonly p99Us: number
  readonly minUs: number
  readonly samples: number
}

/** The value below which a share `q` of the samples lies, interpolated; `values` is not empty. */
export function quantile(values: readonly number[], q: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  const position = (sorted.length - 1) * q
  const low = Math.floor(position)
  const high = Math.ceil(position)
  return sorted[low]! + (sorted[high]! - sorted[low]!) * (position - low)
}

export function summarize(samplesUs: readonly number[]): Spread {
  return {
    medianUs: quantile(samplesUs, 0.5),
    p99Us: quantile(samplesUs, 0.99),
    minUs: Math.min(...samplesUs),
    samples: samplesUs.length,
  }
}

/**
 * Calls every side `rounds` times, in turn; the side that goes first changes each round, so that
 * neither always follows a pause. Resolves to the samples of each side.
 */
export async function alternate<Sample>(
  rounds: number,
  sides: readonly (() => Promise<Sample>)[],
): Promise<Sample[][]> {
  const samples: Sample[][] = sides.map(() => [])
  for (let round = 0; round < rounds; round++) {
    for (let turn = 0; turn < sides.length; turn++) {
      const side = (round + turn) % sides.length
      samples[side]!.push(await sides[side]!())
    }
  }
  return samples
}
