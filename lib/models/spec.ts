/**
 * DecoderSpec: what a model family says about a checkpoint. Plain data: sizes, tensor names and
 * the choices that change results. decoder.ts turns it into a program, weights.ts into a manifest;
 * neither knows the family. New kinds of attention or feed-forward are new members of the unions.
 */

import type { GluActivation } from '../ops/grouped-glu.ts'

/** Tensor names as in the checkpoint; rows are taken before any parallel split. */
export interface LinearSpec {
  /** [outFeatures, inFeatures], row-major. */
  readonly tensor: string
  /** Which of the matrices of `tensor`, where it holds several (all experts of a layer). */
  readonly plane?: number
  /** The matrix lies as [inFeatures, outFeatures]. */
  readonly transposed?: true
  /**
   * Rows (output features) of `tensor` that are this projection; all when absent (fused
   * checkpoints). Every `step`-th from `start` on; default 1.
   */
  readonly rows?: { readonly start: number; readonly count: number; readonly step?: number }
  /** [outFeatures] of the whole tensor, for each plane if it has several; sliced like `tensor`. */
  readonly bias?: string
}

/** RMS norm: y = x / sqrt(mean(x²) + eps) · (weight + offset). */
export interface NormSpec {
  readonly tensor: string
  readonly eps: number
  /** Added to the stored weight: 1 for Gemma. */
  readonly offset?: number
}

/** How rotary frequencies are stretched beyond the context they were trained at; rope.ts has the formulas. */
export type RopeScaling =
  | { readonly kind: 'none' }
  | { readonly kind: 'linear'; readonly factor: number }
  | { readonly kind: 'dynamic'; readonly factor: number; readonly original: number }
  | {
      readonly kind: 'llama3'
      readonly factor: number
      readonly lowFreqFactor: number
      readonly highFreqFactor: number
      readonly original: number
    }
  | {
      readonly kind: 'yarn'
      readonly factor: number
      readonly original: number
      readonly betaFast: number
      readonly betaSlow: number
      /** Round the edges of the ramp to whole dimensions. */
      readonly truncate: boolean
      /** Multiplies cos and sin. */
      readonly attentionFactor: number
    }
  | {
      readonly kind: 'longrope'
      /** [rotaryDim / 2] each; `short` up to `original` positions. */
      readonly short: readonly number[]
      readonly long: readonly number[]
      readonly original: number
      /** Multiplies cos and sin. */
      readonly attentionFactor: number
    }

/** Rotary embedding of the first `rotaryDim` elements of a head, half-split pairs. */
export interface RopeSpec {
  readonly rotaryDim: number
  /** Base of the frequencies. */
  readonly theta: number
  readonly scaling: RopeScaling
}

/** Multi-head, grouped-query or multi-query attention with rotary positions. */
export interface GroupedAttentionSpec {
  readonly kind: 'grouped'
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
  /** Multiplies q·k. */
  readonly scale: number
  /** Scores become softcap · tanh(score / softcap). */
  readonly softcap?: number
  /** A token sees itself and the window - 1 tokens before it. */
  readonly window?: number
  /** Index into DecoderSpec.ropes. */
  readonly rope: number
  readonly query: LinearSpec
  readonly key: LinearSpec
  readonly value: LinearSpec
  readonly output: LinearSpec
  /** Before the rotation; over each head, [headDim], or over all heads together (OLMoE). */
  readonly queryNorm?: NormSpec
  readonly keyNorm?: NormSpec
  readonly normWidth?: 'head' | 'all'
  /** Tensor [heads]: a logit per head that joins its softmax without a value. */
  readonly sinks?: string
}

/**
 * Multi-head latent attention (https://arxiv.org/abs/2405.04434): keys and values of all heads are
 * made of one vector a token, which is what the cache holds, and a rotated part that heads share.
 */
