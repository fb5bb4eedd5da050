/** All model families. A family is a file and a line. */

import type { Family } from './common.ts'
import { gemma2, gemma3 } from './gemma.ts'
import { llama } from './llama.ts'
import { mistral } from './mistral.ts'
import { phi3 } from './phi3.ts'
import { qwen2, qwen3 } from './qwen.ts'

export const FAMILIES: readonly Family[] = [llama, mistral, qwen2, qwen3, phi3, gemma2, gemma3]

/** By a name that `architectures[0]` of a config may have. */
export function findFamily(architecture: string): Family | undefined {
  return FAMILIES.find(({ architectures }) => architectures.includes(architecture))
}
