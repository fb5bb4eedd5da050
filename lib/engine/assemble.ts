/**
 * From a model folder to something that runs steps: read the model, choose sizes, compile the
 * program, create the runtime, load weights and program. Whatever was made is closed again when a
 * later stage fails.
 */

import { EngineError } from '../errors.ts'
import {
  type CompiledModel,
  checkLayout,
  compileModel,
  loadModel,
  modelFootprint,
} from '../models/index.ts'
import type { LoadProgress, NativeBinding, NativeRuntime } from '../native/binding.ts'
import { toEngineError } from '../native/load.ts'
import { type CollectivePayload, collectivePayload } from '../program/collectives.ts'
import type { Lane, Program } from '../program/types.ts'
import type { CostPrior } from '../scheduler/costs.ts'
import { createPolicy } from '../scheduler/policies/index.ts'
import type { SchedulingPolicy } from '../scheduler/policy.ts'
import {
  type ChatTemplate,
  loadChatTemplate,
  loadTokenizer,
  type Tokenizer,
} from '../tokenizer/index.ts'
import { costPrior } from './cost-prior.ts'
import { placeRanks } from './devices.ts'
import { DEFAULT_EVENT_LOG_BYTES, EventLogFile } from './event-log.ts'
import {
  checkExpertOptions,
  createExpertSteps,
  type ExpertOptions,
  placementOf,
} from './expert-options.ts'
import type { ExpertSteps } from './expert-steps.ts'
import { type GenerationDefaults, readGenerationDefaults } from './generation-config.ts'
import { chooseSchedules, sameProgram } from './schedules.ts'
import { computeSizes, requireMemory, type Sizes, type SizingInput } from './sizing.ts'
import type { StepProgram } from './step-programs.ts'
import type { CpuIsa, EngineInfo, EngineOptions, ProgramSummary } from './types.ts'

/** Everything an Engine is made of. */
export interface EngineParts {
  readonly info: EngineInfo
  readonly runtime: NativeRuntime
  readonly programs: readonly StepProgram[]
  readonly sizes: Sizes
  readonly collectivePayload: CollectivePayload
  readonly experts: ExpertSteps | undefined
  readonly pipelineDepth: number
  readonly prefixCache: boolean
  readonly policy: SchedulingPolicy
  readonly costPrior: CostPrior
  readonly eventLog: EventLogFile | undefined
  readonly tpotTargetMs: number | undefined
  readonly starvationMs: number | undefined
  readonly tokenizer: Tokenizer | undefined
  readonly chatTemplate: ChatTemplate | undefined
  readonly defaults: GenerationDefaults
  readonly eosTokenIds: readonly number[]
}

const PRECISIONS = ['auto', 'f32', 'bf16'] as const
const CPU_ISAS: readonly CpuIsa[] = ['auto', 'portable', 'avx2', 'avx512', 'avx512bf16', 'amx']
const MAX_RANKS = 64

interface CheckedOptions {
  readonly tensorParallel: number
  readonly expertParallel: number
  readonly world: number
  readonly precision: (typeof PRECISIONS)[number]
  readonly nanoBatches: 'auto' | number
  readonly threads: number
  readonly waitTimeoutMs: number
  readonly cpuIsa: CpuIsa
  readonly pipelineDepth: number
  readonly deterministic: boolean
  readonly graphs: boolean
  readonly prefixCache: boolean
  readonly policy: SchedulingPolicy
  readonly tpotTargetMs: number | undefined
  readonly starvationMs: number | undefined
  readonly eventLog: string | undefined
  readonly eventLogBytes: number
  readonly experts: ExpertOptions | undefined
}

