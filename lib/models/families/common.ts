/**
 * What the families share: the sizes every config has, and layers whose tensors carry the names
 * that Llama introduced. A family states its differences; it never copies a decoder.
 */

import { EngineError } from '../../errors.ts'
import type { JsonObject } from '../../weights/json.ts'
import type { TensorIndex } from '../../weights/safetensors.ts'
import { configError, flag, integer, number, optionalInteger, unsupported } from '../config.ts'
import type {
  AttentionSpec,
  DecoderSpec,
  FeedForwardSpec,
  GatedFeedForwardSpec,
  GroupedAttentionSpec,
  LayerSpec,
  LinearSpec,
  NormSpec,
} from '../spec.ts'

/** Reads one or several architectures. `describe` is pure: config and tensor names in, spec out. */
export interface Family {
  /** As in `architectures[0]` of config.json. */
  readonly architectures: readonly string[]
  /** Config keys that change results, which most families do not know and this one reads. */
  readonly implements?: readonly string[]
  describe(config: JsonObject, tensors: TensorIndex): FamilyModel
}

export interface FamilyModel {
  readonly spec: DecoderSpec
  readonly maxPositions: number
}

export interface Dimensions {
  readonly vocabSize: number
  readonly hiddenSize: number
  readonly intermediateSize: number
  readonly numLayers: number
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
  readonly maxPositions: number
  readonly eps: number
}

const SIZE = { min: 1, max: 2 ** 20 }
export const SOFTCAP = { min: 1e-3, max: 1e6 }

/** Sizes of a decoder; `defaults` stand for what the architecture lets a config leave out. */
export function readDimensions(config: JsonObject, defaults: Partial<Dimensions>): Dimensions {
  const size = (key: string, fallback?: number, max = SIZE.max) =>
    integer(config, key, { min: 1, max }, fallback)
  const hiddenSize = size('hidden_size', defaults.hiddenSize)
  const heads = size('num_attention_heads', defaults.heads, 4096)
  const kvHeads = size('num_key_value_heads', defaults.kvHeads ?? heads, 4096)
  if (heads % kvHeads !== 0) {
    throw configError(`${heads} attention heads cannot share ${kvHeads} KV heads evenly`)
  }
  const givenHeadDim = optionalInteger(config, 'head_dim', { min: 1, max: 4096 })
  const headDim = givenHeadDim ?? defaults.headDim ?? hiddenSize / heads
  if (!Number.isInteger(headDim)) {
    throw configError(`hidden_size ${hiddenSize} is not a multiple of ${heads} attention heads`)
  }
  if (headDim % 2 !== 0) throw unsupported(`head_dim ${headDim} is odd`)
  if (hiddenSize % 8 !== 0) throw unsupported(`hidden_size ${hiddenSize} is not a multiple of 8`)
  return {
    vocabSize: size('vocab_size', defaults.vocabSize, 2 ** 24),
    hiddenSize,
    intermediateSize: size('intermediate_size', defaults.intermediateSize),
    numLayers: size('num_hidden_layers', defaults.numLayers, 1024),
    heads,
    kvHeads,
    headDim,
    maxPositions: size('max_position_embeddings', defaults.maxPositions, 2 ** 24),
    eps: number(config, 'rms_norm_eps', { min: 0, max: 1 }, defaults.eps),
  }
}

/** What distinguishes one layer of a conventional decoder from another. */
export interface LayerChoices {
  readonly rope: number
  readonly window?: number | undefined
  /** Default: headDim^-0.5. */
  readonly scale?: number
  readonly softcap?: number | undefined
  readonly queryKeyValueBias?: boolean
  readonly outputBias?: boolean
  readonly feedForwardBias?: boolean
  /** `all`: over all heads together. */
  readonly queryKeyNorm?: boolean | 'all'
  /** A learned logit per head in every softmax. */
  readonly sinks?: boolean
  /** In place of grouped heads under `self_attn`. */
  readonly attention?: AttentionSpec
  /** In place of the gated one under `mlp`. */
  readonly feedForward?: FeedForwardSpec | undefined
  readonly activation?: 'silu' | 'gelu_tanh'
  /** Norms multiply by 1 + weight. */
  readonly normOffset?: 1
  /** Norms before and after each block; the second pair under its own names. */
  readonly sandwichNorms?: boolean
  /** One tensor for q, k, v and one for gate, up. */
  readonly fused?: boolean
}

