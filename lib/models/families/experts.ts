/** What families with routed experts share: sizes, and tensors named expert by expert. */

import { MAX_CHOICES, MAX_EXPERTS } from '../../ops/experts.ts'
import type { JsonObject } from '../../weights/json.ts'
import { configError, flag, integer, number } from '../config.ts'
import type { ExpertsSpec, LinearSpec, RoutingSpec } from '../spec.ts'
import type { Dimensions } from './common.ts'

export interface ExpertCounts {
  readonly experts: number
  /** Of a token. */
  readonly choices: number
}

/** Experts of all layers together: every one is described before the first tensor is looked for. */
const MAX_EXPERTS_IN_ALL = 2 ** 17

/** Keys of a config that say how many experts there are, in both spellings found in the wild. */
export const EXPERT_KEYS = ['num_experts', 'num_local_experts', 'n_routed_experts'] as const

export function readExpertCounts(
  config: JsonObject,
  { numLayers }: Pick<Dimensions, 'numLayers'>,
  defaults: Partial<ExpertCounts> = {},
): ExpertCounts {
  const key = EXPERT_KEYS.find((name) => config[name] !== undefined && config[name] !== null)
  const experts = integer(
    config,
    key ?? EXPERT_KEYS[0],
    { min: 1, max: MAX_EXPERTS },
    defaults.experts,
  )
  if (numLayers * experts > MAX_EXPERTS_IN_ALL) {
    throw configError(
      `${numLayers} layers of ${experts} experts have ${numLayers * experts} in all, more than ${MAX_EXPERTS_IN_ALL}`,
    )
  }
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

/** Groups of neighbouring experts: `n_group` in all, of which a token chooses from `topk_group`. */
export function readGroups(
  config: JsonObject,
  { experts, choices }: ExpertCounts,
): { readonly count: number; readonly kept: number } {
  const count = integer(config, 'n_group', { min: 1, max: experts }, 1)
  const kept = integer(config, 'topk_group', { min: 1, max: count }, count)
  if (experts % count !== 0) throw configError(`${experts} experts in ${count} groups`)
  const eligible = kept * (experts / count)
  if (choices > eligible) {
    throw configError(
      `a token chooses ${choices} experts, and topk_group ${kept} of n_group ${count} leaves it ${eligible} of ${experts}`,
    )
  }
  return { count, kept }
}

/** DeepSeek-V3's: a group is worth its two best scores with bias; weights are scores without it. */
export function readSigmoidRouting(config: JsonObject, counts: ExpertCounts): RoutingSpec {
  const { experts, choices } = counts
  const { count, kept } = readGroups(config, counts)
  if (count > 1 && experts / count < 2) throw configError('groups have fewer than two experts')
  return {
    score: 'sigmoid',
    choices,
    normalise: flag(config, 'norm_topk_prob', true),
    scale: number(config, 'routed_scaling_factor', { min: 1e-6, max: 1e6 }, 1),
    ...(count > 1 && { groups: { count, kept, worth: 'top2' } }),
  }
}
