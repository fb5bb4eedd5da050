/** Safetensors headers: what is read, and everything hostile or broken that is refused. */

import { execFileSync } from 'node:child_process'
import { mkdirSync, readdirSync, symlinkSync } from 'node:fs'
import { basename, join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { readTensorIndex, requireFolder } from '../lib/weights/safetensors.ts'
import { createFolder, encodeSafetensors, withHeader } from './support/checkpoint-folder.ts'
import { codeOf } from './support/errors.ts'

const openDescriptors = () => readdirSync('/proc/self/fd').length

describe('one file', () => {
  it('gives dtype, shape and place of every tensor', () => {
    using folder = createFolder({
      'model.safetensors': encodeSafetensors({
        a: { shape: [2, 3] },
        b: { shape: [], dtype: 'BF16' },
        c: { shape: [0, 5], dtype: 'F16' },
        d: { shape: [4], dtype: 'I64' },
      }),
    })
    const { files, tensors } = readTensorIndex(folder.path)
    expect(files).toHaveLength(1)
    const start = files[0]!.bytes - 24 - 2 - 32
    expect(Object.fromEntries(tensors)).toEqual({
      a: { file: 0, offset: start, bytes: 24, dtype: 'F32', shape: [2, 3] },
      b: { file: 0, offset: start + 24, bytes: 2, dtype: 'BF16', shape: [] },
      c: { file: 0, offset: start + 26, bytes: 0, dtype: 'F16', shape: [0, 5] },
      d: { file: 0, offset: start + 26, bytes: 32, dtype: 'I64', shape: [4] },
    })
  })

  it('accepts metadata, padding blanks, any order of entries, and odd names', () => {
    const header = JSON.stringify({
      __metadata__: { format: 'pt' },
      second: { dtype: 'F32', shape: [1], data_offsets: [4, 8] },
      'a "quoted": {name}': { dtype: 'F32', shape: [1], data_offsets: [0, 4] },
    })
    using folder = createFolder({ 'model.safetensors': withHeader(`${header}    `, 8) })
    expect([...readTensorIndex(folder.path).tensors.keys()]).toEqual([
      'second',
      'a "quoted": {name}',
    ])
  })

  it('follows symbolic links, as hub snapshots have them', () => {
    using folder = createFolder({ blob: encodeSafetensors({ a: { shape: [1] } }) })
    const snapshot = join(folder.path, 'snapshot')
    mkdirSync(snapshot)
    symlinkSync('../blob', join(snapshot, 'model.safetensors'))
    expect(readTensorIndex(snapshot).tensors.has('a')).toBe(true)
  })

  const entry = (fields: object, rest = '') =>
    withHeader(
      `{"a":${JSON.stringify({ dtype: 'F32', shape: [1], data_offsets: [0, 4], ...fields })}${rest}}`,
      4,
    )
  const good = encodeSafetensors({ a: { shape: [4] } })
  const broken: Record<string, Buffer> = {
    'an empty file': Buffer.alloc(0),
    'seven bytes': Buffer.alloc(7),
    'a header longer than the file': Buffer.from([0xff, 0xff, 0, 0, 0, 0, 0, 0, 0x7b, 0x7d]),
    'a header length of 2^63': Buffer.from([0, 0, 0, 0, 0, 0, 0, 0x80, 0x7b, 0x7d]),
    'a truncated file': good.subarray(0, good.length - 1),
    'bytes behind the last tensor': Buffer.concat([good, Buffer.alloc(1)]),
    'an empty header': withHeader(''),
    'a leading space': withHeader(' {}'),
    'a leading byte order mark': withHeader('\uFEFF{}'),
    'invalid UTF-8': withHeader(Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d])),
    'no JSON': withHeader('{"a":'),
    'an array': withHeader('[]'),
    NaN: withHeader('{"a":NaN}'),
    'a duplicate tensor': entry({}, ',"a":{"dtype":"F32","shape":[0],"data_offsets":[4,4]}'),
    'a duplicate tensor, escaped': entry(
      {},
      ',"\\u0061" :{"dtype":"F32","shape":[0],"data_offsets":[4,4]}',
    ),
    'a duplicate field': withHeader(
      '{"a":{"dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4]}}',
      4,
    ),
    'a duplicate field behind blanks': withHeader(
      `{"a":{"dtype":"F32","dtype"${' '.repeat(500)}:"F32","shape":[1],"data_offsets":[0,4]}}`,
      4,
    ),
    'metadata that is no object': withHeader('{"__metadata__":[]}'),
    'metadata with numbers': withHeader('{"__metadata__":{"a":1}}'),
    'a tensor that is no object': withHeader('{"a":5}'),
    'a null tensor': withHeader('{"a":null}'),
    'an unknown field': entry({ extra: 1 }),
    'an unknown dtype': entry({ dtype: 'F31' }),
    'a dtype inherited from Object': entry({ dtype: 'constructor' }),
    'no dtype': entry({ dtype: undefined }),
    'no shape': entry({ shape: undefined }),
    'a shape that is no list': entry({ shape: { length: 0 } }),
    'a negative size': entry({ shape: [-1] }),
    'a fractional size': entry({ shape: [0.5] }),
    'a size as text': entry({ shape: ['1'] }),
    'a size beyond 2^53': withHeader(
      '{"a":{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,4]}}',
      4,
    ),
    'a product beyond 2^53': entry({ shape: [2 ** 30, 2 ** 30, 0] }),
    'too many dimensions': entry({ shape: Array(9).fill(1) }),
    'no range': entry({ data_offsets: undefined }),
    'a range of three': entry({ data_offsets: [0, 4, 4] }),
    'a descending range': entry({ data_offsets: [4, 0] }),
    'a negative offset': entry({ data_offsets: [-4, 0] }),
    'a range that does not fit the shape': entry({ shape: [2] }),
    'a hole before the first tensor': entry({ data_offsets: [4, 8] }),
    'overlapping tensors': entry({}, ',"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'),
    'a hole between tensors': withHeader(
      '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}',
      3,
    ),
    'half a byte': entry({ dtype: 'F4', shape: [3], data_offsets: [0, 1] }),
  }
  for (const [name, bytes] of Object.entries(broken)) {
    it(`refuses ${name}`, () => {
      using folder = createFolder({ 'model.safetensors': bytes })
      const before = openDescriptors()
      expect(codeOf(() => readTensorIndex(folder.path))).toBe('ERR_SAFETENSORS')
      expect(openDescriptors()).toBe(before)
    })
  }

  it('refuses a header over 100 MB without reading it', () => {
    // Sparse: takes no room on disk.
    using folder = createFolder({})
    const path = join(folder.path, 'model.safetensors')
    execFileSync('truncate', ['-s', '200M', path])
    const before = process.memoryUsage().rss
    const length = Buffer.alloc(8)
    length.writeBigUInt64LE(150_000_000n)
    execFileSync('dd', [`of=${path}`, 'conv=notrunc', 'status=none'], { input: length })
    expect(codeOf(() => readTensorIndex(folder.path))).toBe('ERR_SAFETENSORS')
    expect(process.memoryUsage().rss - before).toBeLessThan(50e6)
  })

  it('refuses what is not a regular file, without waiting for it', () => {
    using folder = createFolder({})
    execFileSync('mkfifo', [join(folder.path, 'model.safetensors')])
    expect(codeOf(() => readTensorIndex(folder.path))).toBe('ERR_IO')
    using other = createFolder({})
    mkdirSync(join(other.path, 'model.safetensors'))
    expect(codeOf(() => readTensorIndex(other.path))).toBe('ERR_IO')
  })
})

