/** replayEvents: runs a recorded event log through a new scheduler and compares every plan. */

import { EngineError } from '../errors.ts'
import type { StepCosts } from './costs.ts'
import {
  createPlanHasher,
  EVENT_LOG_VERSION,
  type LoggedConfig,
  type PlanHash,
  type SchedulerEvent,
} from './event-log.ts'
import type { StepPlan } from './plan.ts'
import { createPolicy } from './policies/index.ts'
import type { SchedulingPolicy } from './policy.ts'
import { createAccount, type ProgramAccount } from './programs.ts'
import { Scheduler } from './scheduler.ts'
import { createForkGroup, createSequence, type ForkGroup, type Sequence } from './sequence.ts'

export interface ReplayOptions {
  readonly hash: PlanHash
  /** What was injected when the log was recorded, where it was not the default. */
  readonly costs?: StepCosts
  readonly policy?: SchedulingPolicy
}

export interface Replay {
  readonly numEvents: number
  readonly numSteps: number
  /** Hash of each step, in order. */
  readonly hashes: readonly string[]
  /** Why the log ends before its scheduler did; absent where it does not. */
  readonly cut?: string
  /** Index of the first event whose plan differs from the recorded one; -1: none. */
  readonly firstDifference: number
}

/** Stops at the first difference. ERR_USAGE for a log that is not one, or whose beginning is lost. */
export function replayEvents(events: Iterable<SchedulerEvent>, options: ReplayOptions): Replay {
  const hashPlan = createPlanHasher(options.hash)
  const sequences = new Map<number, Sequence>()
  const programs = new Map<number, ProgramAccount>()
  const groups = new Map<number, ForkGroup>()
  const inFlight: StepPlan[] = []
  const hashes: string[] = []
  let scheduler: Scheduler | undefined
  let numEvents = 0
  let cut: string | undefined
  for (const event of events) {
    const index = numEvents++
    if (event.type === 'config') {
      if (scheduler !== undefined || event.version !== EVENT_LOG_VERSION)
        throw malformed(index, 'a log begins with one config of a known version')
      scheduler = openScheduler(event.config, options)
      continue
    }
    if (scheduler === undefined) throw malformed(index, 'a log begins with its config')
    switch (event.type) {
      case 'add': {
        const sequence = readSequence(event, programs, groups)
        sequences.set(sequence.id, sequence)
        scheduler.add(sequence)
        break
      }
      case 'resume':
        scheduler.resume(find(sequences, event.id, index))
        break
      case 'pin':
        scheduler.pin(find(sequences, event.id, index), event.ttlMs)
        break
      case 'end': {
        const sequence = find(sequences, event.id, index)
        sequences.delete(event.id)
        scheduler.end(sequence, event.reason)
        break
      }
      case 'plan': {
        const plan = scheduler.plan(event.nowMs)
        const hash = plan === undefined ? null : hashPlan(plan)
        if (plan !== undefined) inFlight.push(plan)
        if (hash !== null) hashes.push(hash)
        if (hash !== event.hash)
          return { numEvents, numSteps: hashes.length, hashes, firstDifference: index }
        break
      }
      case 'settle': {
        const plan = inFlight.shift()
        if (plan === undefined) throw malformed(index, 'no step is in flight')
        scheduler.settle(plan, Int32Array.from(event.sampled), event.runMs)
        scheduler.release(plan)
        break
      }
      case 'cut':
        cut = event.reason
        break
      default:
        throw malformed(index, 'unknown event')
    }
  }
  return {
    numEvents,
    numSteps: hashes.length,
    hashes,
    ...(cut !== undefined && { cut }),
    firstDifference: -1,
  }
}

function openScheduler(config: LoggedConfig, options: ReplayOptions): Scheduler {
  const { cacheKey, policy, ...sizes } = config
  return new Scheduler({
    ...sizes,
    cacheKey: Int32Array.from(cacheKey),
    policy: options.policy ?? createPolicy(policy),
    ...(options.costs !== undefined && { costs: options.costs }),
  })
}

function readSequence(
  event: Extract<SchedulerEvent, { type: 'add' }>,
  programs: Map<number, ProgramAccount>,
  groups: Map<number, ForkGroup>,
): Sequence {
  const program = programs.get(event.program) ?? createAccount()
  programs.set(event.program, program)
  const { tpotTargetMs, cacheRoot, forkOf, type: _, ...same } = event
  // Only the choice between several schedulers asks for its size.
  const group = forkOf === undefined ? undefined : (groups.get(forkOf) ?? createForkGroup(1))
  if (forkOf !== undefined && group !== undefined) groups.set(forkOf, group)
  return createSequence({
    ...same,
    program,
    ...(group !== undefined && { group }),
    cacheRoot: Int32Array.from(cacheRoot),
    ...(tpotTargetMs !== null && { tpotTargetMs }),
  })
}

function find(sequences: ReadonlyMap<number, Sequence>, id: number, index: number): Sequence {
  const sequence = sequences.get(id)
  if (sequence === undefined) throw malformed(index, `there is no sequence ${id}`)
  return sequence
}

function malformed(index: number, why: string): EngineError {
  return new EngineError('ERR_USAGE', `event ${index} of the log: ${why}`)
}
