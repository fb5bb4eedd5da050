/** What the process that runs one test file tells its parent. */

export interface TestResult {
  readonly kind: 'result'
  /** Of the test in its file, in order of definition. */
  readonly index: number
  readonly name: string
  readonly state: 'passed' | 'failed' | 'skipped'
  readonly ms: number
  readonly error?: string
}

export type TestMessage =
  | { readonly kind: 'collected'; readonly tests: number }
  | TestResult
  /** The file itself failed: it did not load, or a hook around its tests threw. */
  | { readonly kind: 'broken'; readonly error: string }
  | { readonly kind: 'done' }
