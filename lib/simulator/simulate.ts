/**
 * Simulation of a deployment: replicas of an engine behind a router that sends a request where the
 * fewest tokens are outstanding; with disaggregation some compute prompts and hand the keys and
 * values to others that decode (DistServe, https://arxiv.org/abs/2401.09670). A virtual clock; the
 * same options give the same result.
 */

import { EngineError } from '../errors.ts'
import { layoutFootprint } from '../planner/footprint.ts'
import type { Hardware } from '../planner/hardware.ts'
import { optimalTokensPerSecond } from '../planner/optimal.ts'
import type { LayeredProgram } from '../program/layered.ts'
import type { SchedulerConfig } from '../scheduler/config.ts'
import { createPolicy, type PolicyNames } from '../scheduler/policies/index.ts'
import type { WorkloadRequest } from '../workload/index.ts'
import { Instance, type RequestRecord } from './instance.ts'
import { type Metrics, summarize, type Targets } from './metrics.ts'
import { type Role, StepTimer } from './step-timer.ts'

export interface Deployment {
  /** Serial programs of the model for one instance's ranks. */
  readonly program: LayeredProgram
  /** Instances that do all, or, with `prefillInstances`, that decode. */
  readonly instances: number
  /** Instances that compute prompts only; 0: no disaggregation. */
  readonly prefillInstances: number
}

export interface SimulationOptions {
  readonly hardware: Hardware
  readonly deployment: Deployment
  readonly requests: readonly WorkloadRequest[]
  readonly targets: Targets
  readonly maxNumSeqs: number
  readonly maxNumBatchedTokens: number
  readonly policy?: PolicyNames
  /** Let the planner overlap; false: serial programs. */
  readonly overlap: boolean
}

export interface Simulation {
  readonly metrics: Metrics
  readonly devices: number
  readonly steps: number
  readonly preemptions: number
  /** Of the instances' time, while the run lasted. */
  readonly busyShare: number
  readonly kvTokens: number
}

const BLOCK_SIZE = 16
/** Of a device's memory; the rest is for activations and the driver. */
const USABLE_MEMORY = 0.9

/** Tokens whose keys and values fit beside the weights; 0 or less: the model does not fit. */
export function kvCapacity(hardware: Hardware, program: LayeredProgram): number {
  const { weightBytes, kvBytesPerToken } = layoutFootprint(hardware, program)
  return Math.floor((USABLE_MEMORY * hardware.memoryBytes - weightBytes) / kvBytesPerToken)
}

/** ERR_OUT_OF_MEMORY when the model does not fit; ERR_KV_EXHAUSTED for a request that never can. */
export function simulate(options: SimulationOptions): Simulation {
  const { hardware, deployment, requests } = options
  const { program, instances, prefillInstances } = deployment
  const kvTokens = kvCapacity(hardware, program)
  if (kvTokens < BLOCK_SIZE) {
    throw new EngineError(
      'ERR_OUT_OF_MEMORY',
      `the weights leave no room for keys and values on ${program.long.tp} × ${hardware.title}; use more ranks`,
    )
  }
  const config = schedulerConfig(options, kvTokens)
  const records: RequestRecord[] = []
  const arriving: { atMs: number; record: RequestRecord }[] = []
  const create = (role: Role, onFinished: (record: RequestRecord, nowMs: number) => void) =>
    new Instance(config, new StepTimer(hardware, program, options.overlap, role), onFinished)
  const finish = (record: RequestRecord, nowMs: number) => {
    record.finishedMs = nowMs
    records.push(record)
  }
  const isSplit = prefillInstances > 0
  const { kvBytesPerToken } = layoutFootprint(hardware, program)
  const handOver = (record: RequestRecord, nowMs: number) => {
    if (record.outputTokens === 1) return finish(record, nowMs)
    const { latencySeconds, busBytesPerSecond } = hardware.interconnect
    const copySeconds = (record.promptTokens * kvBytesPerToken) / busBytesPerSecond
    const atMs = nowMs + 1e3 * (latencySeconds + copySeconds)
    let place = arriving.length
    while (place > 0 && arriving[place - 1]!.atMs > atMs) place--
    arriving.splice(place, 0, { atMs, record })
  }
  const fronts = Array.from({ length: isSplit ? prefillInstances : instances }, () =>
    isSplit ? create('prefill', handOver) : create('both', finish),
  )
  const backs = Array.from({ length: isSplit ? instances : 0 }, () => create('decode', finish))
  const all = [...fronts, ...backs]

  let next = 0
  for (;;) {
    const stepping = all.reduce((a, b) => (b.nextEventMs < a.nextEventMs ? b : a))
    const arrivalMs = requests[next]?.arrivalMs ?? Infinity
    const handedMs = arriving[0]?.atMs ?? Infinity
    const nowMs = Math.min(stepping.nextEventMs, arrivalMs, handedMs)
    if (nowMs === Infinity) break
    if (nowMs === arrivalMs) {
      const record = newRecord(requests[next++]!)
      const outputs = isSplit ? 1 : record.outputTokens
      leastLoaded(fronts).add(record, record.promptTokens, outputs, nowMs)
    } else if (nowMs === handedMs) {
      const { record } = arriving.shift()!
      // The first token was sampled where the prompt was computed.
      leastLoaded(backs).add(record, record.promptTokens + 1, record.outputTokens - 1, nowMs)
    } else {
      stepping.advance()
    }
  }
  return report(options, all, records, kvTokens)
}

function newRecord({ arrivalMs, promptTokens, outputTokens }: WorkloadRequest): RequestRecord {
  return {
    arrivalMs,
    promptTokens,
    outputTokens,
    firstTokenMs: Number.NaN,
    finishedMs: Number.NaN,
    longestGapMs: 0,
  }
}

function leastLoaded(instances: readonly Instance[]): Instance {
  return instances.reduce((a, b) => (b.outstanding < a.outstanding ? b : a))
}

function schedulerConfig(options: SimulationOptions, kvTokens: number): SchedulerConfig {
  const { requests, maxNumSeqs, maxNumBatchedTokens } = options
  const longest = requests.reduce(
    (most, { promptTokens, outputTokens }) => Math.max(most, promptTokens + outputTokens),
    0,
  )
  return {
    maxNumSeqs,
    maxNumBatchedTokens,
    maxRows: maxNumSeqs,
    maxModelLen: longest,
    numBlocks: Math.floor(kvTokens / BLOCK_SIZE),
    blockSize: BLOCK_SIZE,
    numSlots: 2 * maxNumSeqs,
    // Overload shows as latency: nobody is turned away.
    maxWaiting: requests.length,
    prefixCache: false,
    policy: createPolicy(options.policy),
    cacheKey: new Int32Array(4),
  }
}

function report(
  { hardware, deployment, targets }: SimulationOptions,
  instances: readonly Instance[],
  records: readonly RequestRecord[],
  kvTokens: number,
): Simulation {
  const devices = instances.length * deployment.program.long.tp
  const { activeParameters } = layoutFootprint(hardware, deployment.program)
  const optimal = optimalTokensPerSecond(hardware.matmulFlopPerSecond.half, activeParameters)
  const metrics = summarize(records, targets, devices, optimal)
  const stats = instances.map((instance) => instance.stats())
  const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0)
  return {
    metrics,
    devices,
    steps: sum(stats.map(({ steps }) => steps)),
    preemptions: sum(stats.map(({ preemptions }) => preemptions)),
    busyShare: sum(stats.map(({ busyMs }) => busyMs)) / (metrics.durationMs * instances.length),
    kvTokens,
  }
}
