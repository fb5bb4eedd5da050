/** What families with routed experts share: sizes, and tensors named expert by expert. */

import { MAX_CHOICES, MAX_EXPERTS } from '../../ops/experts.ts'
import type { JsonObject } from '../../weights/json.ts'
import { configError, flag, integer, number } from '../config.ts'
import type { ExpertsSpec, LinearSpec, RoutingSpec } from '../spec.ts'

export interface ExpertCounts {
  readonly experts: number
  /** Of a token. */
  readonly choices: number
}

/** Keys of a config that say how many experts there are, in both spellings found in the wild. */
export const EXPERT_KEYS = ['num_experts', 'num_local_experts', 'n_routed_experts'] as const

export function readExpertCounts(
  config: JsonObject,
  defaults: Partial<ExpertCounts> = {},
): ExpertCounts {
  const key = EXPERT_KEYS.find((name) => config[name] !== undefined && config[name] !== null)
  const experts = integer(
    config,
    key ?? EXPERT_KEYS[0],
    { min: 1, max: MAX_EXPERTS },
    defaults.experts,
  )
  const range = { min: 1, max: MAX_CHOICES }
  const choices = integer(config, 'num_experts_per_tok', range, defaults.choices)
  if (choices > experts) throw configError(`a token chooses ${choices} of ${experts} experts`)
  return { experts, choices }
}

export interface ExpertNames {
  readonly router: string
  /** Of expert e: `${prefix}.${e}.${gate}`. */
  readonly prefix: string
  readonly gate: string
  readonly up: string
  readonly down: string
}

export const HUGGING_FACE_NAMES: ExpertNames = {
  router: 'gate',
  prefix: 'experts',
  gate: 'gate_proj',
  up: 'up_proj',
  down: 'down_proj',
}

/** Experts under `base`, which ends in a dot. */
export function expertsOf(
  base: string,
  experts: number,
  settings: {
    readonly names: ExpertNames
    readonly intermediateSize: number
    readonly routing: RoutingSpec
    readonly shared?: ExpertsSpec['shared']
  },
): ExpertsSpec {
  const { names, intermediateSize, routing, shared } = settings
  const each = (part: string): LinearSpec[] =>
    Array.from({ length: experts }, (_, expert) => ({
      tensor: `${base}${names.prefix}.${expert}.${part}.weight`,
    }))
  return {
    kind: 'experts',
    activation: 'silu',
    intermediateSize,
    router: { tensor: `${base}${names.router}.weight` },
    routing,
    gates: each(names.gate),
    ups: each(names.up),
    downs: each(names.down),
    ...(shared && { shared }),
  }
}

/** DeepSeek-V3's: a group is worth its two best scores with bias; weights are scores without it. */
export function readSigmoidRouting(
  config: JsonObject,
  experts: number,
  choices: number,
): RoutingSpec {
  const count = integer(config, 'n_group', { min: 1, max: experts }, 1)
  const kept = integer(config, 'topk_group', { min: 1, max: count }, count)
  if (experts % count !== 0) throw configError(`${experts} experts in ${count} groups`)
  if (count > 1 && experts / count < 2) throw configError('groups have fewer than two experts')
  return {
    score: 'sigmoid',
    choices,
    normalise: flag(config, 'norm_topk_prob', true),
    scale: number(config, 'routed_scaling_factor', { min: 1e-6, max: 1e6 }, 1),
    ...(count > 1 && { groups: { count, kept, worth: 'top2' } }),
  }
}
