/** Timing of loaded one-op programs: a warm-up, then alternating rounds under a disturbance meter. */

import { DisturbanceMeter } from './disturbance.ts'
import type { OpRuntime } from './one-op.ts'
import { backendOf } from './placement.ts'
import { alternate, summarize } from './stats.ts'
import type { BenchContext, Measured } from './suite.ts'

export interface TimedProgram {
  readonly name: string
  /** Index of the program in the runtime. */
  readonly program: number
  readonly step: Int32Array
  /** Ops of one step; the reported time is of one of them. */
  readonly ops: number
}

/** One sample runs the program until this much time has passed: the clock counts microseconds. */
const SAMPLE_US = { cpu: 100_000, cuda: 20_000 } as const
const WARM_UP_RUNS = 2

/** Collects what the notes of a suite say about disturbance. */
export class OpMeter {
  readonly #context: BenchContext
  readonly #meter: DisturbanceMeter

  constructor(context: BenchContext) {
    this.#context = context
    this.#meter = new DisturbanceMeter([], context.quiet)
  }

  /** Times of one op of each program, in the order given. */
  async measure(runtime: OpRuntime, programs: readonly TimedProgram[]): Promise<Measured[]> {
    for (const { program, step } of programs) {
      for (let i = 0; i < WARM_UP_RUNS; i++) await runtime.run(program, step)
    }
    const sampleUs = SAMPLE_US[backendOf(this.#context.device)]
    const sample = async ({ program, step, ops }: TimedProgram): Promise<number> => {
      this.#context.signal.throwIfAborted()
      let microseconds = 0
      let runs = 0
      do {
        microseconds += await runtime.run(program, step)
        runs++
      } while (microseconds < sampleUs)
      return microseconds / (runs * ops)
    }
    const samples = await alternate(
      this.#context.rounds,
      programs.map((program) => () => this.#meter.watch(() => sample(program))),
    )
    return programs.map(({ name }, index) => ({ name, ...summarize(samples[index]!) }))
  }

  note(): string {
    return this.#meter.describe()
  }
}
