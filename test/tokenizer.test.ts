/**
 * Tokenizers against references: the shipped models' expected ids and texts, and small tokenizers
 * of the common kinds with encodings and decodings made by Hugging Face's `tokenizers` 0.23
 * (fixtures/tokenizers). Then files that must be refused.
 */

import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { loadTokenizer, type Tokenizer } from '../lib/tokenizer/index.ts'

let scratch: string

beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'nanoweave-tokenizer-'))
})
afterAll(() => rm(scratch, { recursive: true, force: true }))

interface ExpectedCase {
  readonly prompt?: string
  readonly rendered?: string
  readonly prompt_ids: number[]
  readonly greedy_ids: number[]
  readonly text: string
  readonly text_with_special: string
}

interface Reference {
  readonly encode: readonly { text: string; ids: number[]; withBos: number[] }[]
  readonly decode: readonly { ids: number[]; skip: boolean; text: string }[]
}

async function load(folder: string): Promise<Tokenizer> {
  return (await loadTokenizer(folder))!
}

async function readJson<T>(path: string): Promise<T> {
  return JSON.parse(await readFile(path, 'utf8')) as T
}

describe.each(['tiny-dense', 'tiny-moe'])('%s', (model) => {
  it('encodes and decodes every expected case', async () => {
    const folder = `models/${model}`
    const tokenizer = await load(folder)
    const { cases } = await readJson<{ cases: ExpectedCase[] }>(`${folder}/expected.json`)
    expect(cases.length).toBeGreaterThan(0)
    for (const entry of cases) {
      const ids =
        entry.prompt === undefined
          ? tokenizer.encode(entry.rendered!)
          : tokenizer.encode(entry.prompt, { addBos: true })
      expect(ids).toEqual(entry.prompt_ids)
      expect(tokenizer.decode(entry.greedy_ids)).toBe(entry.text)
      expect(tokenizer.decode(entry.greedy_ids, { skipSpecialTokens: false })).toBe(
        entry.text_with_special,
      )
    }
  })

  it('knows its size and its special tokens', async () => {
    const tokenizer = await load(`models/${model}`)
    const { vocab } = (
      await readJson<{ model: { vocab: Record<string, number> } }>(`models/${model}/tokenizer.json`)
    ).model
    expect(tokenizer.vocabSize).toBe(Math.max(...Object.values(vocab)) + 1)
    expect([0, 1, 2, 3, 4, 5, 6, 7].every((id) => tokenizer.isSpecial(id))).toBe(true)
    expect(tokenizer.isSpecial(8)).toBe(false)
    expect(tokenizer.isSpecial(tokenizer.vocabSize)).toBe(false)
  })
})

const kinds = ['llama-spm', 'gemma-spm', 'byte-level', 'unigram-metaspace']

describe.each(kinds)('%s against the reference', (kind) => {
  const folder = `test/fixtures/tokenizers/${kind}`

  it('encodes', async () => {
    const tokenizer = await load(folder)
    const { encode } = await readJson<Reference>(`${folder}/reference.json`)
    for (const { text, ids, withBos } of encode) {
      expect(tokenizer.encode(text), JSON.stringify(text)).toEqual(ids)
      expect(tokenizer.encode(text, { addBos: true }), JSON.stringify(text)).toEqual(withBos)
    }
  })

  it('decodes', async () => {
    const tokenizer = await load(folder)
    const { decode } = await readJson<Reference>(`${folder}/reference.json`)
    for (const { ids, skip, text } of decode) {
      const ours = tokenizer.decode(ids, { skipSpecialTokens: skip })
      // An invalid run of byte tokens: one U+FFFD per byte there, per invalid part here.
      if (kind.endsWith('-spm') && text.includes('\ufffd')) expect(ours).toContain('\ufffd')
      else expect(ours, JSON.stringify(ids)).toBe(text)
    }
  })
})