/** Throws what loadModel, computeSizes and compileModel throw; ERR_USAGE for options; ERR_ABORTED. */
export async function assembleEngine(
  folder: string,
  options: EngineOptions,
  binding: NativeBinding,
): Promise<EngineParts> {
  const startMs = performance.now()
  const checked = checkOptions(options)
  const { tensorParallel, expertParallel, world } = checked
  const model = loadModel(folder)
  checkLayout(model, tensorParallel, expertParallel)
  const defaults = readGenerationDefaults(model.folder)
  const devices = placeRanks(binding.describeDevices(), world, options.device, options.devices)
  const backend = devices[0].backend
  // Tensor cores have no float32, and float16 weights become bf16: its range is that of float32.
  const precision = checked.precision === 'auto' && backend === 'cuda' ? 'bf16' : checked.precision
  const expertPlacement = placementOf(model, checked.experts, expertParallel)
  const layout = {
    ...{ tensorParallel, expertParallel, precision },
    ...(expertPlacement && { expertPlacement }),
  }
  const footprint = modelFootprint(model, layout)
  const ranksPerDevice = Math.max(
    ...devices.map(({ name }) => devices.filter((other) => other.name === name).length),
  )
  const sizing: SizingInput = {
    backend,
    memoryBytes: Math.min(...devices.map((device) => device.memoryBytes)),
    freeMemoryBytes: Math.min(...devices.map((device) => device.freeMemoryBytes)),
    ranksPerDevice,
    world,
    vocabSize: model.vocabSize,
    maxPositions: model.maxPositions,
    footprint,
    options,
  }
  const sizes = computeSizes(sizing)
  const schedules = chooseSchedules({
    nanoBatches: checked.nanoBatches,
    device: devices[0],
    model,
    tensorParallel,
    expertParallel,
    precision,
    sizes,
  })
  const compiled = schedules.map(({ schedule }, index) => {
    const twin = schedules.findIndex((other) => sameProgram(other.schedule, schedule))
    if (twin < index) return { twin }
    const { parts, stagger, lanes, overlap, shares } = schedule
    return compileModel(model, {
      ...layout,
      parts,
      stagger,
      lanes,
      overlap,
      shares,
      limits: {
        maxTokens: sizes.maxNumBatchedTokens,
        maxRows: sizes.maxRows,
        maxSeqs: sizes.maxNumSeqs,
        numBlocks: sizes.numBlocks,
        blockSize: sizes.blockSize,
        maxBlocksPerSeq: sizes.maxBlocksPerSeq,
        numSlots: sizes.numSlots,
        numHostBlocks: sizes.numHostBlocks,
      },
      maxModelLen: sizes.maxModelLen,
    })
  })
  const first = compiled[0] as CompiledModel
  const { program, manifest, activationDtype } = first
  const heapBytes = Math.max(
    ...compiled.map((one) => ('program' in one ? one.program.arenaBytes : 0)),
  )
  requireMemory(sizing, sizes, heapBytes)

  const tokenizer = await loadTokenizer(model.folder)
  const chatTemplate = await loadChatTemplate(model.folder)
  let runtime: NativeRuntime | undefined
  let eventLog: EventLogFile | undefined
  let callbackError: unknown
  const onProgress = (progress: LoadProgress) => {
    try {
      options.onProgress?.(progress)
    } catch (error) {
      callbackError ??= error
    }
  }
  try {
    throwIfAborted(options.signal)
    if (checked.eventLog !== undefined) {
      const { eventLog: path, eventLogBytes } = checked
      eventLog = await EventLogFile.open(path, eventLogBytes)
    }
    runtime = new binding.Runtime({
      ranks: devices.map(({ name }) => ({ device: name })),
      tp: tensorParallel,
      heapBytes,
      threadsPerRank: threadsPerRank(checked.threads, world),
      waitTimeoutMs: checked.waitTimeoutMs,
      deterministic: checked.deterministic,
      cpuIsa: checked.cpuIsa,
      graphs: checked.graphs,
    })
    await runtime.loadWeights(JSON.stringify(manifest), onProgress)
    // The caller's own error goes back to the caller as it is.
    if (callbackError !== undefined) throw callbackError
    throwIfAborted(options.signal)
    const programs: StepProgram[] = []
    for (const [index, one] of compiled.entries()) {
      const programId =
        'twin' in one
          ? programs[one.twin].programId
          : await runtime.loadProgram(JSON.stringify(one.program))
      throwIfAborted(options.signal)
      const { minTokens, layout } = schedules[index]
      programs.push({ minTokens, programId, ...layout })
    }
    return {
      info: {
        folder: model.folder,
        architecture: model.architecture,
        parameters: footprint.parameters,
        vocabSize: model.vocabSize,
        world,
        tensorParallel,
        expertParallel,
        attentionGroups: world / tensorParallel,
        devices: devices.map(({ name }) => name),
        precision: activationDtype,
        deterministic: checked.deterministic,
        maxModelLen: sizes.maxModelLen,
        maxNumSeqs: sizes.maxNumSeqs,
        maxNumBatchedTokens: sizes.maxNumBatchedTokens,
        kvBlockSize: sizes.blockSize,
        kvBlocks: sizes.numBlocks,
        kvCacheBytes: sizes.kvCacheBytes,
        weightBytesPerRank: footprint.weightBytesPerRank,
        program: summarizeProgram(program),
        schedules: schedules.map(({ minTokens, layout, description }) => ({
          minTokens,
          nanoBatches: layout.parts,
          description,
        })),
        loadMs: performance.now() - startMs,
      },
      runtime,
      programs,
      sizes,
      collectivePayload: collectivePayload(program),
      experts: createExpertSteps(checked.experts, first, devices[0]),
      pipelineDepth: checked.pipelineDepth,
      prefixCache: checked.prefixCache,
      policy: checked.policy,
      eventLog,
      costPrior: costPrior(backend, footprint, world, sizes.blockSize),
      tpotTargetMs: checked.tpotTargetMs,
      starvationMs: checked.starvationMs,
      tokenizer,
      chatTemplate,
      defaults,
      eosTokenIds: (defaults.eosTokenIds ?? model.eosTokenIds).filter((id) => id < model.vocabSize),
    }
  } catch (error) {
    await Promise.allSettled([
      runtime?.close(),
      chatTemplate?.close(),
      tokenizer?.close(),
      eventLog?.close(),
    ])
    throw error === callbackError ? error : toEngineError(error)
  }
}