/** Layer `prefix` + `layers.{layer}` with the tensor names of Llama and its descendants. */
export function conventionalLayer(
  prefix: string,
  layer: number,
  dimensions: Dimensions,
  choices: LayerChoices,
): LayerSpec {
  const base = `${prefix}layers.${layer}.`
  const { sandwichNorms } = choices
  return {
    attentionNorm: normOf(`${base}input_layernorm`, dimensions, choices),
    attention: choices.attention ?? attentionOf(`${base}self_attn.`, dimensions, choices),
    ...(sandwichNorms && {
      postAttentionNorm: normOf(`${base}post_attention_layernorm`, dimensions, choices),
      postFeedForwardNorm: normOf(`${base}post_feedforward_layernorm`, dimensions, choices),
    }),
    feedForwardNorm: normOf(
      `${base}${sandwichNorms ? 'pre_feedforward_layernorm' : 'post_attention_layernorm'}`,
      dimensions,
      choices,
    ),
    feedForward: choices.feedForward ?? feedForwardOf(`${base}mlp.`, dimensions, choices),
  }
}

function normOf(
  name: string,
  { eps }: Dimensions,
  { normOffset }: Pick<LayerChoices, 'normOffset'>,
): NormSpec {
  return { tensor: `${name}.weight`, eps, ...(normOffset && { offset: normOffset }) }
}

function linearOf(name: string, bias: boolean | undefined): LinearSpec {
  return { tensor: `${name}.weight`, ...(bias && { bias: `${name}.bias` }) }
}

/** Consecutive row ranges of one tensor. */
function fusedLinears(name: string, counts: readonly number[]): LinearSpec[] {
  let start = 0
  return counts.map((count) => {
    const linear = { tensor: `${name}.weight`, rows: { start, count } }
    start += count
    return linear
  })
}

function attentionOf(
  base: string,
  dimensions: Dimensions,
  choices: LayerChoices,
): GroupedAttentionSpec {
  const { heads, kvHeads, headDim } = dimensions
  const [query, key, value] = choices.fused
    ? fusedLinears(`${base}qkv_proj`, [heads * headDim, kvHeads * headDim, kvHeads * headDim])
    : ['q_proj', 'k_proj', 'v_proj'].map((name) =>
        linearOf(`${base}${name}`, choices.queryKeyValueBias),
      )
  return {
    kind: 'grouped',
    heads,
    kvHeads,
    headDim,
    scale: choices.scale ?? headDim ** -0.5,
    ...(choices.softcap !== undefined && { softcap: choices.softcap }),
    ...(choices.window !== undefined && { window: choices.window }),
    rope: choices.rope,
    query: query!,
    key: key!,
    value: value!,
    output: linearOf(`${base}o_proj`, choices.outputBias),
    ...(choices.sinks && { sinks: `${base}sinks` }),
    ...(choices.queryKeyNorm && {
      queryNorm: normOf(`${base}q_norm`, dimensions, choices),
      keyNorm: normOf(`${base}k_norm`, dimensions, choices),
      ...(choices.queryKeyNorm === 'all' && { normWidth: 'all' }),
    }),
  }
}

export function feedForwardOf(
  base: string,
  { intermediateSize }: Pick<Dimensions, 'intermediateSize'>,
  choices: Pick<LayerChoices, 'fused' | 'feedForwardBias' | 'activation'>,
): GatedFeedForwardSpec {
  const [gate, up] = choices.fused
    ? fusedLinears(`${base}gate_up_proj`, [intermediateSize, intermediateSize])
    : ['gate_proj', 'up_proj'].map((name) => linearOf(`${base}${name}`, choices.feedForwardBias))
  return {
    kind: 'gated',
    activation: choices.activation ?? 'silu',
    intermediateSize,
    gate: gate!,
    up: up!,
    down: linearOf(`${base}down_proj`, choices.feedForwardBias),
  }
}

