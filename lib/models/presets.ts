/**
 * Published models by name, for `plan` and `simulate`: the fields of their config.json that decide
 * sizes.
 */

import { EngineError } from '../errors.ts'
import type { JsonObject } from '../weights/json.ts'
import { modelFromConfig } from './from-config.ts'
import type { Model } from './types.ts'

export interface ModelPreset {
  readonly name: string
  readonly model: Model
}

interface PresetConfig {
  readonly config: JsonObject
  /** Of the weights as they are computed with. */
  readonly dtype: 'bf16' | 'f16'
}

const LLAMA_3 = {
  architectures: ['LlamaForCausalLM'],
  hidden_act: 'silu',
  vocab_size: 128256,
  rope_theta: 500000,
  max_position_embeddings: 8192,
  rms_norm_eps: 1e-5,
  tie_word_embeddings: false,
}
const MIXTRAL = {
  architectures: ['MixtralForCausalLM'],
  num_local_experts: 8,
  num_experts_per_tok: 2,
  hidden_act: 'silu',
  rope_theta: 1000000,
  rms_norm_eps: 1e-5,
  sliding_window: null,
  tie_word_embeddings: false,
}
const QWEN_3 = {
  architectures: ['Qwen3MoeForCausalLM'],
  num_experts: 128,
  num_experts_per_tok: 8,
  norm_topk_prob: true,
  decoder_sparse_step: 1,
  mlp_only_layers: [],
  hidden_act: 'silu',
  vocab_size: 151936,
  rope_theta: 1000000,
  max_position_embeddings: 40960,
  rms_norm_eps: 1e-6,
  head_dim: 128,
  num_key_value_heads: 4,
  tie_word_embeddings: false,
}

const GPT_OSS = {
  architectures: ['GptOssForCausalLM'],
  hidden_act: 'silu',
  vocab_size: 201088,
  rope_theta: 150000,
  rope_scaling: {
    rope_type: 'yarn',
    factor: 32,
    beta_fast: 32,
    beta_slow: 1,
    truncate: false,
    original_max_position_embeddings: 4096,
  },
  max_position_embeddings: 131072,
  rms_norm_eps: 1e-5,
  attention_bias: true,
  hidden_size: 2880,
  intermediate_size: 2880,
  num_attention_heads: 64,
  num_key_value_heads: 8,
  head_dim: 64,
  num_experts_per_tok: 4,
  sliding_window: 128,
  swiglu_limit: 7,
  tie_word_embeddings: false,
}

