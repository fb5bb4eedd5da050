/**
 * JSON Schema (2020-12 and draft 7, as far as a grammar can say it) → EBNF. Every text of the grammar
 * validates; where the schema leaves a choice the grammar takes the narrower one: properties in the
 * order in which they are declared, none beyond them unless `additionalProperties` asks, patterns as
 * the whole text. A keyword that cannot be enforced is refused by name.
 */

import type { GrammarBuilder } from './builder.ts'
import { classOf, complement, literalOf } from './characters.ts'
import { STRING_FORMATS } from './formats.ts'
import { addNumberRange } from './number-range.ts'
import { grammarProblem } from './problem.ts'
import { jsonText, regexExpression } from './regex.ts'

type Schema = Readonly<Record<string, unknown>>

export const MAX_SCHEMA_BYTES = 256 << 10
export const MAX_SCHEMA_DEPTH = 64
const MAX_ITEMS = 4096

/** Say nothing about what validates. */
const ANNOTATIONS = new Set([
  '$schema',
  '$id',
  '$comment',
  '$defs',
  'definitions',
  'title',
  'description',
  'default',
  'examples',
  'example',
  'deprecated',
  'readOnly',
  'writeOnly',
  'strict',
  'contentEncoding',
  'contentMediaType',
  'nullable',
])
const OBJECT_KEYWORDS = [
  'properties',
  'required',
  'additionalProperties',
  'unevaluatedProperties',
  'propertyNames',
  'minProperties',
  'maxProperties',
]
const ARRAY_KEYWORDS = ['items', 'prefixItems', 'minItems', 'maxItems', 'uniqueItems']
const STRING_KEYWORDS = ['minLength', 'maxLength', 'pattern', 'format']
const NUMBER_KEYWORDS = ['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum', 'multipleOf']
const KEYWORDS_OF_TYPE: Readonly<Record<string, readonly string[]>> = {
  object: OBJECT_KEYWORDS,
  array: ARRAY_KEYWORDS,
  string: STRING_KEYWORDS,
  number: NUMBER_KEYWORDS,
  integer: NUMBER_KEYWORDS,
  boolean: [],
  null: [],
}
const TYPES = Object.keys(KEYWORDS_OF_TYPE)
const COMBINERS = ['$ref', 'anyOf', 'oneOf', 'allOf', 'enum', 'const', 'type']
const KNOWN = new Set([...ANNOTATIONS, ...COMBINERS, ...Object.values(KEYWORDS_OF_TYPE).flat()])

/** Adds the rules of a schema to a grammar; returns the expression of its texts. */
export function addSchema(builder: GrammarBuilder, schema: unknown): string {
  checkSize(schema)
  return new SchemaWriter(builder, schema).value(schema, '#')
}

function checkSize(schema: unknown): void {
  if (depthOf(schema) > MAX_SCHEMA_DEPTH)
    throw grammarProblem(`the schema is nested more than ${MAX_SCHEMA_DEPTH} deep`)
  let text: string | undefined
  try {
    text = JSON.stringify(schema)
  } catch {
    throw grammarProblem('the schema must be plain JSON')
  }
  if (text === undefined) throw grammarProblem('the schema must be plain JSON')
  if (Buffer.byteLength(text) > MAX_SCHEMA_BYTES)
    throw grammarProblem(`the schema has more than ${MAX_SCHEMA_BYTES} bytes`)
}

/** Stops counting one past the limit, so it ends on cycles too. */
function depthOf(value: unknown, depth = 0): number {
  if (typeof value !== 'object' || value === null || depth > MAX_SCHEMA_DEPTH) return depth
  let deepest = depth + 1
  for (const child of Object.values(value)) {
    deepest = Math.max(deepest, depthOf(child, depth + 1))
    if (deepest > MAX_SCHEMA_DEPTH) break
  }
  return deepest
}

class SchemaWriter {
  readonly #builder: GrammarBuilder
  readonly #root: unknown
  /** Pointer → rule. */
  readonly #references = new Map<string, string>()
  /** References between here and the last character that must be written: a cycle never ends. */
  #unguarded = new Set<string>()

