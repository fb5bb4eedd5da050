/** Spans through the real @opentelemetry/api, with a provider that keeps what it is given. */

import {
  type Attributes,
  type Context,
  propagation,
  ROOT_CONTEXT,
  type Span,
  SpanKind,
  type SpanOptions,
  type SpanStatus,
  SpanStatusCode,
  trace,
} from '@opentelemetry/api'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { expectBaseline, post, type Running, serveFake } from './support.ts'

interface Kept {
  readonly name: string
  readonly kind: SpanKind | undefined
  readonly parent: unknown
  readonly attributes: Attributes
  status: SpanStatus | undefined
  numEnds: number
}

const PARENT = Symbol('parent')
const spans: Kept[] = []

function keepSpan(name: string, { kind, attributes = {} }: SpanOptions = {}, parent?: Context) {
  const kept: Kept = {
    name,
    kind,
    parent: parent?.getValue(PARENT),
    attributes: { ...attributes },
    status: undefined,
    numEnds: 0,
  }
  spans.push(kept)
  return {
    setAttribute: (key: string, value: string) => Object.assign(kept.attributes, { [key]: value }),
    setAttributes: (more: Attributes) => Object.assign(kept.attributes, more),
    setStatus: (status: SpanStatus) => {
      kept.status = status
    },
    end: () => kept.numEnds++,
  } as unknown as Span
}

const PROMPT = { prompt: [10, 11, 12, 13], max_tokens: 3, ignore_eos: true }

describe('spans', () => {
  let running: Running
  beforeAll(async () => {
    trace.setGlobalTracerProvider({
      getTracer: () => ({
        startSpan: keepSpan,
        startActiveSpan: () => {
          throw new Error('not used')
        },
      }),
    })
    propagation.setGlobalPropagator({
      inject() {},
      extract: (context, carrier: Record<string, string>) =>
        context.setValue(PARENT, carrier.traceparent),
      fields: () => ['traceparent'],
    })
    running = await serveFake({}, { maxModelLen: 64 }, {})
  })
  afterAll(async () => {
    trace.disable()
    propagation.disable()
    await running.close()
  })
  afterEach(async () => {
    spans.length = 0
    await expectBaseline(running)
  })

  it.each([false, true])('of a completion (stream: %s)', async (stream) => {
    const url = `${running.url}/v1/completions`
    const body = { ...PROMPT, n: 2, temperature: 0.5, seed: 1, stream }
    await post(url, body, { traceparent: '00-1-2-01' })
    expect(spans).toHaveLength(1)
    const [{ name, kind, parent, attributes, status, numEnds }] = spans
    expect([name, kind, parent, status, numEnds]).toEqual([
      'text_completion tiny-dense',
      SpanKind.SERVER,
      '00-1-2-01',
      undefined,
      1,
    ])
    expect(attributes).toMatchObject({
      'gen_ai.operation.name': 'text_completion',
      'gen_ai.request.model': 'tiny-dense',
      'gen_ai.request.max_tokens': 3,
      'gen_ai.request.temperature': 0.5,
      'gen_ai.request.choice.count': 2,
      'gen_ai.response.finish_reasons': ['length', 'length'],
      'gen_ai.usage.input_tokens': 4,
      'gen_ai.usage.output_tokens': 6,
    })
    expect(attributes['gen_ai.response.id']).toMatch(/^cmpl-/)
    expect(JSON.stringify(attributes)).not.toContain('prompt')
  })

  it('of one that is refused by the engine', async () => {
    const { status } = await post(`${running.url}/v1/completions`, {
      prompt: Array.from({ length: 80 }, () => 10),
    })
    expect(status).toBe(400)
    expect(spans).toHaveLength(1)
    expect(spans[0].numEnds).toBe(1)
    expect(spans[0].status?.code).toBe(SpanStatusCode.ERROR)
    expect(spans[0].attributes['error.type']).toBe('context_length_exceeded')
  })

  it('have no parent without a traceparent', async () => {
    await post(`${running.url}/v1/completions`, PROMPT)
    expect(spans[0].parent).toBe(ROOT_CONTEXT.getValue(PARENT))
  })
})
