/**
 * JSON from files nobody vouches for: bounded size, regular files only, valid UTF-8, an object at
 * the top, no duplicate keys (two readers of a duplicate key can see two different models).
 */

import { closeSync, fstatSync, openSync, readSync, statSync } from 'node:fs'
import { EngineError, type ErrorCode, systemReason } from '../errors.ts'

export type JsonObject = { readonly [key: string]: unknown }

export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** Opens a regular file (symlinks are followed), hands its descriptor and size over, closes it. */
export function withFile<T>(
  path: string,
  use: (descriptor: number, bytes: number) => T,
  missing: ErrorCode = 'ERR_IO',
): T {
  let descriptor: number
  try {
    // Before opening: opening a FIFO would wait for a writer.
    if (!statSync(path).isFile()) throw new EngineError('ERR_IO', `${path} is not a regular file`)
    descriptor = openSync(path, 'r')
  } catch (cause) {
    if (cause instanceof EngineError) throw cause
    const absent = (cause as NodeJS.ErrnoException).code === 'ENOENT'
    throw new EngineError(
      absent ? missing : 'ERR_IO',
      absent ? `${path} does not exist` : `cannot open ${path}: ${systemReason(cause)}`,
      { cause },
    )
  }
  try {
    return use(descriptor, fstatSync(descriptor).size)
  } finally {
    closeSync(descriptor)
  }
}

/** Reads exactly `length` bytes from `position`; ERR_IO when the file ends before. */
export function readBytes(
  descriptor: number,
  path: string,
  position: number,
  length: number,
): Buffer {
  const buffer = Buffer.allocUnsafe(length)
  let done = 0
  while (done < length) {
    let got: number
    try {
      got = readSync(descriptor, buffer, done, length - done, position + done)
    } catch (cause) {
      throw new EngineError('ERR_IO', `cannot read ${path}: ${systemReason(cause)}`, { cause })
    }
    if (got === 0) {
      throw new EngineError('ERR_IO', `${path} ended after ${position + done} bytes`)
    }
    done += got
  }
  return buffer
}

/**
 * Parses an object. `code` is thrown, naming `what`, for anything else: invalid UTF-8, a BOM, a
 * syntax error, another type at the top, a duplicate key at any depth.
 */
export function parseJsonObject(bytes: Uint8Array, what: string, code: ErrorCode): JsonObject {
  let text: string
  let value: unknown
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
    value = JSON.parse(text)
  } catch (cause) {
    throw new EngineError(code, `${what} is not JSON: ${(cause as Error).message}`, { cause })
  }
  if (!isJsonObject(value)) throw new EngineError(code, `${what} is not a JSON object`)
  const duplicate = findDuplicateKey(text)
  if (duplicate !== undefined) {
    throw new EngineError(code, `${what} has the key ${JSON.stringify(duplicate)} twice`)
  }
  return value
}

/** Reads and parses a JSON object file of at most `maxBytes`. */
export function readJsonObject(
  path: string,
  maxBytes: number,
  code: ErrorCode,
  missing: ErrorCode,
): JsonObject {
  const bytes = withFile(
    path,
    (descriptor, size) => {
      if (size > maxBytes) {
        throw new EngineError(code, `${path} has ${size} bytes; at most ${maxBytes} are accepted`)
      }
      return readBytes(descriptor, path, 0, size)
    },
    missing,
  )
  return parseJsonObject(bytes, path, code)
}

/** The first key that occurs twice in one object of `text`, which must be valid JSON. */
function findDuplicateKey(text: string): string | undefined {
  // One entry per open container: the keys of an object so far, null for an array.
  const open: (Set<string> | null)[] = []
  let index = 0
  while (index < text.length) {
    const char = text[index]
    if (char === '{') open.push(new Set())
    else if (char === '[') open.push(null)
    else if (char === '}' || char === ']') open.pop()
    else if (char === '"') {
      const start = index
      for (index++; text[index] !== '"'; index++) if (text[index] === '\\') index++
      const keys = open.at(-1)
      if (keys && isBeforeColon(text, index + 1)) {
        const key = JSON.parse(text.slice(start, index + 1)) as string
        if (keys.has(key)) return key
        keys.add(key)
      }
    }
    index++
  }
  return undefined
}

function isBeforeColon(text: string, index: number): boolean {
  while (
    text[index] === ' ' ||
    text[index] === '\n' ||
    text[index] === '\t' ||
    text[index] === '\r'
  ) {
    index++
  }
  return text[index] === ':'
}