  constructor(builder: GrammarBuilder, root: unknown) {
    this.#builder = builder
    this.#root = root
  }

  /** `at`: where the schema stands, for messages. */
  value(schema: unknown, at: string): string {
    if (schema === true) return this.#builder.shared('json_value')
    if (schema === false) throw this.#problem(at, 'nothing validates against false')
    if (typeof schema !== 'object' || schema === null || Array.isArray(schema))
      throw this.#problem(at, 'a schema must be an object or a boolean')
    const own = schema as Schema
    for (const keyword of Object.keys(own))
      if (!KNOWN.has(keyword)) this.#checkUnknown(keyword, own, at)
    if (own.$ref !== undefined) return this.#reference(own, at)
    if (own.allOf !== undefined) return this.value(this.#merged(own, at), at)
    if (own.anyOf !== undefined || own.oneOf !== undefined) return this.#choice(own, at)
    if (own.const !== undefined || own.enum !== undefined) return this.#constants(own, at)
    return this.#typed(own, at)
  }

  #problem(at: string, what: string): Error {
    return grammarProblem(`the schema cannot be used: ${what}, at ${at}`)
  }

  #checkUnknown(keyword: string, schema: Schema, at: string): void {
    // What a vendor or a library adds says nothing about what validates.
    const isVendor = keyword.startsWith('x-') || keyword.startsWith('~')
    if (isVendor || schema[keyword] === undefined) return
    throw this.#problem(at, `the keyword ${keyword} is not supported`)
  }

  // ---- references and combinations ----

  #reference(schema: Schema, at: string): string {
    const others = keywordsOf(schema).filter((keyword) => keyword !== '$ref')
    if (others.length > 0) throw this.#problem(at, `$ref beside ${others.join(', ')}`)
    const pointer = schema.$ref
    if (typeof pointer !== 'string' || !pointer.startsWith('#'))
      throw this.#problem(at, '$ref must point into the schema (#/…)')
    if (this.#unguarded.has(pointer)) throw this.#problem(at, `${pointer} refers to itself alone`)
    const known = this.#references.get(pointer)
    if (known !== undefined) return known
    const rule = this.#builder.reserve()
    this.#references.set(pointer, rule)
    this.#unguarded.add(pointer)
    this.#builder.define(rule, this.value(this.#resolve(pointer, at), pointer))
    this.#unguarded.delete(pointer)
    return rule
  }

  #resolve(pointer: string, at: string): unknown {
    let target: unknown = this.#root
    for (const part of pointer.split('/').slice(1)) {
      let name = part
      try {
        name = decodeURIComponent(part)
      } catch {
        // Not escaped, then.
      }
      name = name.replaceAll('~1', '/').replaceAll('~0', '~')
      if (typeof target !== 'object' || target === null || !Object.hasOwn(target, name))
        throw this.#problem(at, `there is nothing at ${pointer}`)
      target = (target as Schema)[name]
    }
    return target
  }

  /** Inside something that writes characters of its own a reference may come round again. */
  #guarded<T>(write: () => T): T {
    const outer = this.#unguarded
    this.#unguarded = new Set()
    try {
      return write()
    } finally {
      this.#unguarded = outer
    }
  }

  /** All members of allOf and what stands beside them as one schema. */
  #merged(schema: Schema, at: string): Schema {
    const { allOf, ...rest } = schema
    if (!Array.isArray(allOf) || allOf.length === 0) throw this.#problem(at, 'allOf must be a list')
    let merged: Schema = rest
    allOf.forEach((member: unknown, index) => {
      merged = this.#merge(merged, this.#inlined(member, `${at}/allOf/${index}`), at)
    })
    return merged
  }

  #inlined(member: unknown, at: string, depth = 0): Schema {
    if (typeof member !== 'object' || member === null || depth > MAX_SCHEMA_DEPTH)
      throw this.#problem(at, 'a member of allOf must be an object that ends somewhere')
    const schema = member as Schema
    if (typeof schema.$ref !== 'string' || keywordsOf(schema).length > 1) return schema
    return this.#inlined(this.#resolve(schema.$ref, at), at, depth + 1)
  }

  #merge(a: Schema, b: Schema, at: string): Schema {
    const merged: Record<string, unknown> = { ...a }
    for (const [keyword, value] of Object.entries(b)) {
      const before = merged[keyword]
      if (ANNOTATIONS.has(keyword) || before === undefined || isEqual(before, value))
        merged[keyword] = before ?? value
      else if (keyword === 'properties')
        merged[keyword] = this.#merge(before as Schema, value as Schema, `${at}/properties`)
      else if (keyword === 'required' || keyword === 'allOf')
        merged[keyword] = [...new Set([...(before as unknown[]), ...(value as unknown[])])]
      else throw this.#problem(at, `schemas that both say ${keyword} cannot be joined`)
    }
    return merged
  }

  #choice(schema: Schema, at: string): string {
    const keyword = schema.anyOf === undefined ? 'oneOf' : 'anyOf'
    const { [keyword]: members, ...rest } = schema
    if (!Array.isArray(members) || members.length === 0)
      throw this.#problem(at, `${keyword} must be a list`)
    const hasOthers = keywordsOf(rest).length > 0
    const choices = members.map((member: unknown, index) => {
      const place = `${at}/${keyword}/${index}`
      return this.value(
        hasOthers ? this.#merge(rest, this.#inlined(member, place), place) : member,
        place,
      )
    })
    return group(choices)
  }

  #constants(schema: Schema, at: string): string {
    const beside = keywordsOf(schema).filter((name) => !['const', 'enum', 'type'].includes(name))
    if (beside.length > 0) throw this.#problem(at, `enum or const beside ${beside.join(', ')}`)
    let values: unknown[] = Array.isArray(schema.enum) ? schema.enum : [schema.const]
    if (schema.const !== undefined)
      values = values.filter((value) => isEqual(value, schema.const)).slice(0, 1)
    const types = typesOf(schema)
    if (types !== undefined)
      values = values.filter((value) => types.some((type) => hasType(value, type)))
    if (values.length === 0) throw this.#problem(at, 'no value of enum or const fits')
    return group(values.map((value) => literalOf(JSON.stringify(value))))
  }

  // ---- types ----

  #typed(schema: Schema, at: string): string {
    const stated = typesOf(schema)
    const names = keywordsOf(schema).filter((name) => name !== 'type')
    // Without a type: the one that the keywords are about.
    const types =
      stated ??
      ['object', 'array', 'string', 'number'].filter((type) =>
        names.some((name) => KEYWORDS_OF_TYPE[type]!.includes(name)),
      )
    if (types.length === 0) {
      if (stated !== undefined) throw this.#problem(at, 'type is an empty list')
      return this.#builder.shared('json_value')
    }
    const choices = types.map((type) => {
      if (!TYPES.includes(type)) throw this.#problem(at, `there is no type ${type}`)
      return this.#ofType(type, schema, at)
    })
    if (schema.nullable === true && !types.includes('null')) choices.push('"null"')
    return group(choices)
  }

  #ofType(type: string, schema: Schema, at: string): string {
    switch (type) {
      case 'object':
        return this.#guarded(() => this.#object(schema, at))
      case 'array':
        return this.#guarded(() => this.#array(schema, at))
      case 'string':
        return this.#string(schema, at)
      case 'boolean':
        return this.#builder.shared('json_boolean')
      case 'null':
        return '"null"'
      default:
        return this.#number(type === 'integer', schema, at)
    }
  }

  #number(isInteger: boolean, schema: Schema, at: string): string {
    const bounds: Record<string, number> = {}
    for (const keyword of NUMBER_KEYWORDS) {
      const value = schema[keyword]
      if (value === undefined) continue
      if (keyword === 'multipleOf' && value === 1 && isInteger) continue
      if (keyword === 'multipleOf') throw this.#problem(at, 'multipleOf is not supported')
      if (typeof value !== 'number' || !Number.isFinite(value) || Math.abs(value) > 1e300)
        throw this.#problem(at, `${keyword} must be a number`)
      bounds[keyword] = value
    }
    if (Object.keys(bounds).length === 0)
      return this.#builder.shared(isInteger ? 'json_integer' : 'json_number')
    const rule = addNumberRange(this.#builder, bounds, isInteger)
    if (rule === undefined) throw this.#problem(at, 'no number is within the bounds')
    return rule
  }

  #string(schema: Schema, at: string): string {
    const [least, most] = this.#bounds(schema, 'minLength', 'maxLength', at)
    const { pattern, format } = schema
    const known =
      typeof format === 'string' && Object.hasOwn(STRING_FORMATS, format)
        ? STRING_FORMATS[format]
        : undefined
    const isBounded = least > 0 || most !== undefined
    if (pattern !== undefined && typeof pattern !== 'string')
      throw this.#problem(at, 'pattern must be a text')
    if (pattern !== undefined && (isBounded || known !== undefined))
      throw this.#problem(
        at,
        'pattern beside minLength, maxLength or format; put all in the pattern',
      )
    const body = pattern ?? (isBounded ? undefined : known)
    if (body !== undefined) {
      const expression = regexExpression(body, jsonText)
      return this.#builder.rule(`"\\"" ${expression} "\\""`)
    }
    if (known !== undefined)
      throw this.#problem(at, `format ${format as string} beside minLength or maxLength`)
    if (!isBounded) return this.#builder.shared('json_string')
    const character = this.#builder.shared('json_char')
    return this.#builder.rule(`"\\"" ${repeat(character, least, most)} "\\""`)
  }

  #bounds(
    schema: Schema,
    minimum: string,
    maximum: string,
    at: string,
  ): readonly [least: number, most: number | undefined] {
    const read = (keyword: string): number | undefined => {
      const value = schema[keyword]
      if (value === undefined) return undefined
      if (!Number.isInteger(value) || (value as number) < 0)
        throw this.#problem(at, `${keyword} must be a whole number`)
      return value as number
    }
    const least = read(minimum) ?? 0
    const most = read(maximum)
    if (least > MAX_ITEMS || (most !== undefined && most < least))
      throw this.#problem(at, `${minimum} is above ${maximum}, or above ${MAX_ITEMS}`)
    // What is longer than this is bounded by the tokens of the output.
    return [least, most !== undefined && most > MAX_ITEMS ? undefined : most]
  }

  #array(schema: Schema, at: string): string {
    const prefix = schema.prefixItems ?? (Array.isArray(schema.items) ? schema.items : [])
    if (!Array.isArray(prefix)) throw this.#problem(at, 'prefixItems must be a list')
    const [least, most] = this.#bounds(schema, 'minItems', 'maxItems', at)
    if (schema.uniqueItems === true && (most === undefined || most > 1))
      throw this.#problem(at, 'uniqueItems is not supported')
    const ws = this.#builder.shared('ws')
    const first = prefix.map((item: unknown, index) =>
      this.value(item, `${at}/prefixItems/${index}`),
    )
    const others = Array.isArray(schema.items) ? true : (schema.items ?? true)
    // Items beyond the prefix come only where something asks for them.
    const isClosed = others === false || (first.length > 0 && schema.items === undefined)
    const rest =
      isClosed && least <= first.length
        ? undefined
        : this.#builder.rule(this.value(others, `${at}/items`))
    const end = isClosed ? Math.max(first.length, least) : most
    return this.#builder.rule(this.#items(first, rest, least, minimumOf(most, end), ws))
  }

  #items(
    first: readonly string[],
    rest: string | undefined,
    least: number,
    most: number | undefined,
    ws: string,
  ): string {
    const comma = `${ws} "," ${ws}`
    const closed = (body: string) => `"[" ${ws} ${body} ${ws} "]"`
    const choices: string[] = []
    if (least === 0) choices.push(`"[" ${ws} "]"`)
    for (let count = Math.max(1, least); count < first.length; count++)
      if (most === undefined || count <= most)
        choices.push(closed(first.slice(0, count).join(` ${comma} `)))
    const all = first.slice(0, most)
    if (first.length > 0 && (most === undefined || most >= first.length)) {
      const more =
        rest === undefined
          ? ''
          : repeat(
              `(${comma} ${rest})`,
              Math.max(0, least - first.length),
              most === undefined ? undefined : most - first.length,
            )
      choices.push(closed(`${all.join(` ${comma} `)} ${more}`))
    } else if (first.length === 0 && rest !== undefined && most !== 0) {
      const more = repeat(
        `(${comma} ${rest})`,
        Math.max(0, least - 1),
        most === undefined ? undefined : most - 1,
      )
      choices.push(closed(`${rest} ${more}`))
    }
    return choices.join(' | ')
  }

  // ---- objects ----

  #object(schema: Schema, at: string): string {
    const properties = schema.properties ?? {}
    if (typeof properties !== 'object' || properties === null || Array.isArray(properties))
      throw this.#problem(at, 'properties must be an object')
    const required = schema.required ?? []
    if (!Array.isArray(required) || !required.every((name) => typeof name === 'string'))
      throw this.#problem(at, 'required must be a list of names')
    const declared = new Map(Object.entries(properties as Schema))
    // A required name that is not declared may have any value.
    for (const name of required as string[]) if (!declared.has(name)) declared.set(name, true)
    if (declared.size === 0) return this.#map(schema, at)
    this.#checkCount(schema, declared.size, required.length, at)
    const ws = this.#builder.shared('ws')
    const pairs = [...declared].map(([name, value]) => ({
      text: `${literalOf(JSON.stringify(name))} ${ws} ":" ${ws} ${this.value(value, `${at}/properties/${name}`)}`,
      isRequired: (required as string[]).includes(name),
    }))
    return this.#builder.rule(`"{" ${ws} ${this.#pairs(pairs, this.#extra(schema, declared, at))}`)
  }

  #checkCount(schema: Schema, numDeclared: number, numRequired: number, at: string): void {
    const [least, most] = this.#bounds(schema, 'minProperties', 'maxProperties', at)
    if (least > numRequired) throw this.#problem(at, 'minProperties is not supported')
    if (most !== undefined && (most < numDeclared || this.#isOpen(schema)))
      throw this.#problem(at, 'maxProperties is not supported')
    if (schema.propertyNames !== undefined && this.#isOpen(schema))
      throw this.#problem(at, 'propertyNames beside properties is not supported')
  }

  #isOpen({ additionalProperties: more }: Schema): boolean {
    return more !== undefined && more !== false
  }

  /** A pair beyond the declared ones, if they may come. Its name is none of theirs. */
  #extra(schema: Schema, declared: ReadonlyMap<string, unknown>, at: string): string | undefined {
    if (!this.#isOpen(schema)) return undefined
    const ws = this.#builder.shared('ws')
    const name = this.#nameBut([...declared.keys()])
    const value = this.value(schema.additionalProperties, `${at}/additionalProperties`)
    return this.#builder.rule(`"\\"" ${name} "\\"" ${ws} ":" ${ws} ${value}`)
  }

  /** From the first pair to the closing brace: a rule per property and whether one came before. */
  #pairs(
    pairs: readonly { readonly text: string; readonly isRequired: boolean }[],
    extra: string | undefined,
  ): string {
    const ws = this.#builder.shared('ws')
    const comma = `${ws} "," ${ws}`
    const close = `${ws} "}"`
    const more = extra === undefined ? '' : `(${comma} ${extra})*`
    let after = this.#builder.rule(`${more} ${close}`)
    let first = this.#builder.rule(extra === undefined ? '"}"' : `"}" | ${extra} ${more} ${close}`)
    for (const { text, isRequired } of [...pairs].reverse()) {
      const begins = `${text} ${after}`
      const next = this.#builder.rule(
        isRequired ? `${comma} ${begins}` : `${comma} ${begins} | ${after}`,
      )
      first = this.#builder.rule(isRequired ? begins : `${begins} | ${first}`)
      after = next
    }
    return first
  }

  /** An object without declared properties. */
  #map(schema: Schema, at: string): string {
    const [least, most] = this.#bounds(schema, 'minProperties', 'maxProperties', at)
    // Names may come twice and then count once.
    if (least > 1) throw this.#problem(at, 'minProperties above 1 is not supported')
    const ws = this.#builder.shared('ws')
    const empty = `"{" ${ws} "}"`
    if (schema.additionalProperties === false || schema.unevaluatedProperties === false) {
      if (least > 0) throw this.#problem(at, 'an object that must not have what it must have')
      return empty
    }
    const names = schema.propertyNames
    const name =
      names === undefined
        ? this.#builder.shared('json_string')
        : this.value({ type: 'string', ...(names as Schema) }, `${at}/propertyNames`)
    const value = this.value(schema.additionalProperties ?? true, `${at}/additionalProperties`)
    const pair = this.#builder.rule(`${name} ${ws} ":" ${ws} ${value}`)
    const more = repeat(`(${ws} "," ${ws} ${pair})`, 0, most === undefined ? undefined : most - 1)
    if (most === 0) return empty
    const filled = `"{" ${ws} ${pair} ${more} ${ws} "}"`
    return this.#builder.rule(least > 0 ? filled : `${empty} | ${filled}`)
  }

  /** The characters of a name that is none of `names`: a rule per prefix of theirs. No escapes. */
  #nameBut(names: readonly string[]): string {
    const plain = complement([
      [0, 0x1f],
      [0x22, 0x22],
      [0x5c, 0x5c],
    ])
    const any = `${classOf(plain)}*`
    const state = (prefix: string): string => {
      const nexts = new Set<string>()
      for (const name of names)
        if (name.length > prefix.length && name.startsWith(prefix))
          nexts.add(String.fromCodePoint(name.codePointAt(prefix.length)!))
      const used = [...nexts].map((next) => next.codePointAt(0)!)
      const choices = names.includes(prefix) ? [] : ['""']
      const others = complement([
        ...complement(plain),
        ...used.map((codePoint) => [codePoint, codePoint] as const),
      ])
      choices.push(`${classOf(others)} ${any}`)
      for (const next of nexts)
        if (jsonText([[next.codePointAt(0)!, next.codePointAt(0)!]])?.startsWith('['))
          choices.push(`${literalOf(next)} ${state(prefix + next)}`)
      return this.#builder.rule(choices.join(' | '))
    }
    return state('')
  }
}

