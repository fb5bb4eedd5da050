/** Engine.dispatch: told of chunks, the same ones that streams give; a step's after the next is on its way. */

import { describe, expect, it } from 'vitest'
import type { Engine } from '../lib/engine/engine.ts'
import { Generation } from '../lib/engine/generation.ts'
import type { GenerateChunk, GenerateManyRequest } from '../lib/engine/types.ts'
import type { EngineError } from '../lib/errors.ts'
import { collect, open, prompt, turns } from './support/fake-engine.ts'

interface Heard {
  readonly chunks: GenerateChunk[][]
  readonly errors: unknown[]
}

/** Runs a request to the ends of all its outputs. `onChunk` may throw. */
function dispatch(
  engine: Engine,
  request: GenerateManyRequest,
  onChunk: (index: number, chunk: GenerateChunk) => void = () => {},
): Promise<Heard> {
  const chunks: GenerateChunk[][] = Array.from({ length: request.n }, () => [])
  const errors: unknown[] = []
  let numOpen = request.n
  return new Promise((resolve) => {
    const end = () => {
      if (--numOpen === 0) resolve({ chunks, errors })
    }
    engine.dispatch(request, {
      onChunk(index, chunk) {
        onChunk(index, chunk)
        chunks[index].push(chunk)
        if (chunk.finishReason !== undefined) end()
      },
      onError(index, error) {
        errors[index] = error
        end()
      },
    })
  })
}

const tokensOf = (chunks: readonly GenerateChunk[]) => chunks.flatMap(({ tokens }) => tokens)
const codeOf = (error: unknown) => (error as EngineError).code
const REQUEST = { tokens: prompt(20), n: 3, maxTokens: 12, temperature: 1, seed: 3, logprobs: true }

