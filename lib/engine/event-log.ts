/**
 * EventLogFile: streams a scheduler's events to a file, one JSON value a line (`--event-log FILE`), and
 * reads them back. Writing never blocks a step and never fills a disk: where the disk does not keep up, or
 * at its size limit, the log ends with a line that says so. It keeps its beginning, which a replay needs.
 * A file that cannot be opened fails the load.
 */

import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createReadStream, createWriteStream, type WriteStream } from 'node:fs'
import { createInterface } from 'node:readline'
import { EngineError, systemReason } from '../errors.ts'
import type { SchedulerEvent } from '../scheduler/event-log.ts'
import { type Replay, replayEvents } from '../scheduler/replay.ts'

export type { Replay } from '../scheduler/replay.ts'

const MAX_BUFFERED_BYTES = 64 * 2 ** 20
export const DEFAULT_EVENT_LOG_BYTES = 2 ** 30

/** For createEventRecorder and replayEvents. */
export function hashPlanWords(words: Int32Array): string {
  const bytes = new Uint8Array(words.buffer, words.byteOffset, words.byteLength)
  return createHash('sha256').update(bytes).digest('base64url').slice(0, 22)
}

export class EventLogFile {
  readonly #stream: WriteStream
  readonly #maxBytes: number
  #numBytes = 0
  #isCut = false

  private constructor(stream: WriteStream, maxBytes: number) {
    this.#stream = stream
    this.#maxBytes = maxBytes
    // A disk that is full ends the log, nothing else.
    stream.on('error', () => {
      this.#isCut = true
    })
  }

  /** Overwrites `path`; at `maxBytes` the log ends. ERR_IO when it cannot be written. */
  static async open(path: string, maxBytes: number): Promise<EventLogFile> {
    const stream = createWriteStream(path)
    try {
      await once(stream, 'open')
    } catch (error) {
      const reason = systemReason(error)
      throw new EngineError('ERR_IO', `the event log ${path} cannot be written: ${reason}`, {
        cause: error,
      })
    }
    return new EventLogFile(stream, maxBytes)
  }

  write(event: SchedulerEvent): void {
    if (this.#isCut) return
    const line = `${JSON.stringify(event)}\n`
    // Lines are ASCII: a character is a byte.
    this.#numBytes += line.length
    if (this.#stream.writableLength > MAX_BUFFERED_BYTES) this.#cut('the disk did not keep up')
    else if (this.#numBytes > this.#maxBytes)
      this.#cut(`the log has reached ${this.#maxBytes} bytes; raise eventLogBytes for more`)
    else this.#stream.write(line)
  }

  #cut(reason: string): void {
    this.#isCut = true
    const event: SchedulerEvent = { type: 'cut', reason }
    this.#stream.write(`${JSON.stringify(event)}\n`)
  }

  /** Resolves when everything is written, or when that has failed. */
  close(): Promise<void> {
    return new Promise((resolve) => {
      if (this.#stream.destroyed) resolve()
      else {
        this.#stream.once('close', () => resolve())
        this.#stream.end()
      }
    })
  }
}

/** Events of a log file. ERR_USAGE for a line that is no JSON, ERR_IO when it cannot be read. */
export async function readEventLog(path: string): Promise<SchedulerEvent[]> {
  const events: SchedulerEvent[] = []
  try {
    const lines = createInterface({
      input: createReadStream(path),
      crlfDelay: Number.POSITIVE_INFINITY,
    })
    for await (const line of lines) events.push(JSON.parse(line))
  } catch (error) {
    if (error instanceof SyntaxError)
      throw new EngineError('ERR_USAGE', `line ${events.length + 1} of ${path} is no JSON`, {
        cause: error,
      })
    const reason = systemReason(error)
    throw new EngineError('ERR_IO', `the event log ${path} cannot be read: ${reason}`, {
      cause: error,
    })
  }
  return events
}

/** Plans a recorded log again with the same scheduler; `firstDifference` is -1 when nothing differs. */
export async function replayEventLog(path: string): Promise<Replay> {
  return replayEvents(await readEventLog(path), { hash: hashPlanWords })
}