function keywordsOf(schema: Schema): string[] {
  return Object.keys(schema).filter(
    (name) => !ANNOTATIONS.has(name) && KNOWN.has(name) && schema[name] !== undefined,
  )
}

function typesOf({ type }: Schema): string[] | undefined {
  if (type === undefined) return undefined
  return Array.isArray(type) ? type.map(String) : [String(type)]
}

function hasType(value: unknown, type: string): boolean {
  switch (type) {
    case 'null':
      return value === null
    case 'array':
      return Array.isArray(value)
    case 'object':
      return typeof value === 'object' && value !== null && !Array.isArray(value)
    case 'integer':
      return Number.isInteger(value)
    default:
      return typeof value === type
  }
}

function isEqual(a: unknown, b: unknown): boolean {
  return JSON.stringify(a) === JSON.stringify(b)
}

function minimumOf(a: number | undefined, b: number | undefined): number | undefined {
  if (a === undefined || b === undefined) return a ?? b
  return Math.min(a, b)
}

function group(choices: readonly string[]): string {
  return choices.length === 1 ? choices[0]! : `(${choices.join(' | ')})`
}

/** `item` at least `least` and at most `most` times; undefined: any number. */
function repeat(item: string, least: number, most: number | undefined): string {
  if (most === 0) return '""'
  if (least === 0 && most === undefined) return `${item}*`
  return `${item}{${least},${most ?? ''}}`
}
