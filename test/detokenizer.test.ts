/**
 * Streaming detokenizers: whatever the grouping of ids, the pushes and the finish joined are
 * `decode` of all ids, and no push ends inside a code point.
 */

import { describe, expect, it } from 'vitest'
import { loadTokenizer, type Tokenizer } from '../lib/tokenizer/index.ts'

const folders = [
  'models/tiny-dense',
  'test/fixtures/tokenizers/llama-spm',
  'test/fixtures/tokenizers/gemma-spm',
  'test/fixtures/tokenizers/byte-level',
  'test/fixtures/tokenizers/unigram-metaspace',
]

const texts = [
  'Once upon a time',
  '  two  spaces ',
  'Größe, naïve café — ça va?',
  '日本語のテキスト',
  '😀😃 👨‍👩‍👧 🇩🇪',
  'tabs\tand\n\nnewlines\r\n',
]

/** A fixed linear congruential sequence: a failure repeats. */
function createRandom(seed: number): (below: number) => number {
  let state = seed
  return (below) => {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff
    return (state >>> 8) % below
  }
}

function stream(
  tokenizer: Tokenizer,
  ids: readonly number[],
  skipSpecialTokens: boolean,
  groupSize: () => number,
): string {
  const detokenizer = tokenizer.detokenizer({ skipSpecialTokens })
  let text = ''
  for (let i = 0; i < ids.length; ) {
    const size = groupSize()
    const piece = detokenizer.push(ids.slice(i, i + size))
    expect(piece.isWellFormed()).toBe(true)
    text += piece
    i += size
  }
  const rest = detokenizer.finish()
  expect(rest.isWellFormed()).toBe(true)
  return text + rest
}

describe.each(folders)('%s', (folder) => {
  it('streams real text, one token at a time', async () => {
    const tokenizer = (await loadTokenizer(folder))!
    for (const text of texts) {
      const ids = tokenizer.encode(text)
      expect(stream(tokenizer, ids, true, () => 1)).toBe(tokenizer.decode(ids))
    }
  })

  it('agrees with decode on random ids, for any grouping', async () => {
    const tokenizer = (await loadTokenizer(folder))!
    const random = createRandom(folder.length)
    for (let round = 0; round < 2000; round++) {
      const ids = Array.from({ length: random(24) }, () => random(tokenizer.vocabSize + 2))
      const skip = random(2) === 0
      const whole = tokenizer.decode(ids, { skipSpecialTokens: skip })
      expect(
        stream(tokenizer, ids, skip, () => 1 + random(4)),
        `${folder} ${JSON.stringify(ids)}`,
      ).toBe(whole)
    }
  })
})

/** In the fixtures `<0x00>` comes after three special tokens. */
const firstByteToken = 3

describe('what is held back', () => {
  it('half a code point of a byte-level vocabulary, until it is whole', async () => {
    const tokenizer = (await loadTokenizer('models/tiny-dense'))!
    const ids = tokenizer.encode('😀')
    expect(ids.length).toBeGreaterThan(1)
    const detokenizer = tokenizer.detokenizer()
    for (const id of ids.slice(0, -1)) expect(detokenizer.push([id])).toBe('')
    expect(detokenizer.push(ids.slice(-1))).toBe('😀')
    expect(detokenizer.finish()).toBe('')
  })

  it('comes out as U+FFFD when it never becomes whole', async () => {
    const tokenizer = (await loadTokenizer('models/tiny-dense'))!
    const detokenizer = tokenizer.detokenizer()
    expect(detokenizer.push(tokenizer.encode('😀').slice(0, 1))).toBe('')
    expect(detokenizer.finish()).toBe('\ufffd')
  })

  it('byte-fallback characters are emitted as soon as they are whole', async () => {
    const tokenizer = (await loadTokenizer('test/fixtures/tokenizers/gemma-spm'))!
    const byteToken = (byte: number): number => firstByteToken + byte
    const ids = [...new TextEncoder().encode('é😀')].map(byteToken)
    const detokenizer = tokenizer.detokenizer()
    expect(ids.map((id) => detokenizer.push([id]))).toEqual(['', 'é', '', '', '', '😀'])
  })

  it('the first space of a sentence-piece text goes, later ones stay', async () => {
    const tokenizer = (await loadTokenizer('test/fixtures/tokenizers/llama-spm'))!
    const ids = tokenizer.encode('a b')
    const detokenizer = tokenizer.detokenizer()
    expect(detokenizer.push([1])).toBe('')
    expect(detokenizer.push(ids) + detokenizer.finish()).toBe('a b')
  })
})
