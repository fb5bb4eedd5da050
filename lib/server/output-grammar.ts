/**
 * What a body asks its output to follow → the grammar of the engine's request: response_format and
 * the guided_* extras, a tool_choice that forces a call, tools that are strict.
 */

import { GrammarBuilder, type GrammarSpec } from '../grammar/index.ts'
import { badRequest } from './api-error.ts'
import type { ChatBody, SamplingBody, ToolBody } from './schema/bodies.ts'
import { THINK_CLOSE, THINK_OPEN, type ToolFormat } from './tools/index.ts'

/** Adds the rules of an answer; returns its expression. */
type AddAnswer = (builder: GrammarBuilder) => string

/** The extras, which stand in chat and text completions; an EBNF grammar cannot be part of another. */
interface Wanted {
  readonly param: string
  readonly add?: AddAnswer
  readonly ebnf?: string
}

function guided(body: SamplingBody): Wanted[] {
  const wanted: Wanted[] = []
  const { guided_json: json, guided_regex: regex, guided_grammar: ebnf, guided_choice } = body
  if (json !== undefined && json !== null) {
    const schema = typeof json === 'string' ? parseSchema(json) : json
    const param = 'guided_json'
    wanted.push({ param, add: (builder) => builder.schema(schema, param) })
  }
  if (typeof regex === 'string') {
    const param = 'guided_regex'
    wanted.push({ param, add: (builder) => builder.pattern(regex, param) })
  }
  if (Array.isArray(guided_choice)) {
    const add: AddAnswer = (builder) =>
      guided_choice.map((choice: string) => builder.literal(choice)).join(' | ')
    wanted.push({ param: 'guided_choice', add })
  }
  if (typeof ebnf === 'string') wanted.push({ param: 'guided_grammar', ebnf })
  return wanted
}

function parseSchema(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    throw badRequest('invalid_value', 'guided_json is not valid JSON', 'guided_json')
  }
}

function responseFormat({ response_format: format }: ChatBody): Wanted[] {
  const param = 'response_format'
  switch (format?.type) {
    case undefined:
    case 'text':
      return []
    case 'json_object':
      return [{ param, add: (builder) => builder.shared('json_object') }]
    case 'json_schema': {
      const schema = format?.json_schema?.schema
      if (schema === undefined)
        throw badRequest('invalid_value', 'response_format has no json_schema.schema', param)
      return [{ param, add: (builder) => builder.schema(schema, param) }]
    }
    default:
      throw badRequest(
        'unsupported_response_format',
        'response_format must be text, json_object or json_schema',
        param,
      )
  }
}

function onlyOne(wanted: readonly Wanted[]): Wanted | undefined {
  if (wanted.length > 1) {
    const names = wanted.map(({ param }) => param).join(' and ')
    throw badRequest('invalid_value', `${names} exclude each other`, wanted[1]!.param)
  }
  return wanted[0]
}

/** Of a text completion. */
export function textGrammar(body: SamplingBody): GrammarSpec | undefined {
  const wanted = onlyOne(guided(body))
  if (wanted === undefined) return undefined
  const { param, ebnf } = wanted
  return ebnf === undefined
    ? specOf((builder) => wanted.add!(builder), { param, specialTokens: [] })
    : { ebnf, param }
}

export interface ChatGrammarContext {
  /** How the model writes calls; undefined: no tool is offered. */
  readonly format: ToolFormat | undefined
  readonly tools: readonly ToolBody[]
  /** `<think>` may come first, or has been opened by the prompt. */
  readonly reasoning: 'none' | 'possible' | 'open'
}

/** Of a chat completion. ApiError where the body contradicts itself. */
export function chatGrammar(body: ChatBody, context: ChatGrammarContext): GrammarSpec | undefined {
  const { format, tools, reasoning } = context
  const wanted = onlyOne([...responseFormat(body), ...guided(body)])
  const forced = forcedTools(body, tools)
  if (wanted?.ebnf !== undefined) {
    if (forced !== undefined)
      throw badRequest('invalid_value', 'guided_grammar excludes a forced call', 'tool_choice')
    return { ebnf: wanted.ebnf, param: wanted.param }
  }
  const isStrict = tools.some((tool) => tool.function.strict === true)
  const offersCalls =
    forced !== undefined || (tools.length > 0 && (isStrict || wanted !== undefined))
  if (wanted === undefined && !offersCalls) return undefined
  const markers = [
    ...(format?.markers ?? []),
    ...(reasoning === 'none' ? [] : [THINK_OPEN, THINK_CLOSE]),
  ]
  const param = wanted?.param ?? 'tools'
  return specOf(
    (builder) => {
      const answer = wanted?.add?.(builder)
      if (!offersCalls || format === undefined)
        return withReasoning(builder, format?.addAnswer?.(builder, answer!) ?? answer!, reasoning)
      const calls = (forced ?? tools).map((tool) => {
        const { name, parameters } = tool.function
        return {
          name,
          param: `tools[${tools.indexOf(tool)}].function.parameters`,
          ...(parameters !== null && parameters !== undefined && { parameters }),
        }
      })
      const otherwise = answer === undefined ? 'text' : { expression: answer }
      const root = format.addRules(builder, {
        calls,
        isParallel: body.parallel_tool_calls !== false && !isNamed(body),
        ...(forced === undefined && { otherwise }),
      })
      return withReasoning(builder, root, reasoning)
    },
    { param, specialTokens: markers },
  )
}

/** Schemas and patterns are only named here: the engine's workers write them. */
function specOf(add: AddAnswer, rest: Pick<GrammarSpec, 'param' | 'specialTokens'>): GrammarSpec {
  const builder = new GrammarBuilder()
  return { draft: builder.draft(add(builder)), ...rest }
}

function isNamed({ tool_choice: choice }: ChatBody): boolean {
  return typeof choice === 'object' && choice !== null
}

/** The tools of which one must be called; undefined: none must. */
function forcedTools(body: ChatBody, tools: readonly ToolBody[]): readonly ToolBody[] | undefined {
  const { tool_choice: choice } = body
  if (choice === undefined || choice === null || choice === 'auto' || choice === 'none')
    return undefined
  if (choice === 'required') {
    if (tools.length === 0)
      throw badRequest('invalid_value', 'tool_choice required needs tools', 'tool_choice')
    return tools
  }
  const name = typeof choice === 'object' && choice.type === 'function' && choice.function?.name
  if (typeof name !== 'string')
    throw badRequest(
      'unsupported_tool_choice',
      'tool_choice must be auto, none, required or a function',
      'tool_choice',
    )
  const named = tools.filter((tool) => tool.function.name === name)
  if (named.length === 0)
    throw badRequest('invalid_value', `tool_choice names ${name}, which is no tool`, 'tool_choice')
  return named
}

function withReasoning(
  builder: GrammarBuilder,
  root: string,
  reasoning: ChatGrammarContext['reasoning'],
): string {
  if (reasoning === 'none') return root
  const text = builder.rule(`(${builder.noneOf('<')} | "<" ${builder.noneOf('/<')})*`)
  const thoughts = `${text} ${builder.literal(THINK_CLOSE)} "\\n"{0,2}`
  return reasoning === 'open'
    ? `${thoughts} (${root})`
    : `(${builder.literal(THINK_OPEN)} ${thoughts})? (${root})`
}
