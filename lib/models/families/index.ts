/** All model families. A family is a file and a line. */

import type { Family } from './common.ts'
import { deepseekV2, deepseekV3 } from './deepseek.ts'
import { gemma2, gemma3 } from './gemma.ts'
import { glm4Moe } from './glm.ts'
import { gptOss } from './gpt-oss.ts'
import { llama } from './llama.ts'
import { mistral } from './mistral.ts'
import { mixtral } from './mixtral.ts'
import { olmoe } from './olmoe.ts'
import { phi3 } from './phi3.ts'
import { qwen2, qwen3 } from './qwen.ts'
import { qwen2Moe, qwen3Moe } from './qwen-moe.ts'

export const FAMILIES: readonly Family[] = [
  llama,
  mistral,
  qwen2,
  qwen3,
  phi3,
  gemma2,
  gemma3,
  mixtral,
  qwen2Moe,
  qwen3Moe,
  olmoe,
  glm4Moe,
  gptOss,
  deepseekV2,
  deepseekV3,
]

/** By a name that `architectures[0]` of a config may have. */
export function findFamily(architecture: string): Family | undefined {
  return FAMILIES.find(({ architectures }) => architectures.includes(architecture))
}
