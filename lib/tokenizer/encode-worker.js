// @ts-check
/**
 * Tokenizes long texts in a thread of its own, started by background-encoder.ts. Plain JavaScript, so
 * that it runs the same from lib/ and from dist/.
 *
 * Request: { text, addSpecialTokens }. Answer: { ids } or { error }.
 */

import { parentPort, workerData } from 'node:worker_threads'
import { Tokenizer } from '@huggingface/tokenizers'

const { file, config } = workerData
const encoder = new Tokenizer(file, config)

parentPort?.on(
  'message',
  (/** @type {{ text: string, addSpecialTokens: boolean }} */ { text, addSpecialTokens }) => {
    let answer
    try {
      answer = { ids: encoder.encode(text, { add_special_tokens: addSpecialTokens }).ids }
    } catch (error) {
      answer = { error: error instanceof Error ? error.message : String(error) }
    }
    parentPort?.postMessage(answer)
  },
)
