/** The step encoding is one contract in two languages: lib/engine/step.ts and native/program/step.h. */

import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import {
  RESULT_SECTION,
  ROW_FLAG,
  SLOT_PARAM_WORDS,
  STEP_HEADER_WORDS,
  STEP_SECTION,
  STEP_SECTION_WORDS,
  STEP_VERSION,
} from '../lib/engine/step.ts'

const header = readFileSync(new URL('../native/program/step.h', import.meta.url), 'utf8')

/** `enum class Name { kFoo = 1, … }` as { foo: 1, … }. */
function enumeration(name: string): Record<string, number> {
  const body = new RegExp(`enum class ${name}[^{]*\\{([^}]*)\\}`).exec(header)?.[1] ?? ''
  const entries = [...body.matchAll(/k([A-Z])(\w*) = (\d+)/g)]
  return Object.fromEntries(
    entries.map(([, first, rest, value]) => [first!.toLowerCase() + rest, Number(value)]),
  )
}

function constant(name: string): number {
  const value = new RegExp(`constexpr int32_t ${name} = (\\d+);`).exec(header)?.[1]
  return value === undefined ? Number.NaN : Number(value)
}

describe('step encoding', () => {
  test('sections', () => expect(enumeration('StepSection')).toEqual(STEP_SECTION))

  test('result sections', () => expect(enumeration('ResultSection')).toEqual(RESULT_SECTION))

  test('row flags', () =>
    expect({
      sample: constant('kRowSample'),
      logits: constant('kRowLogits'),
      logprob: constant('kRowLogprob'),
    }).toEqual(ROW_FLAG))

  test('sizes and version', () =>
    expect({
      version: constant('kStepVersion'),
      header: constant('kStepHeaderWords'),
      section: constant('kStepSectionWords'),
      slotParams: constant('kSlotParamWords'),
      topShift: constant('kRowTopShift'),
    }).toEqual({
      version: STEP_VERSION,
      header: STEP_HEADER_WORDS,
      section: STEP_SECTION_WORDS,
      slotParams: SLOT_PARAM_WORDS,
      topShift: 8,
    }))
})