describe('shards', () => {
  const shard = (...names: string[]) =>
    encodeSafetensors(Object.fromEntries(names.map((name) => [name, { shape: [2] }])))
  const indexOf = (map: unknown) => JSON.stringify({ metadata: {}, weight_map: map })
  const INDEX = 'model.safetensors.index.json'

  it('are read by the index', () => {
    using folder = createFolder({
      [INDEX]: indexOf({
        a: 'model-00001-of-00002.safetensors',
        b: 'model-00002-of-00002.safetensors',
        c: 'model-00001-of-00002.safetensors',
      }),
      'model-00001-of-00002.safetensors': shard('a', 'c', 'stale'),
      'model-00002-of-00002.safetensors': shard('b'),
    })
    const { files, tensors } = readTensorIndex(folder.path)
    expect(files.map((file) => basename(file.path))).toEqual([
      'model-00001-of-00002.safetensors',
      'model-00002-of-00002.safetensors',
    ])
    expect([...tensors].map(([name, { file }]) => [name, file])).toEqual([
      ['a', 0],
      ['c', 0],
      ['b', 1],
    ])
  })

  const refused: Record<string, [unknown, string]> = {
    'a map that is no object': [['a'], 'ERR_SAFETENSORS'],
    'a shard that is no name': [{ a: 5 }, 'ERR_SAFETENSORS'],
    'a path upwards': [{ a: '../x.safetensors' }, 'ERR_SAFETENSORS'],
    'an absolute path': [{ a: '/etc/x.safetensors' }, 'ERR_SAFETENSORS'],
    'a path downwards': [{ a: 'sub/x.safetensors' }, 'ERR_SAFETENSORS'],
    'a Windows path': [{ a: '..\\x.safetensors' }, 'ERR_SAFETENSORS'],
    'a NUL byte': [{ a: 'x\0.safetensors' }, 'ERR_SAFETENSORS'],
    'another kind of file': [{ a: 'config.json' }, 'ERR_SAFETENSORS'],
    'a shard that is missing': [{ a: 'gone.safetensors' }, 'ERR_MODEL_NOT_FOUND'],
    'a tensor that its shard lacks': [{ z: 'x.safetensors' }, 'ERR_SAFETENSORS'],
    'a tensor in another shard': [{ a: 'y.safetensors', b: 'x.safetensors' }, 'ERR_SAFETENSORS'],
  }
  for (const [name, [map, code]] of Object.entries(refused)) {
    it(`refuses ${name}`, () => {
      using folder = createFolder({
        [INDEX]: indexOf(map),
        'x.safetensors': shard('a'),
        'y.safetensors': shard('b'),
        'config.json': '{}',
      })
      const before = openDescriptors()
      expect(codeOf(() => readTensorIndex(folder.path))).toBe(code)
      expect(openDescriptors()).toBe(before)
    })
  }

  it('refuses an index that is no JSON, or names a tensor twice', () => {
    using folder = createFolder({ [INDEX]: '{', 'x.safetensors': shard('a') })
    expect(codeOf(() => readTensorIndex(folder.path))).toBe('ERR_SAFETENSORS')
    folder.write(INDEX, '{"weight_map":{"a":"x.safetensors","a":"x.safetensors"}}')
    expect(codeOf(() => readTensorIndex(folder.path))).toBe('ERR_SAFETENSORS')
  })
})

describe('folders', () => {
  it('without weights are refused', () => {
    using folder = createFolder({ 'pytorch_model.bin': 'pickle' })
    expect(codeOf(() => readTensorIndex(folder.path))).toBe('ERR_MODEL_NOT_FOUND')
  })

  it('must be folders', () => {
    using folder = createFolder({ file: '' })
    requireFolder(folder.path)
    for (const path of [join(folder.path, 'file'), join(folder.path, 'gone'), 'a\0b', '']) {
      expect(codeOf(() => requireFolder(path))).toBe('ERR_MODEL_NOT_FOUND')
    }
  })
})
