/** Grammars that outputs follow. */

export { GrammarBuilder } from './builder.ts'
export type { GrammarSpec } from './grammar.ts'