describe('dispatch', () => {
  it.each([[undefined], [{}], [{ onChunk: () => {} }]])(
    'refuses the handler %j',
    async (handler) => {
      const { engine } = await open()
      expect(() => engine.dispatch(REQUEST, handler as never)).toThrow('handler')
    },
  )

  it('tells what streams give, a chunk for each token', async () => {
    const { engine } = await open()
    const streams = await Promise.all(engine.generateMany(REQUEST).map(collect))
    const { chunks, errors } = await dispatch(engine, REQUEST)
    expect(chunks.map(tokensOf)).toEqual(streams.map(({ tokens }) => tokens))
    for (const output of chunks) {
      for (const { tokens, logprobs } of output)
        expect([tokens.length, logprobs?.length]).toEqual([1, 1])
      expect(output.at(-1)).toMatchObject({ usage: { promptTokens: 20 } })
      expect(output.filter(({ finishReason }) => finishReason !== undefined)).toHaveLength(1)
    }
    expect(errors).toEqual([])
  })

  it('tells of a step once the next one is submitted', async () => {
    const { engine, runtime } = await open({ pipelineDepth: 2 })
    const submitted: number[] = []
    await dispatch(engine, { ...REQUEST, n: 1, ignoreEos: true }, () => {
      submitted.push(runtime.steps.length)
    })
    // The first token comes from step 1; steps 2 and 3 are on their way when it is handed out.
    expect(submitted.slice(0, 8)).toEqual([3, 4, 5, 6, 7, 8, 9, 10])
  })

  it('ends an output with what its callback throws, and no other', async () => {
    const { engine } = await open()
    const mistake = new Error('mine')
    const { chunks, errors } = await dispatch(engine, { ...REQUEST, ignoreEos: true }, (index) => {
      if (index === 1) throw mistake
    })
    expect(chunks.map(({ length }) => length)).toEqual([12, 0, 12])
    expect(errors).toEqual([undefined, mistake])
    expect(engine.stats().finished).toEqual({ stop: 0, length: 2, abort: 1 })
  })

  it('ends an output with what its callback throws at the last token', async () => {
    const { engine } = await open()
    const mistake = new Error('mine')
    const { errors } = await dispatch(engine, { ...REQUEST, n: 1 }, (_, chunk) => {
      if (chunk.finishReason !== undefined) throw mistake
    })
    expect(errors).toEqual([mistake])
  })

  it('ends with its signal, from within a callback too; nothing is told after it', async () => {
    const { engine } = await open()
    const controller = new AbortController()
    const request = { ...REQUEST, ignoreEos: true, signal: controller.signal }
    const { chunks, errors } = await dispatch(engine, request, (index, { tokens }) => {
      if (index === 0 && tokens.length > 0) controller.abort()
    })
    expect(errors.map(codeOf)).toEqual(Array(3).fill('ERR_ABORTED'))
    expect(chunks.slice(1).every(({ length }) => length <= 1)).toBe(true)
    const { running, waiting, finished } = engine.stats()
    expect([running, waiting, finished.abort]).toEqual([0, 0, 3])
  })

  it('warns of what onError throws, which ends nothing else', async () => {
    const { engine } = await open()
    const warnings: Error[] = []
    const onWarning = (warning: Error) => warnings.push(warning)
    process.on('warning', onWarning)
    try {
      const other = engine.complete({ tokens: prompt(9), maxTokens: 30, ignoreEos: true })
      const controller = new AbortController()
      let numErrors = 0
      const wrong = {
        onChunk() {
          throw new Error('mine')
        },
        onError() {
          numErrors++
          throw new Error('mine too')
        },
      }
      engine.dispatch({ ...REQUEST, tokens: [-1] }, wrong)
      engine.dispatch(REQUEST, wrong)
      engine.dispatch({ ...REQUEST, signal: controller.signal }, { ...wrong, onChunk() {} })
      await turns(3)
      controller.abort()
      expect((await other).tokens).toHaveLength(30)
      expect(numErrors).toBe(9)
      expect(warnings.map(({ name }) => name)).toEqual(Array(9).fill('NanoweaveWarning'))
      expect(warnings[0].message).toContain('mine too')
      expect(engine.stats()).toMatchObject({ running: 0, waiting: 0 })
      expect(engine.stats().failed).toBe(undefined)
    } finally {
      process.off('warning', onWarning)
    }
  })

  it('calls onQueued of no output once it threw', async () => {
    const { engine } = await open()
    const mistake = new Error('mine')
    const queued: number[] = []
    const onQueued = (_: number, index: number) => {
      queued.push(index)
      throw mistake
    }
    const { errors } = await dispatch(engine, { ...REQUEST, onQueued })
    expect([queued, errors]).toEqual([[0], [mistake, mistake, mistake]])
  })

  it('waits for a grammar as long as any of its outputs is wanted', async () => {
    let waiting: AbortSignal | undefined
    const constraints = {
      read: () => ({ source: '', specialTokens: [] }),
      open: (_: unknown, __: unknown, signal: AbortSignal) => {
        waiting = signal
        return new Promise(() => {})
      },
    }
    const context = { constraints, requireOpen() {}, promptTokens: async () => [1] }
    const handler = { onChunk() {}, onError() {} }
    const generation = new Generation(REQUEST, 2, context as never, handler)
    generation.start()
    await turns(1)
    generation.leave(0)
    expect(waiting?.aborted).toBe(false)
    generation.leave(1)
    expect(waiting?.aborted).toBe(true)
  })

  it('throws for unknown names, and tells of what else is wrong', async () => {
    const { engine } = await open()
    await expect(dispatch(engine, { ...REQUEST, wrong: 1 } as never)).rejects.toThrow('wrong')
    const { errors } = await dispatch(engine, { ...REQUEST, tokens: [-1] })
    expect(errors.map(codeOf)).toEqual(Array(3).fill('ERR_USAGE'))
    await engine.close()
    const closed = await dispatch(engine, REQUEST)
    expect(closed.errors.map(codeOf)).toEqual(Array(3).fill('ERR_CLOSED'))
  })
})
