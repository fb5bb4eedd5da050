/** Text: tokenizers, streaming detokenizers and chat templates of a model folder. */

export { loadChatTemplate } from './chat-template.ts'
export { loadTokenizer } from './tokenizer.ts'
export type {
  ChatMessage,
  ChatTemplate,
  DecodeOptions,
  Detokenizer,
  EncodeOptions,
  RenderOptions,
  Tokenizer,
} from './types.ts'
