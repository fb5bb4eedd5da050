import { pathToFileURL } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Engine } from '../lib/index.ts'

const MODEL = 'models/tiny-dense'

/** The code of what `run` throws or rejects with. */
async function codeOf(run: () => unknown): Promise<unknown> {
  try {
    await run()
  } catch (error) {
    return (error as { code?: unknown }).code
  }
  return 'nothing thrown'
}

describe('what callers get wrong', () => {
  let engine: Engine
  beforeAll(async () => {
    engine = await Engine.load(pathToFileURL(MODEL), { precision: 'f32', kvCacheBytes: 8 << 20 })
  })
  afterAll(() => engine.close())

  it('loads from a file URL in text form too', async () => {
    const other = await Engine.load(pathToFileURL(MODEL).href, { kvCacheBytes: 8 << 20 })
    expect(other.info.vocabSize).toBe(2048)
    await other.close()
  })

  it.each([undefined, 5, '', null, new URL('http://localhost/model')])(
    'refuses the folder %s',
    async (folder) => {
      expect(await codeOf(() => Engine.load(folder as never))).toBe('ERR_USAGE')
    },
  )

  it.each([
    { tp: 2 },
    { tensorparallel: 2 },
    { prefixCache: 'no' },
    { deterministic: 1 },
    null,
    [],
  ])('refuses the engine options %j', async (options) => {
    expect(await codeOf(() => Engine.load(MODEL, options as never))).toBe('ERR_USAGE')
  })

  it.each([{ max_tokens: 5 }, { maxtokens: 5 }, { maxTokens: 2, nonsense: true }])(
    'refuses the request fields %j',
    async (fields) => {
      const request = { prompt: 'Once', ...fields } as never
      expect(await codeOf(() => engine.complete(request))).toBe('ERR_USAGE')
      expect(await codeOf(() => engine.generate(request).next())).toBe('ERR_USAGE')
    },
  )

  it('names the option that was meant', async () => {
    await expect(Engine.load(MODEL, { tp: 2 } as never)).rejects.toThrow(/tensorParallel/)
    await expect(engine.complete({ prompt: 'Once', max_tokens: 5 } as never)).rejects.toThrow(
      /maxTokens/,
    )
  })

  it('joins text parts of a message, and refuses other content', async () => {
    const ask = (content: unknown) =>
      engine.tokenize({ messages: [{ role: 'user', content } as never] })
    const plain = await ask('Hello!\nHow are you?')
    expect(
      await ask([
        { type: 'text', text: 'Hello!' },
        { type: 'text', text: 'How are you?' },
      ]),
    ).toEqual(plain)
    const image = [{ type: 'image_url', image_url: { url: 'data:,' } }]
    expect(await codeOf(() => ask(image))).toBe('ERR_UNSUPPORTED_OPTION')
    for (const content of [5, { text: 'Hello' }, [{ type: 'text', text: 5 }]])
      expect(await codeOf(() => ask(content))).toBe('ERR_USAGE')
    expect(await codeOf(() => ask([null]))).toBe('ERR_UNSUPPORTED_OPTION')
  })

  it('takes tokens as an Int32Array', async () => {
    const fromArray = await engine.forward([1, 5, 9])
    const fromTyped = await engine.forward(new Int32Array([1, 5, 9]))
    expect(fromTyped.shape).toEqual([3, 2048])
    expect(fromTyped.logits).toEqual(fromArray.logits)
    expect(await codeOf(() => engine.forward('abc' as never))).toBe('ERR_USAGE')
    expect(await codeOf(() => engine.score([1, 2], { deadline: 5 } as never))).toBe('ERR_USAGE')
  })

  it("hands a callback's error back as it is", async () => {
    const mine = new Error('mine')
    const onQueued = () => {
      throw mine
    }
    await expect(engine.complete({ prompt: 'Once', maxTokens: 2, onQueued })).rejects.toBe(mine)
    const onProgress = () => {
      throw mine
    }
    await expect(Engine.load(MODEL, { onProgress })).rejects.toBe(mine)
    await expect.poll(() => engine.stats().kvBlocks.used).toBe(0)
  })
})
