/** Configs of all families, what they become, and what is refused by name. */

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import {
  checkLayout,
  compileModel,
  loadModel,
  type Model,
  modelFootprint,
  supportedArchitectures,
} from '../lib/models/index.ts'
import { DTYPE_BYTES } from '../lib/program/types.ts'
import { createFolder } from './support/checkpoint-folder.ts'
import { codeOf, errorOf } from './support/errors.ts'
import { DENSE_FAMILIES, goldenFolder } from './support/golden.ts'
import { configOf, LIMITS, withConfig } from './support/golden-config.ts'

const attentionOf = (model: Model) =>
  model.spec.layers.flatMap(({ attention }) => (attention.kind === 'grouped' ? [attention] : []))
const windowsOf = (model: Model) => attentionOf(model).map((attention) => attention.window)

describe('families', () => {
  const architectures: Record<(typeof DENSE_FAMILIES)[number], string> = {
    llama: 'LlamaForCausalLM',
    'llama3-rope-tied-bf16': 'LlamaForCausalLM',
    'mistral-sliding': 'MistralForCausalLM',
    'qwen2-bias': 'Qwen2ForCausalLM',
    'qwen3-qknorm': 'Qwen3ForCausalLM',
    'phi3-fused-qkv': 'Phi3ForCausalLM',
    'gemma2-softcap': 'Gemma2ForCausalLM',
    gemma3: 'Gemma3ForCausalLM',
  }
  for (const family of DENSE_FAMILIES) {
    it(`${family}: loads, and compiles for every layout`, () => {
      const model = loadModel(goldenFolder(family))
      const config = configOf(family)
      expect(model.architecture).toBe(architectures[family])
      expect(model.vocabSize).toBe(config.vocab_size)
      expect(model.maxPositions).toBe(config.max_position_embeddings)
      expect(model.bosTokenId).toBe(1)
      expect(model.eosTokenIds).toEqual([2])
      expect(model.weightDtype).toBe(family.endsWith('bf16') ? 'bf16' : 'f32')
      for (const tensorParallel of [1, 2, 4, 8]) {
        const { program, manifest } = compileModel(model, {
          tensorParallel,
          parts: 2,
          precision: 'auto',
          limits: LIMITS,
        })
        expect(program.world).toBe(tensorParallel)
        const weights = program.buffers.filter((buffer) => buffer.space !== 'arena')
        expect(
          manifest.buffers
            .map(({ name, shape, dtype }) => ({ name, shape, dtype }))
            .sort((a, b) => (a.name < b.name ? -1 : 1)),
        ).toEqual(
          weights
            .map(({ name, shape, dtype }) => ({ name, shape, dtype }))
            .sort((a, b) => (a.name < b.name ? -1 : 1)),
        )
        const collectives = program.ops.filter((op) => op.lane === 'network')
        expect(collectives.length === 0).toBe(tensorParallel === 1)
      }
    })
  }

  it('mistral has a window where its config has one', () => {
    expect(windowsOf(loadModel(goldenFolder('mistral-sliding')))).toEqual([8, 8, 8])
    withConfig('mistral-sliding', { sliding_window: null }, (model) =>
      expect(windowsOf(model)).toEqual([undefined, undefined, undefined]),
    )
  })

  it('qwen2 has windows from max_window_layers on, or as layer_types says', () => {
    const on = { use_sliding_window: true, sliding_window: 6, layer_types: null }
    withConfig('qwen2-bias', { ...on, max_window_layers: 1 }, (model) =>
      expect(windowsOf(model)).toEqual([undefined, 6, 6]),
    )
    const types = ['sliding_attention', 'full_attention', 'sliding_attention']
    withConfig('qwen2-bias', { ...on, layer_types: types }, (model) =>
      expect(windowsOf(model)).toEqual([6, undefined, 6]),
    )
    withConfig('qwen2-bias', { sliding_window: 6, use_sliding_window: false }, (model) =>
      expect(windowsOf(model)).toEqual([undefined, undefined, undefined]),
    )
    const off = { layer_types: types, use_sliding_window: false }
    expect(codeOf(() => withConfig('qwen2-bias', off, () => 0))).toBe('ERR_MODEL_CONFIG')
  })

  it('gemma 2 alternates windows, caps scores and logits, scales embeddings', () => {
    withConfig('gemma2-softcap', { layer_types: null, query_pre_attn_scalar: 64 }, (model) => {
      expect(windowsOf(model)).toEqual([8, undefined, 8])
      expect(attentionOf(model).map(({ softcap, scale }) => [softcap, scale])).toEqual(
        Array(3).fill([50, 1 / 8]),
      )
      expect(model.spec.head.softcap).toBe(30)
      expect(model.spec.embedding.scale).toBe(8)
    })
    withConfig('gemma2-softcap', { final_logit_softcapping: null }, (model) =>
      expect(model.spec.head.softcap).toBeUndefined(),
    )
  })

  it('gemma 3 rotates local and global layers differently, in both spellings', () => {
    const ropes = (model: Model) =>
      model.spec.ropes.map(({ theta, scaling }) => [theta, scaling.kind])
    const model = loadModel(goldenFolder('gemma3'))
    expect(attentionOf(model).map((attention) => attention.rope)).toEqual([1, 1, 1, 1, 1, 0])
    expect(windowsOf(model)).toEqual([8, 8, 8, 8, 8, undefined])
    expect(ropes(model)).toEqual([
      [1_000_000, 'none'],
      [10_000, 'none'],
    ])
    const old = {
      rope_parameters: undefined,
      layer_types: undefined,
      sliding_window_pattern: 2,
      rope_theta: 500_000,
      rope_local_base_freq: 7000,
      rope_scaling: { rope_type: 'linear', factor: 8 },
    }
    withConfig('gemma3', old, (model) => {
      expect(ropes(model)).toEqual([
        [500_000, 'linear'],
        [7000, 'none'],
      ])
      expect(windowsOf(model)).toEqual([8, undefined, 8, undefined, 8, undefined])
    })
  })

  it('a multimodal gemma 3 folder gives its text model', () => {
    const text = configOf('gemma3')
    const config = {
      architectures: ['Gemma3ForConditionalGeneration'],
      text_config: { ...text, architectures: undefined, eos_token_id: undefined },
      eos_token_id: [2, 5],
      vision_config: { hidden_size: 8 },
    }
    const bytes = readFileSync(join(goldenFolder('gemma3'), 'model.safetensors'))
    const length = Number(bytes.readBigUInt64LE())
    const header = JSON.parse(bytes.subarray(8, 8 + length).toString())
    for (const prefix of ['language_model.', 'model.language_model.']) {
      const { __metadata__, ...entries } = header
      const renamed = Object.entries(entries).map(([name, value]) => [
        prefix === 'language_model.' ? prefix + name : name.replace('model.', prefix),
        value,
      ])
      const headerText = Buffer.from(JSON.stringify(Object.fromEntries(renamed)))
      const size = Buffer.alloc(8)
      size.writeBigUInt64LE(BigInt(headerText.length))
      using folder = createFolder({
        'config.json': JSON.stringify(config),
        'model.safetensors': Buffer.concat([size, headerText, bytes.subarray(8 + length)]),
      })
      const model = loadModel(folder.path)
      expect(model.spec.layers).toHaveLength(6)
      expect(model.eosTokenIds).toEqual([2, 5])
      expect(model.bosTokenId).toBe(1)
    }
  })

  it('untied heads have a tensor of their own', () => {
    const tied = loadModel(goldenFolder('gemma3'))
    expect(tied.spec.head.tensor).toBe(tied.spec.embedding.tensor)
    expect(loadModel(goldenFolder('llama')).spec.head.tensor).toBe('lm_head.weight')
    withConfig('llama', { tie_word_embeddings: true }, (model) =>
      expect(model.spec.head.tensor).toBe('model.embed_tokens.weight'),
    )
  })
})