describe('in the background', () => {
  const long = 'Once upon a time there was a fox named Ada. 12 + 7 = 19. <|end|> Zoë 🦊\n'.repeat(
    200,
  )

  it.each(kinds)('%s gives the same ids, with the event loop free', async (kind) => {
    const tokenizer = await load(join('test/fixtures/tokenizers', kind))
    let turns = 0
    const timer = setInterval(() => turns++, 1)
    try {
      const options = [{}, { addBos: true }]
      const ids = await Promise.all(options.map((each) => tokenizer.encodeInBackground(long, each)))
      expect(turns).toBeGreaterThan(0)
      expect(ids).toEqual(options.map((each) => tokenizer.encode(long, each)))
      expect(await tokenizer.encodeInBackground('short')).toEqual(tokenizer.encode('short'))
    } finally {
      clearInterval(timer)
      await tokenizer.close()
    }
  })

  it('ends with close: what waits gets ERR_CLOSED', async () => {
    const tokenizer = await load('models/tiny-dense')
    await tokenizer.warmUp()
    const pending = [tokenizer.encodeInBackground(long), tokenizer.encodeInBackground(long)]
    const settled = Promise.allSettled(pending)
    await tokenizer.close()
    for (const result of await settled)
      expect(result).toMatchObject({ status: 'rejected', reason: { code: 'ERR_CLOSED' } })
    await expect(tokenizer.encodeInBackground(long)).rejects.toMatchObject({ code: 'ERR_CLOSED' })
  })
})

describe('special tokens named in tokenizer_config.json', () => {
  it('are special though tokenizer.json does not list them, and are found in text', async () => {
    const folder = await mkdtemp(join(scratch, 'named-'))
    await cp('test/fixtures/tokenizers/byte-level', folder, { recursive: true })
    const file = await readJson<{ added_tokens: unknown[]; model: { vocab: object } }>(
      join(folder, 'tokenizer.json'),
    )
    file.added_tokens = []
    await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(file))
    const tokenizer = await load(folder)
    expect(tokenizer.isSpecial(1)).toBe(true)
    expect(tokenizer.encode('<s></s>')).toEqual([1, 2])
    expect(tokenizer.decode([1, 2])).toBe('')
  })

  it('add_bos_token adds it where the post-processor does not', async () => {
    const folder = await mkdtemp(join(scratch, 'bos-'))
    await cp('test/fixtures/tokenizers/byte-level', folder, { recursive: true })
    const file = await readJson<{ post_processor: unknown }>(join(folder, 'tokenizer.json'))
    file.post_processor = null
    await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(file))
    await writeFile(
      join(folder, 'tokenizer_config.json'),
      JSON.stringify({ bos_token: '<s>', add_bos_token: true }),
    )
    const tokenizer = await load(folder)
    const plain = tokenizer.encode('Once')
    expect(plain[0]).not.toBe(1)
    expect(tokenizer.encode('Once', { addBos: true })).toEqual([1, ...plain])
  })
})

