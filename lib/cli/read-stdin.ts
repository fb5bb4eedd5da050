/** A text from stdin, bounded. */

import { addAbortSignal } from 'node:stream'
import { EngineError, systemReason } from '../errors.ts'

const maxStdinBytes = 8 * 1024 * 1024

async function readBytes(signal: AbortSignal): Promise<Buffer> {
  const pieces: Buffer[] = []
  let bytes = 0
  for await (const piece of addAbortSignal(signal, process.stdin) as AsyncIterable<Buffer>) {
    pieces.push(piece)
    bytes += piece.length
    if (bytes > maxStdinBytes) {
      throw new EngineError('ERR_USAGE', `stdin has more than ${maxStdinBytes} bytes; give less`)
    }
  }
  return Buffer.concat(pieces, bytes)
}

/**
 * All of stdin, without the line end that ends it. ERR_USAGE beyond 8 MiB or when it is not UTF-8,
 * ERR_ABORTED by `signal`, ERR_IO.
 */
export async function readStdin(signal: AbortSignal): Promise<string> {
  let bytes: Buffer
  try {
    bytes = await readBytes(signal)
  } catch (cause) {
    if (cause instanceof EngineError) throw cause
    if (signal.aborted) throw new EngineError('ERR_ABORTED', 'reading stdin was cancelled')
    throw new EngineError('ERR_IO', `cannot read stdin: ${systemReason(cause)}`, { cause })
  }
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes).replace(/\r?\n$/, '')
  } catch (cause) {
    throw new EngineError('ERR_USAGE', 'stdin is not UTF-8 text', { cause })
  }
}
