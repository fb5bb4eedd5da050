/** The clients people use, unmodified, against the demo model. */

import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { HumanMessage, ToolMessage, type UsageMetadata } from '@langchain/core/messages'
import { ChatOpenAI, OpenAIEmbeddings } from '@langchain/openai'
import { embed, generateText, jsonSchema, stepCountIs, streamText, tool } from 'ai'
import OpenAI from 'openai'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { expectBaseline, type Running, serveDemo, serveFake } from './support.ts'

const KEY = 'test-key'
const QUESTION = 'What is 3 + 4?'
const WEATHER = 'What is the weather in Paris?'
const PARAMETERS = {
  type: 'object' as const,
  properties: { city: { type: 'string' as const } },
  required: ['city'],
}

let running: Running
let baseURL: string
let answer: string
beforeAll(async () => {
  running = await serveDemo({ apiKeys: [KEY] })
  baseURL = `${running.url}/v1`
  const { engine } = running
  const messages = [{ role: 'user', content: QUESTION }]
  answer = (await engine.complete({ messages, temperature: 0 })).text
})
afterAll(() => running.close())
afterEach(() => expectBaseline(running))

/** A server that refuses the third request at once, and must have done so. */
async function whileBusy(
  use: (baseURL: string, fetchCounted: typeof fetch) => Promise<void>,
): Promise<void> {
  const busy = await serveFake({}, { maxNumSeqs: 1, maxWaiting: 1 }, { latencyMs: 5 })
  const statuses: number[] = []
  try {
    await use(`${busy.url}/v1`, async (url, init) => {
      const response = await fetch(url, init)
      statuses.push(response.status)
      return response
    })
    expect(statuses).toContain(429)
    expect(statuses.filter((status) => status === 200)).toHaveLength(4)
    await expectBaseline(busy)
  } finally {
    await busy.close()
  }
}

describe('openai', () => {
  const create = () => new OpenAI({ apiKey: KEY, baseURL, maxRetries: 0 })
  const messages = [{ role: 'user' as const, content: QUESTION }]
  const model = 'tiny-dense'

  it('chats, lists models', async () => {
    const client = create()
    const { choices, usage } = await client.chat.completions.create({ model, messages })
    expect(choices[0].message.content).toBe(answer)
    expect(usage?.completion_tokens).toBeGreaterThan(3)
    const models = await client.models.list()
    expect(models.data.map(({ id }) => id)).toEqual([model])
    expect((await client.models.retrieve(model)).id).toBe(model)
    const text = await client.completions.create({ model, prompt: 'Once upon a time' })
    expect(text.choices[0].finish_reason).toBe('length')
  })

  it('streams, with usage', async () => {
    const stream = await create().chat.completions.create({
      model,
      messages,
      stream: true,
      stream_options: { include_usage: true },
    })
    let text = ''
    let total = 0
    for await (const { choices, usage } of stream) {
      text += choices[0]?.delta.content ?? ''
      total += usage?.total_tokens ?? 0
    }
    expect(text).toBe(answer)
    expect(total).toBeGreaterThan(10)
  })

  it('goes round with a tool', async () => {
    const asked: unknown[] = []
    const runner = create().chat.completions.runTools({
      model,
      stream: true,
      messages: [{ role: 'user', content: WEATHER }],
      tools: [
        {
          type: 'function',
          function: {
            name: 'get_weather',
            description: 'Weather of a city',
            parameters: PARAMETERS,
            parse: JSON.parse,
            function: (args: object) => {
              asked.push(args)
              return 'sunny, 21 degrees'
            },
          },
        },
      ],
    })
    const last = await runner.finalContent()
    expect(asked[0]).toEqual({ city: 'Paris' })
    expect(last?.length).toBeGreaterThan(0)
  })

  it('aborts', async () => {
    const stream = await create().chat.completions.create({
      model,
      messages,
      stream: true,
      ...{ ignore_eos: true },
    })
    for await (const _ of stream) break
    await expectBaseline(running)
    expect(running.engine.stats().finished.abort).toBeGreaterThan(0)
  })

  it('reports errors with their classes', async () => {
    const client = create()
    const codeOf = async (promise: Promise<unknown>) =>
      promise.then(
        () => 'none',
        (error: { constructor: { name: string }; code: string }) =>
          `${error.constructor.name} ${error.code}`,
      )
    expect(await codeOf(client.embeddings.create({ model, input: 'x' }))).toBe(
      'BadRequestError embeddings_not_supported',
    )
    expect(await codeOf(client.chat.completions.create({ model: 'no', messages }))).toBe(
      'NotFoundError model_not_found',
    )
    const stranger = new OpenAI({ apiKey: 'wrong', baseURL, maxRetries: 0 })
    expect(await codeOf(stranger.models.list())).toBe('AuthenticationError invalid_api_key')
  })

  it('tries again after 429', async () => {
    await whileBusy(async (url, fetchCounted) => {
      const client = new OpenAI({
        apiKey: '-',
        baseURL: url,
        maxRetries: 20,
        fetch: fetchCounted,
      })
      const ask = () => client.completions.create({ model, prompt: [10, 11, 12], max_tokens: 40 })
      const results = await Promise.all([ask(), ask(), ask(), ask()])
      expect(results.map(({ usage }) => usage?.completion_tokens)).toEqual([40, 40, 40, 40])
    })
  })
})

