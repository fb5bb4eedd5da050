/**
 * Forks: sequences that sample other outputs of one prompt. One member of the group computes the
 * prompt; the others wait here until its KV is planned, then share its blocks (memory.ts). They go
 * before new sequences: their group has been admitted. When nobody is left who computes the prompt,
 * the first that waits becomes an ordinary waiting sequence.
 */

import { donorOf, type ForkGroup, isLeaving, type Sequence } from './sequence.ts'

export class Forks {
  /** Groups with members that wait, in order of arrival. */
  readonly #groups: ForkGroup[] = []
  #size = 0

  /** Members that wait. */
  get size(): number {
    return this.#size
  }

  /** Takes a sequence in if another member of its group computes, or will compute, the prompt. */
  add(sequence: Sequence): boolean {
    const { group } = sequence
    if (group === undefined) return false
    group.members.push(sequence)
    if (!group.members.some((member) => member !== sequence && !isLeaving(member))) return false
    if (group.waiting.length === 0) this.#insert(group)
    group.waiting.push(sequence)
    this.#size++
    return true
  }

  /** It starts, or ends. False: it does not wait here. */
  remove(sequence: Sequence): boolean {
    const { group } = sequence
    const index = group?.waiting.indexOf(sequence) ?? -1
    if (group === undefined || index < 0) return false
    group.waiting.splice(index, 1)
    this.#size--
    if (group.waiting.length === 0) this.#groups.splice(this.#groups.indexOf(group), 1)
    return true
  }

  /** The first whose prompt is there. */
  get next(): Sequence | undefined {
    for (const { waiting } of this.#groups) if (donorOf(waiting[0]) !== undefined) return waiting[0]
    return undefined
  }

  /** How many wait here and came before it; -1: it does not wait here. */
  position(sequence: Sequence): number {
    let position = 0
    for (const { waiting } of this.#groups) {
      const index = waiting.indexOf(sequence)
      if (index >= 0) return position + index
      position += waiting.length
    }
    return -1
  }

  /** A member has ended. Returns the one that has to compute the prompt now, if there is one. */
  onEnded({ group }: Sequence): Sequence | undefined {
    if (group === undefined || group.waiting.length === 0) return undefined
    const { members, waiting } = group
    if (members.some((member) => !isLeaving(member) && !waiting.includes(member))) return undefined
    const [heir] = waiting
    this.remove(heir)
    return heir
  }

  #insert(group: ForkGroup): void {
    let at = this.#groups.length
    while (at > 0 && this.#groups[at - 1].members[0].id > group.members[0].id) at--
    this.#groups.splice(at, 0, group)
  }
}