export interface LatentAttentionSpec {
  readonly kind: 'latent'
  readonly heads: number
  /** Of a head's query: what meets the latent vector's keys, and what is rotated. */
  readonly nopeDim: number
  readonly ropeDim: number
  /** Of a head's value. */
  readonly valueDim: number
  readonly latentDim: number
  readonly scale: number
  readonly rope: number
  /** Pairs that are rotated lie beside each other. */
  readonly interleaved: boolean
  /** [heads · (nopeDim + ropeDim)] of the hidden states, or of their normalised projection. */
  readonly query: LinearSpec
  readonly queryDown?: {
    readonly linear: LinearSpec
    readonly norm: NormSpec
    readonly size: number
  }
  /** [latentDim + ropeDim]; the norm is over the first. */
  readonly latent: LinearSpec
  readonly latentNorm: NormSpec
  /** [heads · (nopeDim + valueDim), latentDim]: each head's keys, then its values. */
  readonly keyValue: string
  readonly output: LinearSpec
}

export type AttentionSpec = GroupedAttentionSpec | LatentAttentionSpec

/** down(activation(gate(x)) · up(x)). */
export interface GatedFeedForwardSpec {
  readonly kind: 'gated'
  readonly activation: 'silu' | 'gelu_tanh'
  readonly intermediateSize: number
  readonly gate: LinearSpec
  readonly up: LinearSpec
  readonly down: LinearSpec
}

/** How a token's experts and their weights follow from the router's logits; ops/moe-route.ts. */
export interface RoutingSpec {
  readonly score: 'softmax' | 'sigmoid' | 'softmax_chosen'
  /** Experts of a token. */
  readonly choices: number
  /** Weights are divided by their sum. */
  readonly normalise?: boolean
  /** Multiplies the weights. */
  readonly scale?: number
  /** [experts] added to the scores for the choice alone. */
  readonly bias?: string
  /** A token chooses from the best `kept` of `count` groups of neighbouring experts. */
  readonly groups?: {
    readonly count: number
    readonly kept: number
    readonly worth: 'max' | 'top2'
  }
}

/** Σ over the chosen experts of weight · down(activation(gate(x)) · up(x)), and a shared expert. */
export interface ExpertsSpec {
  readonly kind: 'experts'
  readonly activation: GluActivation
  /** Of `clamped_silu`. */
  readonly clamp?: { readonly alpha: number; readonly limit: number }
  /** Of one expert. */
  readonly intermediateSize: number
  readonly router: LinearSpec
  readonly routing: RoutingSpec
  /** One per expert. */
  readonly gates: readonly LinearSpec[]
  readonly ups: readonly LinearSpec[]
  readonly downs: readonly LinearSpec[]
  /** Sees every token; times σ(gate(x)), gate [1, hidden], where there is one. */
  readonly shared?: { readonly feedForward: GatedFeedForwardSpec; readonly gate?: LinearSpec }
}

export type FeedForwardSpec = GatedFeedForwardSpec | ExpertsSpec

/** x += post?(attention(norm(x))); x += post?(feedForward(norm(x))). */
export interface LayerSpec {
  readonly attentionNorm: NormSpec
  readonly attention: AttentionSpec
  readonly postAttentionNorm?: NormSpec
  readonly feedForwardNorm: NormSpec
  readonly feedForward: FeedForwardSpec
  readonly postFeedForwardNorm?: NormSpec
}

export interface DecoderSpec {
  readonly vocabSize: number
  readonly hiddenSize: number
  /** Table [vocabSize, hiddenSize]; rows are multiplied by `scale`. */
  readonly embedding: { readonly tensor: string; readonly scale?: number }
  readonly ropes: readonly RopeSpec[]
  readonly layers: readonly LayerSpec[]
  readonly finalNorm: NormSpec
  /** [vocabSize, hiddenSize]; the embedding's tensor when tied. */
  readonly head: { readonly tensor: string; readonly softcap?: number }
  /** Unused tensors under this prefix mean that the family is misread; others are ignored. */
  readonly tensorPrefix: string
  /** Tensors under it that the computation leaves alone: layers that predict further tokens. */
  readonly unusedPrefix?: string
}
