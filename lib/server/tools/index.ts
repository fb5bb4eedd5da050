/** Formats of tool calls: a file each, and a line below. The first that a vocabulary shows is used. */

import type { Tokenizer } from '../../tokenizer/index.ts'
import { gptOssFormat } from './gpt-oss.ts'
import { hermesFormat } from './hermes.ts'
import { llama3Format } from './llama3-json.ts'
import { mistralFormat } from './mistral.ts'
import type { OutputParser, ToolFormat } from './types.ts'

export { ReasoningParser, THINK_CLOSE, THINK_OPEN } from './reasoning.ts'
export type { CallRules, OfferedCall, OutputParser, OutputPart, ToolFormat } from './types.ts'

export const TOOL_FORMATS: readonly ToolFormat[] = [
  hermesFormat,
  mistralFormat,
  gptOssFormat,
  llama3Format,
]

/** Models without a token of their own for calls are mostly taught Hermes' format as plain text. */
export function detectToolFormat(tokenizer: Tokenizer): ToolFormat {
  return TOOL_FORMATS.find((format) => format.detect(tokenizer)) ?? hermesFormat
}

/** Everything is content. */
export function createPlainParser(): OutputParser {
  return {
    push: (text) => (text === '' ? [] : [{ kind: 'content', text }]),
    finish: () => [],
  }
}
