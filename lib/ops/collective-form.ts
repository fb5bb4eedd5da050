/**
 * How a collective moves its bytes. `auto` follows the launch plan (native/comm/launch_plan.h); the
 * others force one: every rank does everything, a rank does its share, through the switch, by NCCL.
 * The last two are CUDA's alone.
 */

import type { OpOperands } from './spec.ts'

export const COLLECTIVE_FORMS = ['auto', 'one_shot', 'two_shot', 'multicast', 'nccl'] as const

export type CollectiveForm = (typeof COLLECTIVE_FORMS)[number]

export interface CollectiveAttrs {
  readonly form?: CollectiveForm | undefined
}

export function checkForm(op: OpOperands): void {
  const form = op.op.attrs.form ?? 'auto'
  op.require(
    (COLLECTIVE_FORMS as readonly unknown[]).includes(form),
    `form is ${form}, not one of ${COLLECTIVE_FORMS.join(', ')}`,
  )
}