describe('refusals', () => {
  const config: Record<string, [string, Record<string, unknown>, string]> = {
    'an unknown architecture': [
      'llama',
      { architectures: ['GptForCausalLM'] },
      'ERR_UNSUPPORTED_MODEL',
    ],
    'no architecture': ['llama', { architectures: [] }, 'ERR_MODEL_CONFIG'],
    'architectures that are no list': ['llama', { architectures: 'Llama' }, 'ERR_MODEL_CONFIG'],
    'another activation': ['llama', { hidden_act: 'relu' }, 'ERR_UNSUPPORTED_MODEL'],
    'another activation of gemma': [
      'gemma2-softcap',
      { hidden_activation: 'gelu' },
      'ERR_UNSUPPORTED_MODEL',
    ],
    'a quantized checkpoint': [
      'llama',
      { quantization_config: { bits: 4 } },
      'ERR_UNSUPPORTED_MODEL',
    ],
    'attention sinks': ['llama', { attention_sinks: true }, 'ERR_UNSUPPORTED_MODEL'],
    'a residual multiplier': ['llama', { residual_multiplier: 0.5 }, 'ERR_UNSUPPORTED_MODEL'],
    experts: ['llama', { num_local_experts: 8 }, 'ERR_UNSUPPORTED_MODEL'],
    'more choices than experts': ['mixtral', { num_experts_per_tok: 9 }, 'ERR_MODEL_CONFIG'],
    'a million experts': ['mixtral', { num_local_experts: 1e6 }, 'ERR_MODEL_CONFIG'],
    'more experts than the checkpoint has': [
      'mixtral',
      { num_local_experts: 9 },
      'ERR_TENSOR_SHAPE',
    ],
    'a million experts over all layers': [
      'mixtral',
      { num_hidden_layers: 1024, num_local_experts: 1024 },
      'ERR_MODEL_CONFIG',
    ],
    'a million experts over all layers of gpt-oss': [
      'gpt-oss-sinks',
      { num_hidden_layers: 1024, num_local_experts: 1024, layer_types: null },
      'ERR_MODEL_CONFIG',
    ],
    'a million experts over all layers of deepseek': [
      'deepseek-v3-mla',
      { num_hidden_layers: 1024, n_routed_experts: 1024 },
      'ERR_MODEL_CONFIG',
    ],
    'layers that are no list': ['qwen3-moe', { mlp_only_layers: 1 }, 'ERR_MODEL_CONFIG'],
    'groups that do not divide the experts': ['glm4-moe', { n_group: 3 }, 'ERR_MODEL_CONFIG'],
    'fewer experts in the kept groups than a token chooses, by sigmoid': [
      'deepseek-v3-mla',
      { n_group: 8, topk_group: 1 },
      'ERR_MODEL_CONFIG',
    ],
    'fewer experts in the kept groups than a token chooses, by softmax': [
      'deepseek-v2-mla',
      { n_group: 8, topk_group: 1, topk_method: 'group_limited_greedy' },
      'ERR_MODEL_CONFIG',
    ],
    'another way to choose experts': [
      'deepseek-v2-mla',
      { topk_method: 'noaux_tc' },
      'ERR_UNSUPPORTED_MODEL',
    ],
    'normalised weights in deepseek v2': [
      'deepseek-v2-mla',
      { norm_topk_prob: true },
      'ERR_UNSUPPORTED_MODEL',
    ],
    'biases in latent attention': [
      'deepseek-v3-mla',
      { attention_bias: true },
      'ERR_UNSUPPORTED_MODEL',
    ],
    'fewer KV heads than latent attention has': [
      'deepseek-v3-mla',
      { num_key_value_heads: 4 },
      'ERR_UNSUPPORTED_MODEL',
    ],
    'latent vectors of another size': ['deepseek-v3-mla', { kv_lora_rank: 24 }, 'ERR_TENSOR_SHAPE'],
    'an odd number of rotated columns': [
      'deepseek-v3-mla',
      { qk_rope_head_dim: 7 },
      'ERR_UNSUPPORTED_MODEL',
    ],
    'attention both ways': [
      'gemma3',
      { use_bidirectional_attention: true },
      'ERR_UNSUPPORTED_MODEL',
    ],
    'soft caps in gemma 3': ['gemma3', { attn_logit_softcapping: 50 }, 'ERR_UNSUPPORTED_MODEL'],
    'layer types unknown': [
      'qwen3-qknorm',
      { layer_types: Array(3).fill('mamba') },
      'ERR_UNSUPPORTED_MODEL',
    ],
    'mixed layers in mistral': [
      'mistral-sliding',
      { layer_types: ['full_attention', 'sliding_attention', 'sliding_attention'] },
      'ERR_UNSUPPORTED_MODEL',
    ],
    'layer types of another number': [
      'qwen3-qknorm',
      { layer_types: ['full_attention'] },
      'ERR_MODEL_CONFIG',
    ],
    'no hidden size': ['llama', { hidden_size: null }, 'ERR_MODEL_CONFIG'],
    'a hidden size of zero': ['llama', { hidden_size: 0 }, 'ERR_MODEL_CONFIG'],
    'a hidden size beyond bounds': ['llama', { hidden_size: 2 ** 40 }, 'ERR_MODEL_CONFIG'],
    'a fractional size': ['llama', { num_hidden_layers: 1.5 }, 'ERR_MODEL_CONFIG'],
    'a size as text': ['llama', { num_hidden_layers: '3' }, 'ERR_MODEL_CONFIG'],
    'a million layers': ['llama', { num_hidden_layers: 1_000_000 }, 'ERR_MODEL_CONFIG'],
    'a negative epsilon': ['llama', { rms_norm_eps: -1 }, 'ERR_MODEL_CONFIG'],
    'heads that do not share KV heads evenly': [
      'llama',
      { num_key_value_heads: 3 },
      'ERR_MODEL_CONFIG',
    ],
    'an odd head size': ['llama', { head_dim: 7 }, 'ERR_UNSUPPORTED_MODEL'],
    'a flag that is no flag': ['llama', { attention_bias: 'yes' }, 'ERR_MODEL_CONFIG'],
    'a token outside the vocabulary': ['llama', { eos_token_id: 320 }, 'ERR_MODEL_CONFIG'],
    'a negative token': ['llama', { bos_token_id: -1 }, 'ERR_MODEL_CONFIG'],
    'more layers than the checkpoint has': [
      'llama',
      { num_hidden_layers: 4 },
      'ERR_TENSOR_MISSING',
    ],
    'fewer layers than the checkpoint has': [
      'llama',
      { num_hidden_layers: 2 },
      'ERR_UNSUPPORTED_MODEL',
    ],
    'another vocabulary': ['llama', { vocab_size: 321 }, 'ERR_TENSOR_SHAPE'],
    'another width': ['llama', { intermediate_size: 64 }, 'ERR_TENSOR_SHAPE'],
    'biases that are not there': ['llama', { attention_bias: true }, 'ERR_TENSOR_MISSING'],
    'a head that is not there': [
      'gemma2-softcap',
      { tie_word_embeddings: false },
      'ERR_TENSOR_MISSING',
    ],
  }
  for (const [name, [family, change, code]] of Object.entries(config)) {
    it(name, () => {
      expect(codeOf(() => withConfig(family, change, () => 0))).toBe(code)
    })
  }

  it('other architectures, naming what is supported', () => {
    const change = { architectures: ['MambaForCausalLM'] }
    const error = errorOf(() => withConfig('llama', change, () => 0))
    expect(error.code).toBe('ERR_UNSUPPORTED_MODEL')
    for (const name of supportedArchitectures()) expect(error.message).toContain(name)
  })

  it('folders that hold no model', () => {
    using empty = createFolder({})
    expect(codeOf(() => loadModel(empty.path))).toBe('ERR_MODEL_NOT_FOUND')
    expect(codeOf(() => loadModel(join(empty.path, 'gone')))).toBe('ERR_MODEL_NOT_FOUND')
    empty.write('config.json', JSON.stringify(configOf('llama')))
    expect(codeOf(() => loadModel(empty.path))).toBe('ERR_MODEL_NOT_FOUND')
    for (const text of ['', '[]', '{', '{"a":1,"a":2}', '\uFEFF{}', 'null']) {
      empty.write('config.json', text)
      expect(codeOf(() => loadModel(empty.path))).toBe('ERR_MODEL_CONFIG')
    }
  })
})

