/**
 * One completion from request to last byte: runs its choices, streams or collects them, and turns
 * what goes wrong into a status before the headers, or an error event after them.
 */

import { randomUUID } from 'node:crypto'
import { setMaxListeners } from 'node:events'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { GenerateChunk, Usage } from '../../engine/types.ts'
import type { Answer, AnswerHeader } from '../answer.ts'
import { type ApiError, engineFailed, toApiError } from '../api-error.ts'
import type { ServerContext } from '../context.ts'
import { EventStream } from '../event-stream.ts'
import { HeldChunks } from '../held-chunks.ts'
import { type ChoiceGroup, countChoices, runChoices } from '../run-choices.ts'

export interface Completion {
  readonly answer: Answer
  readonly groups: readonly ChoiceGroup[]
  readonly isStreamed: boolean
  readonly includeUsage: boolean
  /** What the model was offered. */
  readonly mayCallTools: boolean
}

export function answerHeader(context: ServerContext, prefix: string): AnswerHeader {
  return {
    id: `${prefix}-${randomUUID().replaceAll('-', '')}`,
    created: Math.floor(Date.now() / 1000),
    model: context.modelName,
    system_fingerprint: `nanoweave-${context.version}`,
  }
}

/** Aborted when the client goes away before its response has ended. */
export function clientController(reply: FastifyReply): AbortController {
  const controller = new AbortController()
  // Every choice listens.
  setMaxListeners(0, controller.signal)
  const response = reply.raw
  response.once('close', () => {
    if (!response.writableFinished) controller.abort()
  })
  if (response.destroyed) controller.abort()
  return controller
}

export async function runCompletion(
  context: ServerContext,
  request: FastifyRequest,
  reply: FastifyReply,
  controller: AbortController,
  completion: Completion,
): Promise<void> {
  const { answer, groups, isStreamed, includeUsage } = completion
  const { limits } = context
  let stream: EventStream | undefined
  const held = new HeldChunks()
  const pinWhenCalling = createToolPins(context, completion)
  const take = (index: number, chunk: GenerateChunk): void => {
    const events = answer.push(index, chunk)
    stream?.send(events)
    pinWhenCalling.onPushed(index)
  }
  const openStream = (): void => {
    reply.hijack()
    stream = new EventStream(reply.raw, {
      headers: { 'x-request-id': request.id },
      pingMs: limits.pingMs,
      stalledMs: limits.stalledMs,
      batch: context.writes,
      onRoom: () => {
        if (held.isEmpty) return
        try {
          held.release(take)
        } catch (error) {
          request.log.error({ err: error }, 'stream broken off')
          reply.raw.destroy()
        }
      },
    })
    stream.send(answer.open())
  }
  const usage = createUsage(groups)
  const observe = createObserver(context)
  const finishReasons: string[] = []
  const span = context.startSpan({
    operation: answer.operation,
    responseId: answer.id,
    isStreamed,
    numChoices: countChoices(groups),
    sampling: groups[0].request,
    headers: request.headers,
    startTime: Date.now() - reply.elapsedTime,
  })
  try {
    await runChoices(context.engine, groups, {
      arrivalMs: performance.now() - reply.elapsedTime,
      controller,
      onQueued: (index, id) => pinWhenCalling.onQueued(index, id),
      onAdmitted: () => {
        if (isStreamed) openStream()
      },
      onChunk: (index, chunk) => {
        observe(index, chunk)
        usage.add(index, chunk)
        if (chunk.finishReason !== undefined) finishReasons[index] = chunk.finishReason
        const mustWait = isStreamed && (stream === undefined || stream.isBehind || !held.isEmpty)
        if (mustWait) {
          held.add(index, chunk)
          pinWhenCalling.onHeld(index)
        } else {
          take(index, chunk)
        }
      },
    })
  } catch (error) {
    const { failed } = context.engine.stats()
    const apiError = failed === undefined ? toApiError(error) : engineFailed(failed, error)
    span.fail(apiError.code, apiError.message)
    if (stream === undefined) throw apiError
    const isGone = controller.signal.aborted && reply.raw.destroyed
    if (isGone) return
    if (!held.isEmpty) await stream.drained()
    endWithError(request, stream, apiError, error)
    return
  }
  span.end(usage.total, finishReasons)
  if (stream === undefined) {
    await reply.send(answer.body(usage.total))
    return
  }
  if (!held.isEmpty) await stream.drained()
  if (includeUsage) stream.send([answer.usageEvent(usage.total)])
  stream.end('[DONE]')
}

/** After the headers there is no status to send: an event, and the end. */
function endWithError(
  request: FastifyRequest,
  stream: EventStream,
  apiError: ApiError,
  cause: unknown,
): void {
  request.log.warn({ err: cause, code: apiError.code }, 'stream ended by an error')
  stream.send([JSON.stringify(apiError.body)])
  stream.end(undefined)
}

/** Prompt tokens count once per prompt, generated ones per choice. */
function createUsage(groups: readonly ChoiceGroup[]) {
  let promptTokens = 0
  let cachedTokens = 0
  const firsts = new Set(groups.map(({ first }) => first))
  const generated = new Array<number>(countChoices(groups)).fill(0)
  return {
    add(index: number, { usage }: GenerateChunk): void {
      if (usage === undefined) return
      generated[index] = usage.completionTokens
      if (!firsts.has(index)) return
      promptTokens += usage.promptTokens
      cachedTokens += usage.cachedTokens
    },
    get total(): Usage {
      const completionTokens = generated.reduce((sum, count) => sum + count, 0)
      return { promptTokens, completionTokens, cachedTokens }
    },
  }
}

/**
 * A turn that calls tools is kept for their answers, unless the request says for how long itself. Chunks
 * that are held are not read yet and may be a call, perhaps to the end of the turn: so it is kept while
 * some are.
 */
function createToolPins({ engine, toolPinTtlMs }: ServerContext, completion: Completion) {
  const { answer, groups, mayCallTools } = completion
  const ids: number[] = []
  const unread = new Set<number>()
  const isOff = toolPinTtlMs === 0 || groups.some(({ request }) => request.pinTtlMs !== undefined)
  return {
    onQueued(index: number, id: number): void {
      if (!isOff) ids[index] = id
    },
    onHeld(index: number): void {
      const id = ids[index]
      if (id === undefined || !mayCallTools || unread.has(index)) return
      unread.add(index)
      engine.pin(id, toolPinTtlMs)
    },
    onPushed(index: number): void {
      const id = ids[index]
      if (id === undefined) return
      const wasUnread = unread.delete(index)
      if (answer.callsTools(index)) {
        engine.pin(id, toolPinTtlMs)
        delete ids[index]
      } else if (wasUnread) {
        engine.pin(id, 0)
      }
    },
  }
}

function createObserver({ metrics }: ServerContext) {
  const lastMs: (number | undefined)[] = []
  return (index: number, chunk: GenerateChunk): void => {
    const now = performance.now()
    const last = lastMs[index]
    lastMs[index] = now
    if (chunk.tokens.length > 0)
      metrics.observeTokens(
        chunk.tokens.length,
        last === undefined ? undefined : (now - last) / 1000,
      )
    if (chunk.finishReason !== undefined) metrics.observeEnd(chunk)
  }
}
