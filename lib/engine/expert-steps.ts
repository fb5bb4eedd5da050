/**
 * What steps carry for routed experts, and bring back: the balancer's tables and copies go in, counts
 * of choices come out, and every single choice while a trace is recorded.
 */

import { EngineError } from '../errors.ts'
import type { ExpertBalancer, ExpertLoads, ExpertUpdate } from '../parallel/balance/balancer.ts'
import type { ExpertTrace } from '../parallel/balance/trace.ts'
import type { ExpertLimits } from '../program/types.ts'
import { type ExpertWords, RESULT_SECTION, resultSections, STEP_FLAG } from './step.ts'
import { WordList } from './words.ts'

export { formatTrace, parseTrace } from '../parallel/balance/trace.ts'

/** Tokens of the longest trace. */
const MAX_TRACED_TOKENS = 2 ** 16

export class ExpertSteps {
  readonly #balancer: ExpertBalancer
  readonly #limits: ExpertLimits
  readonly #tables = new WordList()
  readonly #copies = new WordList()
  #trace: Int16Array[] | undefined
  #numTraced = 0

  constructor(balancer: ExpertBalancer, limits: ExpertLimits) {
    this.#balancer = balancer
    this.#limits = limits
  }

  /** For the step that is encoded now; valid until the next call. */
  next(): ExpertWords {
    this.#tables.clear()
    this.#copies.clear()
    const update = this.#balancer.nextStep()
    if (update !== undefined) this.#write(update)
    const flags =
      (update?.asksCounts ? STEP_FLAG.expertCounts : 0) |
      (this.#trace === undefined ? 0 : STEP_FLAG.expertChoices)
    return { flags, tables: this.#tables, copies: this.#copies }
  }

  #write({ tables, copies, hash }: ExpertUpdate): void {
    for (const { table, from, to } of copies) {
      this.#copies.push(table)
      this.#copies.push(from)
      this.#copies.push(to)
    }
    if (tables.length === 0) return
    this.#tables.push(hash)
    for (const { number, slots } of tables) {
      this.#tables.push(number)
      for (const slot of slots) this.#tables.push(slot)
    }
  }

  /** Reads what the result of a step says of experts. ERR_INTERNAL for counts of another size. */
  settle(result: Int32Array): void {
    const { tables, count } = this.#limits
    const counts = resultSections(result, RESULT_SECTION.expertCounts)
    if (counts.some(({ length }) => length !== tables * count))
      throw new EngineError('ERR_INTERNAL', `a step did not count ${tables} layers of ${count}`)
    if (counts.length > 0) this.#balancer.record(counts)
    if (this.#trace !== undefined)
      for (const chosen of resultSections(result, RESULT_SECTION.expertChoices))
        this.#recordChoices(chosen)
  }

  /** From [tables, tokens, choices] of a step to [tokens, tables, choices] of the trace. */
  #recordChoices(chosen: Int32Array): void {
    const { tables, choices } = this.#limits
    const inStep = chosen.length / (tables * choices)
    const numTokens = Math.min(inStep, MAX_TRACED_TOKENS - this.#numTraced)
    const rows = new Int16Array(numTokens * tables * choices)
    for (let token = 0; token < numTokens; token++)
      for (let table = 0; table < tables; table++) {
        const from = (table * inStep + token) * choices
        rows.set(chosen.subarray(from, from + choices), (token * tables + table) * choices)
      }
    this.#trace!.push(rows)
    this.#numTraced += numTokens
  }

  /** What tokens choose from the next step on is kept, up to 65,536 of them. */
  startTrace(): void {
    this.#trace = []
    this.#numTraced = 0
  }

  /** What was recorded. Steps in flight are left out. */
  stopTrace(): ExpertTrace {
    const { tables, count, choices } = this.#limits
    const parts = this.#trace ?? []
    this.#trace = undefined
    const chosen = new Int16Array(parts.reduce((sum, { length }) => sum + length, 0))
    let at = 0
    for (const part of parts) {
      chosen.set(part, at)
      at += part.length
    }
    return { layers: tables, experts: count, choices, chosen }
  }

  loads(): ExpertLoads {
    return this.#balancer.loads()
  }
}
