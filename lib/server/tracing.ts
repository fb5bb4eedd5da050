/**
 * OpenTelemetry, where `@opentelemetry/api` is installed and an application has set it up: one span for
 * each completion, with the attributes of the semantic conventions for generative AI. Never texts.
 */

import { createRequire } from 'node:module'
import type { Span } from '@opentelemetry/api'
import type { GenerateRequest, Usage } from '../engine/types.ts'

type Api = typeof import('@opentelemetry/api')

export interface CompletionSpan {
  /** Ended well. */
  end(usage: Usage, finishReasons: readonly string[]): void
  /** `code`: of the error's body. */
  fail(code: string, message: string): void
}

export interface SpanOptions {
  readonly operation: 'chat' | 'text_completion'
  readonly responseId: string
  readonly isStreamed: boolean
  readonly numChoices: number
  readonly sampling: GenerateRequest
  readonly headers: Readonly<Record<string, unknown>>
  /** Milliseconds since 1970. */
  readonly startTime: number
}

export type StartSpan = (options: SpanOptions) => CompletionSpan

const NO_SPAN: CompletionSpan = { end() {}, fail() {} }

/** Spans that go nowhere where the package is not installed. */
export function createTracing(modelName: string, version: string): StartSpan {
  const api = loadApi()
  if (api === undefined) return () => NO_SPAN
  return (options) => startSpan(api, modelName, version, options)
}

function loadApi(): Api | undefined {
  try {
    return createRequire(import.meta.url)('@opentelemetry/api') as Api
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'MODULE_NOT_FOUND') return undefined
    throw error
  }
}

function startSpan(
  api: Api,
  modelName: string,
  version: string,
  options: SpanOptions,
): CompletionSpan {
  const { operation, sampling, startTime } = options
  // The caller's span, from its traceparent header.
  const parent = api.propagation.extract(api.context.active(), options.headers)
  const span: Span = api.trace.getTracer('nanoweave', version).startSpan(
    `${operation} ${modelName}`,
    {
      kind: api.SpanKind.SERVER,
      startTime,
      attributes: {
        'gen_ai.operation.name': operation,
        'gen_ai.provider.name': 'nanoweave',
        'gen_ai.request.model': modelName,
        'gen_ai.response.model': modelName,
        'gen_ai.response.id': options.responseId,
        'gen_ai.output.type': 'text',
        'gen_ai.request.choice.count': options.numChoices,
        'nanoweave.stream': options.isStreamed,
        ...requestAttributes(sampling),
      },
    },
    parent,
  )
  return {
    end(usage, finishReasons) {
      span.setAttributes({
        'gen_ai.usage.input_tokens': usage.promptTokens,
        'gen_ai.usage.output_tokens': usage.completionTokens,
        'gen_ai.usage.cache_read.input_tokens': usage.cachedTokens,
        'gen_ai.response.finish_reasons': [...finishReasons],
      })
      span.end()
    },
    fail(code, message) {
      span.setAttribute('error.type', code)
      span.setStatus({ code: api.SpanStatusCode.ERROR, message })
      span.end()
    },
  }
}

/** What the request asks for; what it leaves out stays out. */
function requestAttributes(sampling: GenerateRequest): Record<string, number> {
  const attributes: Record<string, number> = {}
  const set = (name: string, value: number | undefined): void => {
    if (value !== undefined) attributes[`gen_ai.request.${name}`] = value
  }
  set('max_tokens', sampling.maxTokens)
  set('temperature', sampling.temperature)
  set('top_p', sampling.topP)
  set('top_k', sampling.topK)
  set('frequency_penalty', sampling.frequencyPenalty)
  set('presence_penalty', sampling.presencePenalty)
  return attributes
}
