/** The launch plan of collectives (native/comm/launch_plan.h): priors, limits, refusals, hash. */

import { expect, it } from 'vitest'
import { runNativeCheck } from './support/native-check.ts'

it('chooses by the published priors, within every limit, and refuses by name', () => {
  expect(runNativeCheck('launch_plan', ['comm/launch_plan.cc'])).toBe('')
})
