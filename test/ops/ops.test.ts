/**
 * Every case of every op, on every instruction set of this machine, against the references: inputs
 * written, everything else poisoned, the step submitted, outputs read. What the op must not write
 * must still be poison.
 */

import { describe, expect, test } from 'vitest'
import { STEP_SECTION } from '../../lib/engine/step.ts'
import type { Dtype } from '../../lib/program/types.ts'
import { encodeStep, OpRuntime, placeApart, splitIntoParts, usableIsas } from '../support/native.ts'
import { ATTENTION_CASES } from './attention.cases.ts'
import { COLLECTIVE_CASES } from './collectives.cases.ts'
import { EXPERT_CASES } from './experts.cases.ts'
import { MATMUL_CASES } from './matmul.cases.ts'
import { MLA_CASES } from './mla.cases.ts'
import type { CaseContents, Expected, OpCase } from './op-case.ts'
import { OVERLAP_CASES } from './overlap.cases.ts'
import { ROPE_CASES } from './rope.cases.ts'
import { ROW_CASES } from './rows.cases.ts'
import { expectWithin } from './tolerance.ts'

const CASES: readonly OpCase[] = [
  ...ROW_CASES,
  ...ROPE_CASES,
  ...MATMUL_CASES,
  ...ATTENTION_CASES,
  ...COLLECTIVE_CASES,
  ...EXPERT_CASES,
  ...OVERLAP_CASES,
  ...MLA_CASES,
]

/** Threads of each rank: odd, so that work does not divide evenly. */
const THREADS = 3

async function runCase(opCase: OpCase, contents: CaseContents, cpuIsa: string): Promise<void> {
  const { builder, inputs, expected, weights = {} } = contents
  const rows = contents.step.get(STEP_SECTION.tokens)!.length
  const bounds = opCase.parts ?? [0, rows]
  const program = splitIntoParts(placeApart(builder), bounds.length - 1)
  const runtime = await OpRuntime.open(program, { weights, cpuIsa, threadsPerRank: THREADS })
  try {
    await runtime.poison()
    for (const [name, perRank] of Object.entries(inputs)) {
      for (let rank = 0; rank < program.world; rank++) {
        await runtime.write(name, rank, perRank[Math.min(rank, perRank.length - 1)]!)
      }
    }
    await runtime.submit(encodeStep(new Map([[STEP_SECTION.partBounds, bounds], ...contents.step])))
    for (const output of expected) {
      let checked = 0
      for (let rank = 0; rank < program.world; rank++) {
        checked += await checkOutput(runtime, output, rank)
      }
      expect(checked).toBeGreaterThan(0)
    }
  } finally {
    await runtime.close()
  }
}

/** Bytes of 0xff: NaN, or −1. */
function isPoison(value: number, dtype: Dtype): boolean {
  return dtype === 'i32' ? value === -1 : Number.isNaN(value)
}

/** Returns how many elements the op had to write. */
async function checkOutput(runtime: OpRuntime, output: Expected, rank: number): Promise<number> {
  const { buffer, values, tolerance } = output
  const wanted = values[Math.min(rank, values.length - 1)]!
  const actual = await runtime.read(buffer, rank)
  const { dtype } = runtime.program.buffers.find(({ name }) => name === buffer)!
  const written: number[] = []
  const reference: number[] = []
  for (let i = 0; i < actual.length; i++) {
    const want = wanted[i] ?? Number.NaN
    if (!Number.isNaN(want)) {
      written.push(actual[i]!)
      reference.push(want)
    } else if (!isPoison(actual[i]!, dtype)) {
      expect.fail(`rank ${rank}: element ${i} of ${buffer} was written, it is not the op's`)
    }
  }
  expectWithin(tolerance, written, reference, dtype)
  return written.length
}

/** References are made once, not once per instruction set. */
const contents = new Map<OpCase, CaseContents>()

function contentsOf(opCase: OpCase): CaseContents {
  const made = contents.get(opCase) ?? opCase.make()
  contents.set(opCase, made)
  return made
}

describe.each(usableIsas())('%s', (cpuIsa) => {
  test.each(CASES)('$name', async (opCase) => {
    await runCase(opCase, contentsOf(opCase), cpuIsa)
  })
})