describe('ai and @ai-sdk/openai-compatible', () => {
  const create = () =>
    createOpenAICompatible({ name: 'nanoweave', apiKey: KEY, baseURL, includeUsage: true })
  const weather = () => {
    const asked: unknown[] = []
    const get_weather = tool({
      description: 'Weather of a city',
      inputSchema: jsonSchema<{ city: string }>(PARAMETERS),
      execute: async (input) => {
        asked.push(input)
        return { sky: 'sunny', celsius: 21 }
      },
    })
    return { asked, tools: { get_weather } }
  }

  it('generates', async () => {
    const { text, usage, finishReason } = await generateText({
      model: create()('tiny-dense'),
      prompt: QUESTION,
    })
    expect([text, finishReason]).toEqual([answer, 'stop'])
    expect(usage.outputTokens).toBeGreaterThan(3)
  })

  it('streams, with usage', async () => {
    const result = streamText({ model: create()('tiny-dense'), prompt: QUESTION })
    let text = ''
    for await (const piece of result.textStream) text += piece
    expect(text).toBe(answer)
    expect((await result.usage).inputTokens).toBeGreaterThan(5)
  })

  it('goes round with a tool, whole and streamed', async () => {
    const whole = weather()
    const model = create()('tiny-dense')
    const stopWhen = stepCountIs(3)
    const { steps, text } = await generateText({
      model,
      prompt: WEATHER,
      tools: whole.tools,
      stopWhen,
    })
    expect(whole.asked[0]).toEqual({ city: 'Paris' })
    expect(steps[0].finishReason).toBe('tool-calls')
    const streamed = weather()
    const result = streamText({ model, prompt: WEATHER, tools: streamed.tools, stopWhen })
    await result.consumeStream()
    expect(streamed.asked).toEqual(whole.asked)
    expect(await result.text).toBe(text)
  })

  it('aborts', async () => {
    const controller = new AbortController()
    const result = streamText({
      model: create()('tiny-dense'),
      prompt: 'Tell me a story about a fox named Ada.',
      abortSignal: controller.signal,
      providerOptions: { nanoweave: { ignore_eos: true } },
    })
    for await (const _ of result.textStream) controller.abort()
    await expectBaseline(running)
  })

  it('tries again after 429', { timeout: 60_000 }, async () => {
    await whileBusy(async (url, fetchCounted) => {
      const provider = createOpenAICompatible({ name: 'busy', baseURL: url, fetch: fetchCounted })
      const model = provider('tiny-dense')
      const ask = () =>
        generateText({ model, prompt: QUESTION, maxOutputTokens: 40, maxRetries: 20 })
      const results = await Promise.all([ask(), ask(), ask(), ask()])
      for (const { usage } of results) expect(usage.outputTokens).toBeGreaterThan(0)
    })
  })

  it('is refused embeddings', async () => {
    const model = create().embeddingModel('tiny-dense')
    await expect(embed({ model, value: 'x' })).rejects.toMatchObject({ statusCode: 400 })
  })
})

describe('@langchain/openai', () => {
  const usageOf = (message: { readonly usage_metadata?: unknown }) =>
    message.usage_metadata as UsageMetadata | undefined
  const create = () =>
    new ChatOpenAI({
      model: 'tiny-dense',
      apiKey: KEY,
      maxRetries: 0,
      streamUsage: true,
      configuration: { baseURL },
    })

  it('invokes and streams, with usage', async () => {
    const whole = await create().invoke(QUESTION)
    expect(whole.content).toBe(answer)
    expect(usageOf(whole)?.output_tokens).toBeGreaterThan(3)
    let text = ''
    let total = 0
    const chunks = await create().stream(QUESTION)
    for await (const chunk of chunks) {
      text += chunk.content
      total += usageOf(chunk)?.total_tokens ?? 0
    }
    expect(text).toBe(answer)
    expect(total).toBeGreaterThan(10)
  })

  it('goes round with a tool', async () => {
    const model = create().bindTools([
      {
        type: 'function',
        function: { name: 'get_weather', description: 'Weather', parameters: PARAMETERS },
      },
    ])
    const question = new HumanMessage(WEATHER)
    const call = await model.invoke([question])
    expect(call.tool_calls?.[0]).toMatchObject({ name: 'get_weather', args: { city: 'Paris' } })
    const result = new ToolMessage({
      content: 'sunny, 21 degrees',
      tool_call_id: call.tool_calls?.[0].id ?? '',
    })
    const last = await model.invoke([question, call, result])
    expect(last.content.length).toBeGreaterThan(0)
  })

  it('aborts', async () => {
    const before = running.engine.stats().finished.abort
    const controller = new AbortController()
    const model = create().withConfig({ signal: controller.signal })
    const read = async () => {
      for await (const _ of await model.stream('Tell me a story about a fox named Ada.'))
        controller.abort()
    }
    await expect(read()).rejects.toThrow()
    await expectBaseline(running)
    expect(running.engine.stats().finished.abort).toBe(before + 1)
  })

  it('tries again after 429', { timeout: 60_000 }, async () => {
    await whileBusy(async (url, fetchCounted) => {
      const model = new ChatOpenAI({
        model: 'tiny-dense',
        apiKey: '-',
        maxRetries: 20,
        maxTokens: 40,
        configuration: { baseURL: url, fetch: fetchCounted },
      })
      const results = await Promise.all([1, 2, 3, 4].map(() => model.invoke(QUESTION)))
      for (const message of results) expect(usageOf(message)?.output_tokens).toBeGreaterThan(0)
    })
  })

  it('is refused embeddings', async () => {
    const embeddings = new OpenAIEmbeddings({
      apiKey: KEY,
      maxRetries: 0,
      configuration: { baseURL },
    })
    await expect(embeddings.embedQuery('x')).rejects.toMatchObject({ status: 400 })
  })
})