const PRESETS: Readonly<Record<string, PresetConfig>> = {
  'llama-2-70b': {
    dtype: 'f16',
    config: {
      ...LLAMA_3,
      vocab_size: 32000,
      rope_theta: 10000,
      max_position_embeddings: 4096,
      hidden_size: 8192,
      intermediate_size: 28672,
      num_hidden_layers: 80,
      num_attention_heads: 64,
      num_key_value_heads: 8,
    },
  },
  'llama-3-8b': {
    dtype: 'bf16',
    config: {
      ...LLAMA_3,
      hidden_size: 4096,
      intermediate_size: 14336,
      num_hidden_layers: 32,
      num_attention_heads: 32,
      num_key_value_heads: 8,
    },
  },
  'llama-3-70b': {
    dtype: 'bf16',
    config: {
      ...LLAMA_3,
      max_position_embeddings: 131072,
      hidden_size: 8192,
      intermediate_size: 28672,
      num_hidden_layers: 80,
      num_attention_heads: 64,
      num_key_value_heads: 8,
    },
  },
  'qwen2.5-72b': {
    dtype: 'bf16',
    config: {
      architectures: ['Qwen2ForCausalLM'],
      hidden_act: 'silu',
      vocab_size: 152064,
      rope_theta: 1000000,
      max_position_embeddings: 32768,
      rms_norm_eps: 1e-6,
      hidden_size: 8192,
      intermediate_size: 29568,
      num_hidden_layers: 80,
      num_attention_heads: 64,
      num_key_value_heads: 8,
      tie_word_embeddings: false,
    },
  },
  'mixtral-8x7b': {
    dtype: 'bf16',
    config: {
      ...MIXTRAL,
      vocab_size: 32000,
      max_position_embeddings: 32768,
      hidden_size: 4096,
      intermediate_size: 14336,
      num_hidden_layers: 32,
      num_attention_heads: 32,
      num_key_value_heads: 8,
    },
  },
  'mixtral-8x22b': {
    dtype: 'bf16',
    config: {
      ...MIXTRAL,
      vocab_size: 32768,
      max_position_embeddings: 65536,
      hidden_size: 6144,
      intermediate_size: 16384,
      num_hidden_layers: 56,
      num_attention_heads: 48,
      num_key_value_heads: 8,
    },
  },
  'qwen3-30b-a3b': {
    dtype: 'bf16',
    config: {
      ...QWEN_3,
      moe_intermediate_size: 768,
      hidden_size: 2048,
      intermediate_size: 6144,
      num_hidden_layers: 48,
      num_attention_heads: 32,
    },
  },
  'qwen3-235b-a22b': {
    dtype: 'bf16',
    config: {
      ...QWEN_3,
      moe_intermediate_size: 1536,
      hidden_size: 4096,
      intermediate_size: 12288,
      num_hidden_layers: 94,
      num_attention_heads: 64,
    },
  },
  // Published in fp8 with factors for blocks; computed with in bf16.
  'deepseek-v3': {
    dtype: 'bf16',
    config: {
      architectures: ['DeepseekV3ForCausalLM'],
      hidden_act: 'silu',
      vocab_size: 129280,
      hidden_size: 7168,
      intermediate_size: 18432,
      moe_intermediate_size: 2048,
      num_hidden_layers: 61,
      num_attention_heads: 128,
      num_key_value_heads: 128,
      q_lora_rank: 1536,
      kv_lora_rank: 512,
      qk_nope_head_dim: 128,
      qk_rope_head_dim: 64,
      v_head_dim: 128,
      n_routed_experts: 256,
      n_shared_experts: 1,
      num_experts_per_tok: 8,
      n_group: 8,
      topk_group: 4,
      first_k_dense_replace: 3,
      moe_layer_freq: 1,
      scoring_func: 'sigmoid',
      topk_method: 'noaux_tc',
      norm_topk_prob: true,
      routed_scaling_factor: 2.5,
      rms_norm_eps: 1e-6,
      rope_theta: 10000,
      rope_scaling: {
        type: 'yarn',
        factor: 40,
        beta_fast: 32,
        beta_slow: 1,
        mscale: 1,
        mscale_all_dim: 1,
        original_max_position_embeddings: 4096,
      },
      max_position_embeddings: 163840,
      attention_bias: false,
      tie_word_embeddings: false,
    },
  },
  // Published in MXFP4; computed with in bf16.
  'gpt-oss-20b': {
    dtype: 'bf16',
    config: { ...GPT_OSS, num_hidden_layers: 24, num_local_experts: 32 },
  },
  'gpt-oss-120b': {
    dtype: 'bf16',
    config: { ...GPT_OSS, num_hidden_layers: 36, num_local_experts: 128 },
  },
}

export function modelPresetNames(): string[] {
  return Object.keys(PRESETS)
}

export function findModelPreset(name: string): ModelPreset | undefined {
  if (!Object.hasOwn(PRESETS, name)) return undefined
  const { config, dtype } = PRESETS[name]!
  return { name, model: modelFromConfig(name, config, dtype) }
}

/** ERR_USAGE lists the presets. */
export function modelPreset(name: string): ModelPreset {
  const preset = findModelPreset(name)
  if (preset !== undefined) return preset
  throw new EngineError(
    'ERR_USAGE',
    `there is no model preset ${name}; known: ${modelPresetNames().join(', ')}`,
  )
}
