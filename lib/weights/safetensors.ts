/**
 * Safetensors headers (https://github.com/huggingface/safetensors, "Format"): u64 length, a JSON
 * object {name: {dtype, shape, data_offsets}}, then the data. Only headers are read here; the data
 * is mapped by the native loader. A checkpoint is one file, or shards listed in
 * model.safetensors.index.json. Files are untrusted: every length, range and name is checked, and
 * no descriptor outlives a call.
 */

import { existsSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { EngineError, systemReason } from '../errors.ts'
import { isJsonObject, parseJsonObject, readBytes, readJsonObject, withFile } from './json.ts'

/** Bits per element. */
const SAFETENSORS_BITS = {
  F64: 64,
  F32: 32,
  F16: 16,
  BF16: 16,
  I64: 64,
  I32: 32,
  I16: 16,
  I8: 8,
  U64: 64,
  U32: 32,
  U16: 16,
  U8: 8,
  BOOL: 8,
  C64: 64,
  F8_E4M3: 8,
  F8_E5M2: 8,
  F8_E8M0: 8,
  F6_E2M3: 6,
  F6_E3M2: 6,
  F4: 4,
} as const

export type SafetensorsDtype = keyof typeof SAFETENSORS_BITS

export interface TensorInfo {
  /** Index into TensorIndex.files. */
  readonly file: number
  /** From the start of the file, bytes. */
  readonly offset: number
  readonly bytes: number
  readonly dtype: SafetensorsDtype
  readonly shape: readonly number[]
}

export interface TensorIndex {
  readonly files: readonly { readonly path: string; readonly bytes: number }[]
  readonly tensors: ReadonlyMap<string, TensorInfo>
}

const MAX_HEADER_BYTES = 100e6
const MAX_RANK = 8
const MAX_SHARDS = 4096

/** Reads the headers of the checkpoint in `folder`. */
export function readTensorIndex(folder: string): TensorIndex {
  const single = join(folder, 'model.safetensors')
  const index = join(folder, 'model.safetensors.index.json')
  const files: { path: string; bytes: number }[] = []
  const tensors = new Map<string, TensorInfo>()
  if (existsSync(single)) {
    files.push(readHeader(single, 0, tensors))
  } else if (existsSync(index)) {
    readShards(folder, index, files, tensors)
  } else {
    const pickle = existsSync(join(folder, 'pytorch_model.bin'))
    throw new EngineError(
      'ERR_MODEL_NOT_FOUND',
      `${folder} has neither model.safetensors nor model.safetensors.index.json` +
        (pickle ? '; pickled weights are never read, convert them to safetensors' : ''),
    )
  }
  return { files, tensors }
}

/** Adds the tensors of every shard; a tensor must be in the shard that the index names, once. */
function readShards(
  folder: string,
  indexPath: string,
  files: { path: string; bytes: number }[],
  tensors: Map<string, TensorInfo>,
): void {
  const fail = (why: string) => new EngineError('ERR_SAFETENSORS', `${indexPath}: ${why}`)
  const { weight_map: map } = readJsonObject(
    indexPath,
    MAX_HEADER_BYTES,
    'ERR_SAFETENSORS',
    'ERR_MODEL_NOT_FOUND',
  )
  if (!isJsonObject(map)) throw fail('weight_map is not an object')
  const shardOf = new Map<string, string>()
  for (const [tensor, shard] of Object.entries(map)) {
    // A plain name: no separator, no parent folder, no drive, no hidden file.
    if (typeof shard !== 'string' || !/^[\w][\w.+=-]{0,254}$/.test(shard)) {
      throw fail(`the file of ${quote(tensor)} must be the plain name of a file beside it`)
    }
    if (!shard.endsWith('.safetensors')) throw fail(`${quote(shard)} is not a safetensors file`)
    shardOf.set(tensor, shard)
  }
  const shards = [...new Set(shardOf.values())].sort()
  if (shards.length > MAX_SHARDS) throw fail(`${shards.length} shards; at most ${MAX_SHARDS}`)
  for (const shard of shards) {
    const path = join(folder, shard)
    if (!existsSync(path)) {
      throw new EngineError('ERR_MODEL_NOT_FOUND', `${path} is missing; ${indexPath} lists it`)
    }
    const found = new Map<string, TensorInfo>()
    files.push(readHeader(path, files.length, found))
    for (const [name, info] of found) {
      // A tensor that the index places elsewhere, or nowhere, is not part of the checkpoint.
      if (shardOf.get(name) === shard) tensors.set(name, info)
    }
  }
  for (const [tensor, shard] of shardOf) {
    if (!tensors.has(tensor)) throw fail(`${quote(tensor)} is not in ${shard}`)
  }
}

/** Reads one file's header into `tensors` and gives its path and size. */
function readHeader(
  path: string,
  file: number,
  tensors: Map<string, TensorInfo>,
): { path: string; bytes: number } {
  return withFile(path, (descriptor, bytes) => {
    const fail = (why: string) => new EngineError('ERR_SAFETENSORS', `${path}: ${why}`)
    if (bytes < 8) throw fail(`${bytes} bytes are too few for a safetensors file`)
    const start = readBytes(descriptor, path, 0, 8)
    if (start.toString('latin1') === 'version ')
      throw fail('a git-lfs pointer, not the weights; run `git lfs pull` in the model folder')
    const length = start.readBigUInt64LE()
    if (length > BigInt(bytes - 8)) {
      throw fail(`header of ${length} bytes in a file of ${bytes}; truncated or not safetensors`)
    }
    if (length > BigInt(MAX_HEADER_BYTES)) throw fail(`header of ${length} bytes is over 100 MB`)
    const text = readBytes(descriptor, path, 8, Number(length))
    if (text[0] !== 0x7b) throw fail('the header does not start with {')
    const header = parseJsonObject(text, `header of ${path}`, 'ERR_SAFETENSORS')
    const dataStart = 8 + Number(length)
    const infos: { name: string; begin: number; end: number }[] = []
    for (const [name, entry] of Object.entries(header)) {
      if (name === '__metadata__') {
        checkMetadata(entry, fail)
        continue
      }
      const { dtype, shape, begin, end } = checkEntry(name, entry, fail)
      infos.push({ name, begin, end })
      tensors.set(name, { file, offset: dataStart + begin, bytes: end - begin, dtype, shape })
    }
    checkContiguous(infos, bytes - dataStart, fail)
    return { path, bytes }
  })
}

type Fail = (why: string) => EngineError

function checkMetadata(value: unknown, fail: Fail): void {
  if (!isJsonObject(value) || Object.values(value).some((item) => typeof item !== 'string')) {
    throw fail('__metadata__ is not an object of strings')
  }
}

function checkEntry(
  name: string,
  entry: unknown,
  fail: Fail,
): { dtype: SafetensorsDtype; shape: readonly number[]; begin: number; end: number } {
  const tensor = quote(name)
  if (!isJsonObject(entry)) throw fail(`${tensor} is not an object`)
  const unknown = Object.keys(entry).find(
    (key) => !['dtype', 'shape', 'data_offsets'].includes(key),
  )
  if (unknown !== undefined) throw fail(`${tensor} has the unknown field ${quote(unknown)}`)
  const { dtype, shape, data_offsets: offsets } = entry
  if (typeof dtype !== 'string' || !Object.hasOwn(SAFETENSORS_BITS, dtype)) {
    throw fail(`${tensor} has the unknown dtype ${quote(String(dtype))}`)
  }
  if (!isCounts(shape) || shape.length > MAX_RANK) {
    throw fail(`the shape of ${tensor} is not a list of at most ${MAX_RANK} sizes`)
  }
  if (!isCounts(offsets) || offsets.length !== 2 || offsets[0]! > offsets[1]!) {
    throw fail(`the data_offsets of ${tensor} are not an ascending pair`)
  }
  let bits: number = SAFETENSORS_BITS[dtype as SafetensorsDtype]
  for (const size of shape) {
    bits *= size
    if (!Number.isSafeInteger(bits)) throw fail(`${tensor} is too large`)
  }
  const [begin, end] = offsets as [number, number]
  if (bits !== (end - begin) * 8) {
    throw fail(
      `${tensor} [${shape}] ${dtype} needs ${bits / 8} bytes, its range has ${end - begin}`,
    )
  }
  return { dtype: dtype as SafetensorsDtype, shape, begin, end }
}

/** Ranges cover the data exactly: no overlap, no hole, nothing behind the last. */
function checkContiguous(
  infos: { name: string; begin: number; end: number }[],
  dataBytes: number,
  fail: Fail,
): void {
  infos.sort((a, b) => a.begin - b.begin || a.end - b.end)
  let covered = 0
  for (const { name, begin, end } of infos) {
    if (begin !== covered) {
      throw fail(`${quote(name)} starts at ${begin}; the data before it ends at ${covered}`)
    }
    covered = end
  }
  if (covered !== dataBytes) {
    throw fail(`tensors take ${covered} bytes, the file has ${dataBytes}; truncated or padded`)
  }
}

function isCounts(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((item) => Number.isSafeInteger(item) && item >= 0)
}

/** A name from a file, shortened and escaped for a message. */
export function quote(name: string): string {
  return JSON.stringify(name.length > 120 ? `${name.slice(0, 117)}...` : name)
}

/** ERR_MODEL_NOT_FOUND unless `folder` is a folder. */
export function requireFolder(folder: string): void {
  let isFolder = false
  try {
    isFolder = statSync(folder).isDirectory()
  } catch (cause) {
    throw new EngineError(
      'ERR_MODEL_NOT_FOUND',
      `cannot open the model folder ${folder}: ${systemReason(cause)}`,
      { cause },
    )
  }
  if (!isFolder) {
    throw new EngineError('ERR_MODEL_NOT_FOUND', `${folder} is not a folder; give a model's folder`)
  }
}
