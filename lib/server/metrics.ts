/**
 * Prometheus metrics under vLLM's names, so that boards, autoscalers and the Kubernetes inference
 * gateway read them unchanged. Gauges and counters are read from the engine when they are asked for.
 */

import { Counter, Gauge, Histogram, Registry } from 'prom-client'
import type { EngineStats, GenerateChunk } from '../engine/types.ts'
import type { ServedEngine } from './types.ts'

export interface Metrics {
  /** The exposition's text and its content type. */
  readonly contentType: string
  render(): Promise<string>
  /** Tokens generated so far, those of unfinished outputs included. */
  readonly numGenerated: number
  /** `numTokens` came, `seconds` after the ones before; undefined: the first ones. */
  observeTokens(numTokens: number, seconds: number | undefined): void
  observeEnd(chunk: GenerateChunk): void
  observeResponse(route: string, method: string, status: number, seconds: number): void
}

const LATENCY = [
  0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160,
]
const LENGTH = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 1e5]

type Stat = (stats: EngineStats) => number
type GroupStat = (group: EngineStats['groups'][number]) => number

export function createMetrics(engine: ServedEngine, modelName: string): Metrics {
  const registry = new Registry()
  registry.setDefaultLabels({ model_name: modelName, engine: '0' })
  const registers = [registry]

  // As vLLM's data-parallel engines: one series for each attention group.
  const gaugeOfGroups = (name: string, help: string, read: GroupStat): void => {
    new Gauge({
      name,
      help,
      labelNames: ['engine'],
      registers,
      collect() {
        engine.stats().groups.forEach((group, index) => {
          this.set({ engine: String(index) }, read(group))
        })
      },
    })
  }
  const counter = (name: string, help: string, read: Stat): void => {
    new Counter({
      name,
      help,
      registers,
      collect() {
        this.reset()
        this.inc(read(engine.stats()))
      },
    })
  }
  const histogram = (name: string, help: string, buckets: number[]) =>
    new Histogram({ name, help, buckets, registers })

  gaugeOfGroups('vllm:num_requests_running', 'Requests in the running batch.', (g) => g.running)
  gaugeOfGroups('vllm:num_requests_waiting', 'Requests that wait to run.', (g) => g.waiting)
  gaugeOfGroups('vllm:kv_cache_usage_perc', 'Share of KV blocks in use, 0..1.', kvUsage)
  counter('vllm:num_preemptions_total', 'Requests preempted.', (s) => s.preemptions)
  counter('vllm:prompt_tokens_total', 'Prompt tokens of started requests.', (s) => s.promptTokens)
  counter('vllm:prefix_cache_queries_total', 'Prompt tokens looked up.', (s) => s.prefixQueries)
  counter('vllm:prefix_cache_hits_total', 'Prompt tokens found.', (s) => s.prefixHits)
  counter('nanoweave:steps_total', 'Steps that have ended.', (s) => s.steps)
  counter(
    'nanoweave:step_run_seconds_total',
    'Time in which steps ran, until the last rank was done.',
    (s) => s.stepRunMs / 1000,
  )
  counter(
    'nanoweave:step_queue_seconds_total',
    'Time in which submitted steps waited for the step before.',
    (s) => s.stepQueueMs / 1000,
  )
  counter(
    'nanoweave:collective_payload_bytes_total',
    'Bytes of the results of collectives, on each rank.',
    (s) => s.collectiveBytes,
  )
  if (engine.stats().experts !== undefined) addExpertMetrics(engine, registers)
  counter('nanoweave:dropped_tokens_total', 'Tokens sampled for nothing.', (s) => s.droppedTokens)
  new Counter({
    name: 'vllm:request_success_total',
    help: 'Requests ended, by reason.',
    labelNames: ['finished_reason'],
    registers,
    collect() {
      this.reset()
      const { finished } = engine.stats()
      for (const [reason, count] of Object.entries(finished))
        this.inc({ finished_reason: reason }, count)
    },
  })
  const { kvBlockSize, kvBlocks } = engine.info
  new Gauge({
    name: 'vllm:cache_config_info',
    help: 'Sizes of the KV cache.',
    labelNames: ['block_size', 'num_gpu_blocks'],
    registers,
  }).set({ block_size: String(kvBlockSize), num_gpu_blocks: String(kvBlocks) }, 1)

  const generated = new Counter({
    name: 'vllm:generation_tokens_total',
    help: 'Tokens generated.',
    registers,
  })
  let numGenerated = 0
  const firstToken = histogram('vllm:time_to_first_token_seconds', 'To the first token.', LATENCY)
  const interToken = histogram('vllm:inter_token_latency_seconds', 'Between tokens.', LATENCY)
  const perToken = histogram(
    'vllm:request_time_per_output_token_seconds',
    'Mean time between the tokens of a request.',
    LATENCY,
  )
  const queue = histogram('vllm:request_queue_time_seconds', 'In the queue.', LATENCY)
  const whole = histogram('vllm:e2e_request_latency_seconds', 'To the last token.', LATENCY)
  const promptLength = histogram('vllm:request_prompt_tokens', 'Length of prompts.', LENGTH)
  const outputLength = histogram('vllm:request_generation_tokens', 'Length of outputs.', LENGTH)
  const responses = new Histogram({
    name: 'nanoweave:http_request_duration_seconds',
    help: 'From the headers of a request to the end of its response.',
    labelNames: ['route', 'method', 'status'],
    buckets: LATENCY,
    registers,
  })

  return {
    contentType: registry.contentType,
    render: () => registry.metrics(),
    get numGenerated() {
      return numGenerated
    },
    observeTokens(numTokens, seconds) {
      generated.inc(numTokens)
      numGenerated += numTokens
      if (seconds === undefined) return
      for (let i = 0; i < numTokens; i++) interToken.observe(seconds / numTokens)
    },
    observeEnd({ timings, usage }) {
      if (timings === undefined || usage === undefined) return
      firstToken.observe(timings.ttftMs / 1000)
      queue.observe(timings.queueMs / 1000)
      whole.observe(timings.totalMs / 1000)
      promptLength.observe(usage.promptTokens)
      outputLength.observe(usage.completionTokens)
      if (timings.tokensPerSecond > 0) perToken.observe(1 / timings.tokensPerSecond)
    },
    observeResponse(route, method, status, seconds) {
      responses.observe({ route, method, status: String(status) }, seconds)
    },
  }
}

