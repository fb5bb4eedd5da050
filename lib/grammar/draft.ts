/**
 * A grammar some of whose rules are schemas and patterns that are still to be written as EBNF. That may
 * take hundreds of milliseconds, so it is done where grammars are compiled; a draft is plain JSON.
 */

/** A rule to be written: JSON that validates against a schema, or text that a pattern matches whole. */
export interface Unwritten {
  readonly name: string
  readonly schema?: unknown
  readonly regex?: string
  /** What the sender of the request calls it, for errors. */
  readonly param?: string
}

export interface Draft {
  readonly rules: readonly (readonly [name: string, body: string])[]
  /** Rules that were given a name. */
  readonly numNames: number
  readonly unwritten: readonly Unwritten[]
  /** The expression of the whole text. */
  readonly root: string
}
