/**
 * Options of expert balancing, and the balancer that they ask for: how many slots, which policy, where
 * experts begin.
 */

import { EngineError } from '../errors.ts'
import type { CompiledModel, Model } from '../models/index.ts'
import type { DeviceDescription } from '../native/binding.ts'
import { countFollowers, placeByAffinity } from '../parallel/balance/affinity.ts'
import {
  BALANCE_POLICIES,
  type BalancePolicy,
  ExpertBalancer,
} from '../parallel/balance/balancer.ts'
import { smallestMove } from '../parallel/balance/least-loaded.ts'
import { hardwareOfDevice } from '../planner/presets.ts'
import { DTYPE_BYTES, MAX_EXPERT_SLOTS, type Program } from '../program/types.ts'
import { expertRates } from './cost-prior.ts'
import { ExpertSteps } from './expert-steps.ts'
import { readExpertTrace, requireExperts } from './expert-trace.ts'
import type { EngineOptions } from './types.ts'

export interface ExpertOptions {
  readonly extraSlots: number
  readonly policy: BalancePolicy
  readonly period: number
  /** Trace that experts are placed by. */
  readonly placement: string | undefined
}

/** Steps from plan to plan: replicas are for the day, least-loaded experts for the next few prompts. */
const DEFAULT_PERIOD: Readonly<Record<BalancePolicy, number>> = {
  count: 64,
  eplb: 256,
  'least-loaded': 8,
}
const MAX_PERIOD = 1e6
/** Copied by a step at most, but one expert where that is larger. */
const COPY_BYTES_PER_STEP = { cpu: 2 ** 23, cuda: 2 ** 27 }

/** Undefined: experts stay where they are loaded and nobody counts. ERR_USAGE for what has no meaning. */
export function checkExpertOptions(
  options: Pick<
    EngineOptions,
    'expertSlots' | 'expertBalance' | 'expertBalancePeriod' | 'expertPlacement'
  >,
): ExpertOptions | undefined {
  const extraSlots = whole(options.expertSlots ?? 0, 'expertSlots', 0, MAX_EXPERT_SLOTS)
  const asked = options.expertBalance ?? (extraSlots > 0 ? 'eplb' : 'off')
  if (asked !== 'off' && !(BALANCE_POLICIES as readonly string[]).includes(asked))
    throw new EngineError(
      'ERR_USAGE',
      `expertBalance must be one of off, ${BALANCE_POLICIES.join(', ')}`,
    )
  const { expertPlacement: placement } = options
  if (placement !== undefined && (typeof placement !== 'string' || placement === ''))
    throw new EngineError('ERR_USAGE', 'expertPlacement must be the path of a file')
  if (asked === 'off' && placement === undefined) return undefined
  const policy = asked === 'off' ? 'count' : (asked as BalancePolicy)
  if (policy !== 'count' && extraSlots === 0)
    throw new EngineError(
      'ERR_USAGE',
      `expertBalance ${policy} needs room to move experts: set expertSlots to 1 or more`,
    )
  const period = options.expertBalancePeriod ?? DEFAULT_PERIOD[policy]
  return {
    extraSlots,
    policy,
    period: whole(period, 'expertBalancePeriod', 1, MAX_PERIOD),
    placement,
  }
}

/** What the model's experts need to be placed like that; undefined where they stay. */
export function placementOf(
  model: Model,
  options: ExpertOptions | undefined,
  expertParallel: number,
): { extraSlots: number; positions?: readonly (readonly number[])[] } | undefined {
  if (options === undefined) return undefined
  const { experts } = requireExperts(model)
  const { extraSlots, placement } = options
  requireSlots(experts, expertParallel, extraSlots)
  if (placement === undefined) return { extraSlots }
  const followers = countFollowers(readExpertTrace(placement, model))
  return { extraSlots, positions: placeByAffinity(followers, experts, expertParallel) }
}

/** ERR_USAGE where the slots of all ranks together are more than a program may have. */
export function requireSlots(experts: number, expertParallel: number, extraSlots: number): void {
  const homes = Math.ceil(experts / expertParallel)
  const most = Math.floor(MAX_EXPERT_SLOTS / expertParallel) - homes
  if (extraSlots <= most) return
  throw new EngineError(
    'ERR_USAGE',
    most < 0
      ? `${experts} experts do not fit the ${MAX_EXPERT_SLOTS} slots of ${expertParallel} ranks`
      : `expertSlots must be at most ${most} with ${experts} experts over ${expertParallel} ranks, ` +
          `${MAX_EXPERT_SLOTS} slots in all`,
  )
}

/** Undefined where the program has no expert tables. */
export function createExpertSteps(
  options: ExpertOptions | undefined,
  { program, expertSlots }: Pick<CompiledModel, 'program' | 'expertSlots'>,
  device: DeviceDescription,
): ExpertSteps | undefined {
  const limits = program.limits.experts
  if (options === undefined || expertSlots === undefined || limits === undefined) return undefined
  const { count: experts, positions } = limits
  const { slotsPerPosition, tables } = expertSlots
  const slotSize = sizeOfSlot(program, slotsPerPosition)
  const balancer = new ExpertBalancer({
    layout: { experts, positions, slotsPerPosition },
    tables,
    policy: options.policy,
    period: options.period,
    copiesPerStep: Math.max(1, Math.floor(COPY_BYTES_PER_STEP[device.backend] / slotSize.bytes)),
    smallestMove: smallestMove({
      bytesPerParameter: slotSize.bytes / slotSize.parameters,
      ...ratesOf(device),
    }),
  })
  return new ExpertSteps(balancer, limits)
}

/** One expert on one rank: the weights that a table governs. */
function sizeOfSlot({ ops, buffers }: Program, slotsPerPosition: number) {
  const place = ops.find(({ kind }) => kind === 'moe_place')!
  const weights = place.inputs.slice(1).flatMap((view) => (view ? [buffers[view.buffer]!] : []))
  let [parameters, bytes] = [0, 0]
  for (const { shape, dtype } of weights) {
    const elements = (shape as number[]).reduce((product, size) => product * size, 1)
    parameters += elements / slotsPerPosition
    bytes += (elements * DTYPE_BYTES[dtype]) / slotsPerPosition
  }
  return { parameters, bytes }
}

/** Of a known device the planner's rates, else the kind's. */
function ratesOf({ backend, model }: DeviceDescription) {
  const hardware = hardwareOfDevice(model)
  if (hardware === undefined) return expertRates(backend)
  return {
    flopsPerSecond: hardware.matmulFlopPerSecond.half,
    bytesPerSecond: hardware.interconnect.busBytesPerSecond,
  }
}

function whole(value: number, option: string, min: number, max: number): number {
  if (!Number.isInteger(value) || value < min || value > max)
    throw new EngineError('ERR_USAGE', `${option} must be a whole number from ${min} to ${max}`)
  return value
}