/** Layers with experts that share a gauge: one for each would be 58 for DeepSeek-V3. */
const LAYERS_IN_GROUP = 8

/** Loads of experts, where the engine counts them; vLLM logs its balancedness, mean by largest. */
function addExpertMetrics(engine: ServedEngine, registers: Registry[]): void {
  const loads = () => engine.stats().experts!
  new Gauge({
    name: 'nanoweave:expert_load_max_over_mean',
    help: 'Rows of the busiest rank by the mean of ranks in the last period, worst layer of the group.',
    labelNames: ['layers'],
    registers,
    collect() {
      const { imbalance } = loads()
      for (let first = 0; first < imbalance.length; first += LAYERS_IN_GROUP) {
        const group = imbalance.slice(first, first + LAYERS_IN_GROUP)
        this.set({ layers: `${first}-${first + group.length - 1}` }, Math.max(...group))
      }
    },
  })
  new Gauge({
    name: 'nanoweave:expert_layers_moving',
    help: 'Layers whose experts are on their way to other slots.',
    registers,
    collect() {
      this.set(loads().layersMoving)
    },
  })
  const counters = {
    'nanoweave:expert_slots_moved_total': [
      'Copies of experts to other slots.',
      () => loads().movedSlots,
    ],
    'nanoweave:expert_plans_total': ['Periods that were planned for.', () => loads().plans],
    'nanoweave:expert_choices_total': [
      'Choices of experts by tokens, in all layers.',
      () =>
        loads()
          .experts.flat()
          .reduce((sum, count) => sum + count, 0),
    ],
  } as const
  for (const [name, [help, read]] of Object.entries(counters))
    new Counter({
      name,
      help,
      registers,
      collect() {
        this.reset()
        this.inc(read())
      },
    })
}

/** Blocks that only the prefix cache holds can be taken at any time: they count as free. */
export function kvUsage({ kvBlocks }: Pick<EngineStats['groups'][number], 'kvBlocks'>): number {
  return kvBlocks.total === 0 ? 0 : kvBlocks.used / kvBlocks.total
}