function checkOptions(options: EngineOptions): CheckedOptions {
  const tensorParallel = integer(options.tensorParallel ?? 1, 'tensorParallel', 1, MAX_RANKS)
  const expertParallel = integer(options.expertParallel ?? 1, 'expertParallel', 1, MAX_RANKS)
  const nanoBatches = options.nanoBatches ?? 'auto'
  if (expertParallel > tensorParallel && options.eventLog !== undefined)
    throw new EngineError(
      'ERR_UNSUPPORTED_OPTION',
      'eventLog records one attention group, and expertParallel makes several; leave one of them out',
    )
  return {
    tensorParallel,
    expertParallel,
    world: Math.max(tensorParallel, expertParallel),
    precision: oneOf(options.precision ?? 'auto', 'precision', PRECISIONS),
    nanoBatches: nanoBatches === 'auto' ? 'auto' : integer(nanoBatches, 'nanoBatches', 1, 4),
    threads: integer(options.threads ?? 0, 'threads', 0, 4096),
    waitTimeoutMs: integer(options.waitTimeoutMs ?? 30_000, 'waitTimeoutMs', 1, 2 ** 31 - 1),
    cpuIsa: oneOf(options.cpuIsa ?? 'auto', 'cpuIsa', CPU_ISAS),
    pipelineDepth: integer(options.pipelineDepth ?? 2, 'pipelineDepth', 1, 2),
    deterministic: boolean(options.deterministic ?? false, 'deterministic'),
    graphs: boolean(options.graphs ?? true, 'graphs'),
    prefixCache: boolean(options.prefixCache ?? true, 'prefixCache'),
    policy: createPolicy({
      order: options.schedulerPolicy,
      budget: options.stepBudget,
      admission: options.admission,
      victim: options.preemption,
    }),
    tpotTargetMs: duration(options.tpotTargetMs, 'tpotTargetMs'),
    starvationMs: duration(options.starvationMs, 'starvationMs'),
    eventLog: fileName(options.eventLog, 'eventLog'),
    eventLogBytes: integer(
      options.eventLogBytes ?? DEFAULT_EVENT_LOG_BYTES,
      'eventLogBytes',
      1,
      Number.MAX_SAFE_INTEGER,
    ),
    experts: checkExpertOptions(options),
  }
}

/** 0: the runtime shares the machine's cores among the ranks. */
function threadsPerRank(threads: number, world: number): number {
  return threads === 0 ? 0 : Math.max(1, Math.floor(threads / world))
}

function summarizeProgram(program: Program): ProgramSummary {
  const opsPerLane: Record<Lane, number> = { compute: 0, memory: 0, network: 0 }
  for (const op of program.ops) opsPerLane[op.lane]++
  return {
    name: program.name,
    ops: program.ops.length,
    opsPerLane,
    nanoBatches: program.parts,
    arenaBytes: program.arenaBytes,
  }
}

function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted)
    throw new EngineError('ERR_ABORTED', 'loading was cancelled', { cause: signal.reason })
}

function integer(value: number, option: string, min: number, max: number): number {
  if (!Number.isInteger(value) || value < min || value > max)
    throw new EngineError('ERR_USAGE', `${option} must be a whole number from ${min} to ${max}`)
  return value
}

function duration(value: number | undefined, option: string): number | undefined {
  if (value === undefined) return undefined
  if (!(typeof value === 'number' && value > 0 && value < Number.POSITIVE_INFINITY))
    throw new EngineError('ERR_USAGE', `${option} must be a number of milliseconds above 0`)
  return value
}

function fileName(value: string | undefined, option: string): string | undefined {
  if (value !== undefined && (typeof value !== 'string' || value === ''))
    throw new EngineError('ERR_USAGE', `${option} must be the path of a file`)
  return value
}

function boolean(value: boolean, option: string): boolean {
  if (typeof value !== 'boolean')
    throw new EngineError('ERR_USAGE', `${option} must be true or false`)
  return value
}

function oneOf<T extends string>(value: T, option: string, choices: readonly T[]): T {
  if (!choices.includes(value))
    throw new EngineError('ERR_USAGE', `${option} must be one of ${choices.join(', ')}`)
  return value
}
