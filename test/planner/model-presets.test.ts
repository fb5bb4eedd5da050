/** Presets are the published models: as many parameters as their cards say, and programs with costs. */

import { describe, expect, it } from 'vitest'
import { modelPresetNames } from '../../lib/models/index.ts'
import { layoutFootprint } from '../../lib/planner/footprint.ts'
import { hardwarePreset } from '../../lib/planner/presets.ts'
import { SERIAL } from '../../lib/planner/schedule.ts'
import { predictStep, scheduled } from '../../lib/planner/search.ts'
import { mixedShape } from '../../lib/planner/step-shape.ts'
import { presetProgram } from './programs.ts'

const h200 = hardwarePreset('h200')

/** Billions of parameters, all and met by a token, from the model cards. */
const PUBLISHED: Readonly<Record<string, readonly [all: number, active: number]>> = {
  'mixtral-8x7b': [46.7, 12.9],
  'mixtral-8x22b': [141, 39],
  'qwen3-30b-a3b': [30.5, 3.3],
  'qwen3-235b-a22b': [235, 22],
  'deepseek-v3': [671, 37],
  'gpt-oss-120b': [116.8, 5.1],
}

describe.each(modelPresetNames())('%s', (name) => {
  const ranks = 8
  const program = presetProgram(name, ranks)

  it('takes longer for more tokens', () => {
    const secondsOf = (numTokens: number) =>
      predictStep(
        h200,
        scheduled(program, SERIAL),
        mixedShape({ numTokens, numDecodes: 0, context: 0, promptLength: numTokens }),
      )
    const [few, many] = [secondsOf(256), secondsOf(8192)]
    expect(few).toBeGreaterThan(0)
    expect(many).toBeGreaterThan(few)
  })

  const published = PUBLISHED[name]
  if (published === undefined) return
  it('has the published number of parameters', () => {
    const { weightBytes, activeParameters } = layoutFootprint(h200, program)
    const [all, active] = published
    // bf16; KV heads and latents that every rank has count once more for each.
    expect((ranks * weightBytes) / 2e9 / all).toBeGreaterThan(0.98)
    expect((ranks * weightBytes) / 2e9 / all).toBeLessThan(1.08)
    expect(activeParameters / 1e9 / active).toBeGreaterThan(0.85)
    expect(activeParameters / 1e9 / active).toBeLessThan(1.25)
  })
})