describe('files', () => {
  type Change = (file: Record<string, unknown>) => void
  const base = 'test/fixtures/tokenizers/byte-level/tokenizer.json'

  async function loadChanged(change: Change): Promise<unknown> {
    const folder = await mkdtemp(join(scratch, 'changed-'))
    const file = await readJson<Record<string, unknown>>(base)
    change(file)
    await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(file))
    return loadTokenizer(folder)
  }

  it('a folder without tokenizer.json has no tokenizer', async () => {
    expect(await loadTokenizer('test/fixtures/golden/llama')).toBeUndefined()
  })

  it('an unchanged copy loads', async () => {
    await expect(loadChanged(() => {})).resolves.toBeDefined()
  })

  const regex = (pattern: string): Change => {
    return (file) => {
      file.pre_tokenizer = { type: 'Split', pattern: { Regex: pattern }, behavior: 'Isolated' }
    }
  }
  const refused: Readonly<Record<string, Change>> = {
    'no model': (file) => delete file.model,
    'an unknown model': (file) => {
      file.model = { type: 'Quantum' }
    },
    'a huge id': (file) => {
      ;(file.model as { vocab: Record<string, number> }).vocab.x = 2 ** 31
    },
    'a negative id': (file) => {
      ;(file.model as { vocab: Record<string, number> }).vocab.x = -1
    },
    'merges that are no pairs': (file) => {
      ;(file.model as { merges: unknown }).merges = [['a'], 3]
    },
    'an added token with a huge id': (file) => {
      file.added_tokens = [{ id: 1e9, content: 'x', special: true }]
    },
    'added tokens that are no list': (file) => {
      file.added_tokens = 'x'
    },
    'a fixed-length splitter': (file) => {
      file.pre_tokenizer = { type: 'FixedLength', length: 0 }
    },
    'normalisers that multiply': (file) => {
      const rule = { type: 'Replace', pattern: { String: 'a' }, content: 'aaaaaaaa' }
      file.normalizer = { type: 'Sequence', normalizers: Array(12).fill(rule) }
    },
    'a nested sequence': (file) => {
      let nested: object = { type: 'NFC' }
      for (let i = 0; i < 50; i++) nested = { type: 'Sequence', normalizers: [nested] }
      file.normalizer = nested
    },
    'an unknown decoder': (file) => {
      file.decoder = { type: 'CTC' }
    },
    'Strip before ByteLevel on joined text': (file) => {
      file.decoder = { type: 'Sequence', decoders: [{ type: 'Fuse' }, { type: 'Metaspace' }] }
    },
    'an exponential pattern': regex('(a+)+b'),
    'an exponential alternation': regex('(?:a|a)*b'),
    'many repetitions in a row': regex('\\s*\\s*\\s*\\s*x'),
    'a back-reference': regex('(a)\\1'),
    'a repeated group of repetitions': regex('(?:a{1,9}){40}'),
    'an invalid pattern': regex('(a'),
  }

  it.each(Object.keys(refused))('refuses %s', async (name) => {
    await expect(loadChanged(refused[name]!)).rejects.toMatchObject({ code: 'ERR_TOKENIZER' })
  })

  it.each([
    ["[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{M}]*[\\p{Ll}\\p{M}]+(?i:'s|'t|'re)?|\\p{N}{1,3}"],
    ['[!"#$%&\'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|\\s+(?!\\S)|\\s+'],
    ["'s|'t| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"],
    ['\\p{N}{1,3}(?=(?:\\p{N}{3})*(?!\\p{N}))|[一-龥]+'],
  ])('accepts the pattern %s', async (pattern) => {
    await expect(loadChanged(regex(pattern))).resolves.toBeDefined()
  })

  it.each(['', '{', '[]', '{"model":', '\u0000', 'null'])('refuses the text %j', async (text) => {
    const folder = await mkdtemp(join(scratch, 'text-'))
    await writeFile(join(folder, 'tokenizer.json'), text)
    await expect(loadTokenizer(folder)).rejects.toMatchObject({ code: 'ERR_TOKENIZER' })
  })

  it('refuses a malformed tokenizer_config.json', async () => {
    const folder = await mkdtemp(join(scratch, 'config-'))
    await cp('test/fixtures/tokenizers/byte-level', folder, { recursive: true })
    await writeFile(join(folder, 'tokenizer_config.json'), '[1]')
    await expect(loadTokenizer(folder)).rejects.toMatchObject({ code: 'ERR_TOKENIZER' })
  })

  it('survives mutated files: loads and encodes, or ERR_TOKENIZER', async () => {
    const original = await readFile(base)
    // A fixed linear congruential sequence: failures repeat.
    let state = 12345
    const random = (below: number): number => {
      state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff
      return state % below
    }
    const folder = await mkdtemp(join(scratch, 'mutated-'))
    let accepted = 0
    let rejected = 0
    for (let round = 0; round < 150; round++) {
      const bytes = Buffer.from(original)
      for (let i = 0; i <= random(4); i++) {
        const at = random(bytes.length)
        if (random(2) === 0) bytes[at] = '{}[]":,0-9eE.nul\\ '.charCodeAt(random(17))
        else bytes.copyWithin(at, random(bytes.length), random(bytes.length))
      }
      await writeFile(join(folder, 'tokenizer.json'), bytes)
      try {
        const tokenizer = (await loadTokenizer(folder))!
        tokenizer.decode(tokenizer.encode('Once upon a time, 42 Größe 😀', { addBos: true }))
        accepted++
      } catch (error) {
        expect(error).toMatchObject({ code: 'ERR_TOKENIZER' })
        rejected++
      }
    }
    expect(accepted).toBeGreaterThan(0)
    expect(rejected).toBeGreaterThan(0)
  })
})
