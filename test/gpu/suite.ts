/** Which test files run on a GPU. They are the CPU's own: they place their ranks on TEST_DEVICE. */

export interface SuiteFile {
  /** Relative to test/, without its ending. */
  readonly name: string
  readonly what: string
}

/** Quickest to tell something first: a run that is cut short has still shown most. */
export const SUITE: readonly SuiteFile[] = [
  { name: 'ops/ops.test', what: 'every case of every op against the references' },
  { name: 'goldens.test', what: 'logits of all dense families, tp 1 to 8, 1 to 4 nano-batches' },
  { name: 'ops/collectives.test', what: 'ranks agree in every form; a dead rank is named' },
  { name: 'ops/attention.test', what: "a row's bits, and what a poisoned value reaches" },
  { name: 'ops/sample.test', what: 'tokens, penalties and log-probabilities' },
  { name: 'ops/sample-distribution.test', what: 'the distribution of many draws' },
  { name: 'ops/contract.test', what: 'programs that break a contract are refused' },
]
