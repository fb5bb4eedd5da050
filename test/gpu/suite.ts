/** Which test files run on a GPU. They are the CPU's own: they place their ranks on TEST_DEVICE. */

export interface SuiteFile {
  /** Relative to test/, without its ending. */
  readonly name: string
  readonly what: string
  /** Of the time that is left when it starts, beside those after it. */
  readonly share: number
}

/** Quickest to tell something first: a run that is cut short has still shown most. */
export const SUITE: readonly SuiteFile[] = [
  { name: 'ops/ops.test', what: 'every case of every op against the references', share: 8 },
  {
    name: 'goldens.test',
    what: 'logits of all dense families in float32, tp 1 to 8, 1 to 4 nano-batches, graphs on and off',
    share: 10,
  },
  { name: 'goldens-half.test', what: 'the dense families in bfloat16 and float16', share: 4 },
  {
    name: 'ops/collectives.test',
    what: 'ranks agree in every form; a dead rank is named',
    share: 3,
  },
  { name: 'ops/attention.test', what: "a row's bits, and what a poisoned value reaches", share: 2 },
  { name: 'ops/sample.test', what: 'tokens, penalties and log-probabilities', share: 2 },
  { name: 'ops/sample-distribution.test', what: 'the distribution of many draws', share: 1 },
  { name: 'ops/contract.test', what: 'programs that break a contract are refused', share: 1 },
  {
    name: 'experts.test',
    what: 'dispatch and combine over ranks, 10,000 random routings',
    share: 3,
  },
  {
    name: 'goldens-experts.test',
    what: 'logits of the families with experts, tp and ep up to 4',
    share: 6,
  },
]