export interface DecoderChoices {
  readonly ropes: DecoderSpec['ropes']
  readonly layerChoices: (layer: number) => LayerChoices
  readonly tied: boolean
  /** Of the tensor names: `model.`. */
  readonly prefix?: string
  /** Name of the head where it is not tied. */
  readonly head?: string
  readonly embeddingScale?: number
  readonly logitSoftcap?: number | undefined
  readonly normOffset?: 1
}

/** A decoder of conventional layers. */
export function conventionalDecoder(
  dimensions: Dimensions,
  { ropes, layerChoices, tied, ...choices }: DecoderChoices,
): DecoderSpec {
  const prefix = choices.prefix ?? 'model.'
  const embedding = `${prefix}embed_tokens.weight`
  return {
    vocabSize: dimensions.vocabSize,
    hiddenSize: dimensions.hiddenSize,
    embedding: {
      tensor: embedding,
      ...(choices.embeddingScale !== undefined && { scale: choices.embeddingScale }),
    },
    ropes,
    layers: Array.from({ length: dimensions.numLayers }, (_, layer) =>
      conventionalLayer(prefix, layer, dimensions, layerChoices(layer)),
    ),
    finalNorm: normOf(`${prefix}norm`, dimensions, choices),
    head: {
      tensor: tied ? embedding : (choices.head ?? 'lm_head.weight'),
      ...(choices.logitSoftcap !== undefined && { softcap: choices.logitSoftcap }),
    },
    tensorPrefix: prefix,
  }
}

/** `tie_word_embeddings`. */
export function isTied(config: JsonObject, fallback: boolean): boolean {
  return flag(config, 'tie_word_embeddings', fallback)
}

export type LayerType = 'full_attention' | 'sliding_attention'

/** `layer_types`, or what `fallback` says of each layer. */
export function readLayerTypes(
  config: JsonObject,
  numLayers: number,
  fallback: (layer: number) => LayerType,
): LayerType[] {
  const given = config.layer_types
  if (given === undefined || given === null) {
    return Array.from({ length: numLayers }, (_, layer) => fallback(layer))
  }
  if (!Array.isArray(given) || given.length !== numLayers) {
    throw configError(`layer_types is not a list of ${numLayers} layer types`)
  }
  for (const type of given) {
    if (type !== 'full_attention' && type !== 'sliding_attention') {
      throw unsupported(
        'layer_types may contain full_attention and sliding_attention; others are not supported',
      )
    }
  }
  return given
}

/** `sliding_window`; null switches it off, a config that does not mention it gets `fallback`. */
export function readWindow(config: JsonObject, fallback?: number): number | undefined {
  return Object.hasOwn(config, 'sliding_window')
    ? optionalInteger(config, 'sliding_window', { min: 1, max: 2 ** 30 })
    : fallback
}

/** The window of each layer, tokens; undefined: full attention. */
export function windowsOf(
  types: readonly LayerType[],
  window: number | undefined,
): (number | undefined)[] {
  return types.map((type) => {
    if (type === 'full_attention') return undefined
    if (window === undefined) throw configError('sliding_attention layers need a sliding_window')
    return window
  })
}

/** The first of `prefixes` under which the checkpoint keeps its token embedding. */
export function findPrefix(tensors: TensorIndex, prefixes: readonly string[]): string {
  const found = prefixes.find((prefix) => tensors.tensors.has(`${prefix}embed_tokens.weight`))
  if (found === undefined) {
    throw new EngineError(
      'ERR_TENSOR_MISSING',
      `the checkpoint has no ${prefixes.map((prefix) => `${prefix}embed_tokens.weight`).join(' or ')}`,
    )
  }
  return found
}
