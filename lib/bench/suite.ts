/**
 * What a bench suite is: a name, a line of help, and a run that yields rows. A row is one case,
 * verified first and measured after. Rows carry the work of one iteration (bytes that must move,
 * floating-point operations that must be done), so rates and shares of the machine's peak are
 * derived in one place (report.ts) and never typed in.
 */

import type { BenchDtype } from './elements.ts'
import type { Machine } from './machine.ts'
import type { Peaks } from './peaks.ts'
import type { Spread } from './stats.ts'

/** One side of a comparison; microseconds per iteration. */
export interface Measured extends Spread {
  readonly name: string
}

export interface BenchRow {
  readonly op: string
  /** Which implementation or form of the op; absent: the one the op picks itself. */
  readonly variant?: string
  readonly shape: string
  readonly dtype: string
  readonly ranks: number
  /** The ranks share one GPU: no link takes part, its memory bandwidth is the bound. */
  readonly virtualRanks?: true
  readonly ours: Measured
  readonly baseline?: Measured
  /** Layers with collectives: the matmuls alone, T_gemm. */
  readonly gemm?: Measured
  /** Bytes that one iteration must read (and write) at least, all ranks together. */
  readonly bytes: number
  /** Multiplications and additions of one iteration, all ranks together. */
  readonly flops: number
  /** What bounds the bytes: reading alone, or reading and writing in equal shares. */
  readonly memoryPeak: 'read' | 'copy'
  /** What bounds the operations. */
  readonly computePeak: 'f32' | 'bf16'
  /** Tokens one iteration produces or consumes; engine rows only. */
  readonly tokens?: number
  /** Parameters a token passes through; engine rows on a GPU. */
  readonly parameters?: number
  /**
   * Collectives: bytes over the time are the bus bandwidth of nccl-tests, the buffer's bytes times
   * 2 · (n − 1) / n for an all-reduce of n ranks.
   */
  readonly busBytes?: number
  /** Results that were compared with a reference, and those that differed. */
  readonly checked: number
  readonly wrong: number
}

export interface BenchContext {
  readonly ranks: number
  readonly threads: number
  /** `cpu`, `cuda` or `cuda:N`. */
  readonly device: string
  readonly dtype: BenchDtype
  /** Sizes given on the command line, each as its numbers: `512x1024` → [512, 1024]. */
  readonly sizes: readonly (readonly number[])[]
  /** Rounds of alternating measurement. */
  readonly rounds: number
  /** Where bench models, peers and scratch files live. */
  readonly cacheDirectory: string
  /** Repeat a measurement during which other processes used more than this share of the machine. */
  readonly quiet: number | undefined
  /** Suite-specific options as given, `--set name=value`. */
  readonly settings: ReadonlyMap<string, string>
  /** Ends the run: what is measured is thrown away. */
  readonly signal: AbortSignal
  /** A line for the person who waits; goes to stderr. */
  readonly log: (line: string) => void
}

export interface SuiteResult {
  readonly rows: readonly BenchRow[]
  /** What a reader must know to read the rows; printed below the table. */
  readonly notes: readonly string[]
  /** Further figures for the JSON document: versions of peers, memory, verification. */
  readonly details: Readonly<Record<string, unknown>>
}

export interface BenchSuite {
  readonly name: string
  readonly summary: string
  /** What `--sizes` means here, and the sizes taken without it. */
  readonly sizeNames: readonly string[]
  readonly defaultSizes: readonly (readonly number[])[]
  /** Those on a GPU. */
  readonly gpuSizes: readonly (readonly number[])[]
  /** Names that `--set` takes here. */
  readonly settingNames: readonly string[]
  run(context: BenchContext): Promise<SuiteResult>
}

export interface BenchReport {
  readonly version: 1
  readonly suite: string
  readonly machine: Machine
  /** Absent: nobody measured them on this machine. */
  readonly peaks?: Peaks
  readonly options: Readonly<Record<string, unknown>>
  readonly rows: readonly BenchRow[]
  readonly notes: readonly string[]
  readonly details: Readonly<Record<string, unknown>>
}