describe('layouts and precision', () => {
  const model = loadModel(goldenFolder('llama'))
  const bf16 = loadModel(goldenFolder('llama3-rope-tied-bf16'))
  const compile = (options: Partial<Parameters<typeof compileModel>[1]>, of = model) =>
    compileModel(of, { tensorParallel: 1, parts: 1, precision: 'auto', limits: LIMITS, ...options })

  it('degrees that do not fit are refused, naming those that do', () => {
    for (const tp of [1, 2, 4, 8]) checkLayout(model, tp)
    for (const tp of [0, -1, 1.5, 3, 5, 16, Number.NaN]) {
      const error = errorOf(() => checkLayout(model, tp))
      expect(error.code).toBe('ERR_UNSUPPORTED_LAYOUT')
      expect(error.message).toContain('1, 2, 4, 8')
    }
    expect(codeOf(() => compile({ tensorParallel: 3 }))).toBe('ERR_UNSUPPORTED_LAYOUT')
    expect(codeOf(() => compile({ expertParallel: 2 }))).toBe('ERR_UNSUPPORTED_LAYOUT')
  })

  it('other parts, limits and KV dtypes are refused', () => {
    expect(codeOf(() => compile({ parts: 5 }))).toBe('ERR_PROGRAM')
    expect(codeOf(() => compile({ limits: { ...LIMITS, numBlocks: 0 } }))).toBe('ERR_PROGRAM')
    expect(codeOf(() => compile({ kvDtype: 'u8' }))).toBe('ERR_UNSUPPORTED_OPTION')
  })

  it('dtypes of activations, weights and KV', () => {
    const dtypes = (options: Partial<Parameters<typeof compileModel>[1]>, of: Model) => {
      const { program, activationDtype } = compile(options, of)
      const dtypeOf = (name: string) =>
        program.buffers.find((buffer) => buffer.name === name)!.dtype
      expect(dtypeOf('residual')).toBe(activationDtype)
      return [activationDtype, dtypeOf('layers.0.qkv.weight'), dtypeOf('layers.0.kv')]
    }
    expect(dtypes({ precision: 'auto' }, model)).toEqual(['f32', 'f32', 'f32'])
    expect(dtypes({ precision: 'bf16' }, model)).toEqual(['bf16', 'bf16', 'bf16'])
    expect(dtypes({ precision: 'auto' }, bf16)).toEqual(['bf16', 'bf16', 'bf16'])
    expect(dtypes({ precision: 'f32' }, bf16)).toEqual(['f32', 'bf16', 'f32'])
    expect(dtypes({ kvDtype: 'f16' }, model)).toEqual(['f32', 'f32', 'f16'])
  })

  it('the embedding’s scale is rounded like the activations', () => {
    withConfig('gemma2-softcap', {}, (gemma) => {
      const odd = {
        ...gemma,
        spec: { ...gemma.spec, embedding: { ...gemma.spec.embedding, scale: Math.sqrt(3584) } },
      }
      const scaleAt = (precision: 'f32' | 'bf16') =>
        compile({ precision }, odd).program.ops.find((op) => op.kind === 'embed')!.attrs.scale
      expect(scaleAt('bf16')).toBe(59.75)
      expect(scaleAt('f32')).toBe(Math.fround(Math.sqrt(3584)))
    })
  })

  it('the manifest is the same for every number of parts', () => {
    expect(compile({ parts: 4 }).manifest).toEqual(compile({ parts: 1 }).manifest)
  })

  it('footprints are those of the manifest', () => {
    for (const tensorParallel of [1, 2, 4, 8]) {
      const { manifest } = compile({ tensorParallel })
      const bytes = (space: string) =>
        manifest.buffers
          .filter((buffer) => buffer.space === space)
          .reduce(
            (sum, { shape, dtype }) => sum + shape.reduce((a, b) => a * b, DTYPE_BYTES[dtype]),
            0,
          )
      const footprint = modelFootprint(model, { tensorParallel, precision: 'auto' })
      expect(footprint.weightBytesPerRank).toBe(bytes('weight'))
      expect(footprint.kvBytesPerBlock(LIMITS.blockSize) * LIMITS.numBlocks).toBe(bytes('kv'))
    }
    const { parameters } = modelFootprint(bf16, { tensorParallel: 1, precision: 'f32' })
    const data = [...bf16.tensors.tensors.values()].reduce((sum, { bytes }) => sum + bytes / 2, 0)
    expect(parameters).toBe(data)
  })
})
