/** The error codes are one list in two languages. */

import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { ERROR_CODES, systemReason } from '../lib/errors.ts'

function readNative(file: string): string {
  return readFileSync(new URL(`../native/core/${file}`, import.meta.url), 'utf8')
}

/** kRankTimeout → ERR_RANK_TIMEOUT */
function textOf(enumerator: string): string {
  return `ERR${enumerator.slice(1).replace(/[A-Z]/g, (letter) => `_${letter}`)}`.toUpperCase()
}

test('native/core/error.h lists the same codes in the same order', () => {
  const body = /enum class ErrorCode \{([^}]*)\}/.exec(readNative('error.h'))
  const enumerators = [...(body?.[1] ?? '').matchAll(/\bk[A-Z]\w*/g)].map(([name]) => name)
  expect(enumerators.map(textOf)).toEqual([...ERROR_CODES])
})

test('error_code_name prints every code as lib/errors.ts spells it', () => {
  const cases = readNative('error.cc').matchAll(/case ErrorCode::(k\w+):\s*return "(\w+)"/g)
  const names = [...cases].map(([, enumerator, text]) => [textOf(enumerator!), text])
  expect(names).toEqual(ERROR_CODES.map((code) => [code, code]))
})

test('what the system says of a path is said in words', () => {
  const reasonOf = (path: string): string => {
    try {
      return readFileSync(path, 'utf8')
    } catch (error) {
      return systemReason(error)
    }
  }
  expect(reasonOf('/no/such/file')).toMatch(/does not exist; check the spelling/)
  expect(reasonOf('package.json/x')).toMatch(/a part of its path is a file/)
  expect(reasonOf('.')).toMatch(/it is a folder/)
  expect(systemReason(new Error('anything else'))).toBe('anything else')
})
