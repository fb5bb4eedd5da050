/** Grammars of tool calls: what the formats share. */

import type { GrammarBuilder } from '../../grammar/index.ts'
import type { OfferedCall } from './types.ts'

/** Calls in a row at most, where a model may make several. */
export const MAX_CALLS = 16

/** `{"name": …, KEY: {…}}` of any of the calls. */
export function jsonCall(
  builder: GrammarBuilder,
  calls: readonly OfferedCall[],
  argumentsKey: 'arguments' | 'parameters',
): string {
  const ws = builder.shared('ws')
  const key = (name: string) => `${builder.literal(JSON.stringify(name))} ${ws} ":" ${ws}`
  const choices = calls.map((call) => {
    const { name } = call
    const named = `${key('name')} ${builder.literal(JSON.stringify(name))}`
    const rest = `${key(argumentsKey)} ${callArguments(builder, call)}`
    return `"{" ${ws} ${named} ${ws} "," ${ws} ${rest} ${ws} "}"`
  })
  return builder.rule(choices.join(' | '))
}

export function callArguments(builder: GrammarBuilder, { parameters, param }: OfferedCall): string {
  return builder.schema(parameters ?? { type: 'object' }, param)
}

/** Text without `marker`: its first two characters, neither the same, never follow each other. */
export function textWithout(builder: GrammarBuilder, marker: string): string {
  const [first, second] = [...marker] as [string, string]
  const literal = builder.literal(first)
  return builder.rule(
    `(${builder.noneOf(first)} | ${literal}+ ${builder.noneOf(first + second)})* ${literal}*`,
  )
}
