/** Grammars that outputs follow. */

export { GrammarBuilder } from './builder.ts'
export type { GrammarSpec } from './grammar.ts'
export { addSchema } from './json-schema.ts'
export { grammarProblem } from './problem.ts'
export { plainText, regexExpression } from './regex.ts'
