// @ts-check
/**
 * Renders chat templates in a process of its own, started by chat-template.ts. A template comes
 * from a model folder and can loop or allocate without end; V8 answers some of that by ending
 * the process, worker threads included, so the limits need a process boundary. Plain JavaScript,
 * so that it runs the same from lib/ and from dist/.
 *
 * Request: { template, variables, limits }. Answer: { text } or { error }.
 */

import process from 'node:process'
import { Script } from 'node:vm'
import { Environment, Interpreter, parse, tokenize } from '@huggingface/jinja'

/** As in Jinja's sandbox. */
const maxRange = 100_000

/**
 * @typedef {{ cpuMs: number, wallMs: number, attempts: number, outputChars: number }} Limits
 * @typedef {{ template: string, variables: Record<string, unknown>, limits: Limits }} Request
 */

/**
 * @param {number} start
 * @param {number} [stop]
 * @param {number} [step]
 */
function range(start, stop, step = 1) {
  const [from, to] = stop === undefined ? [0, start] : [start, stop]
  if (![from, to, step].every(Number.isInteger) || step === 0) {
    throw new Error('range() takes integers, and a step other than 0')
  }
  const length = Math.max(0, Math.ceil((to - from) / step))
  if (length > maxRange) throw new Error(`range() of more than ${maxRange} numbers`)
  return Array.from({ length }, (_, i) => from + i * step)
}

/** @param {string} message */
function raiseException(message) {
  throw new Error(String(message))
}

/**
 * Python's strftime, English names, local time.
 * @param {string} format
 */
function strftimeNow(format) {
  const now = new Date()
  /** @param {Intl.DateTimeFormatOptions} options */
  const name = (options) => new Intl.DateTimeFormat('en-US', options).format(now)
  /** @param {number} value */
  const two = (value) => String(value).padStart(2, '0')
  const dayOfYear = Math.round(
    (Date.UTC(now.getFullYear(), now.getMonth(), now.getDate()) -
      Date.UTC(now.getFullYear(), 0, 0)) /
      86_400_000,
  )
  /** @type {Record<string, () => string>} */
  const fields = {
    Y: () => String(now.getFullYear()),
    y: () => two(now.getFullYear() % 100),
    m: () => two(now.getMonth() + 1),
    B: () => name({ month: 'long' }),
    b: () => name({ month: 'short' }),
    d: () => two(now.getDate()),
    A: () => name({ weekday: 'long' }),
    a: () => name({ weekday: 'short' }),
    j: () => String(dayOfYear).padStart(3, '0'),
    H: () => two(now.getHours()),
    I: () => two(now.getHours() % 12 || 12),
    M: () => two(now.getMinutes()),
    S: () => two(now.getSeconds()),
    p: () => (now.getHours() < 12 ? 'AM' : 'PM'),
    '%': () => '%',
  }
  return String(format).replace(/%([A-Za-z%])/g, (text, key) => fields[key]?.() ?? text)
}

/** @type {Map<string, ReturnType<typeof parse>>} */
const programs = new Map()

/** @param {string} template */
function parseTemplate(template) {
  let program = programs.get(template)
  if (program === undefined) {
    program = parse(tokenize(template, { lstrip_blocks: true, trim_blocks: true }))
    // A model has one or two templates; more means that models come and go.
    if (programs.size >= 8) programs.clear()
    programs.set(template, program)
  }
  return program
}

/**
 * @param {string} template
 * @param {Record<string, unknown>} variables
 */
function render(template, variables) {
  const environment = new Environment()
  const globals = {
    true: true,
    True: true,
    false: false,
    False: false,
    none: null,
    None: null,
    range,
    raise_exception: raiseException,
    strftime_now: strftimeNow,
  }
  for (const [name, value] of Object.entries({ ...globals, ...variables })) {
    // Every scope declares `namespace` itself.
    if (name !== 'namespace') environment.set(name, value)
  }
  const result = new Interpreter(environment).run(parseTemplate(template))
  return String(result.value)
}

/** What a timed run works on; V8 can only interrupt a script. */
const job = { run: () => '' }
Object.assign(globalThis, { nanoweaveTemplateJob: job })
const script = new Script('nanoweaveTemplateJob.run()')

/**
 * Runs within the limits. The limit is processor time: on a busy machine a run that was not
 * given the processor is started again.
 * @param {Request} request
 */
function renderWithin({ template, variables, limits }) {
  job.run = () => render(template, variables)
  for (let attempt = 1; ; attempt++) {
    const before = process.cpuUsage()
    try {
      const text = script.runInThisContext({ timeout: limits.wallMs })
      if (text.length > limits.outputChars) {
        throw new Error(`the text is longer than ${limits.outputChars} characters`)
      }
      return text
    } catch (error) {
      if (Reflect.get(Object(error), 'code') !== 'ERR_SCRIPT_EXECUTION_TIMEOUT') throw error
      const used = process.cpuUsage(before)
      if ((used.user + used.system) / 1000 >= limits.cpuMs || attempt >= limits.attempts) {
        throw new Error(`not done after ${limits.wallMs} ms`)
      }
    }
  }
}

process.on('message', (/** @type {Request} */ request) => {
  let answer
  try {
    answer = { text: renderWithin(request) }
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error)
    answer = { error: message.slice(0, 2000) }
  }
  process.send?.(answer)
})
process.on('disconnect', () => process.exit())
// Ctrl-C reaches the whole process group; the parent decides when this process ends.
process.on('SIGINT', () => {})

// The first render would pay for compiling the interpreter.
render("{% for m in messages %}{{ m['role'] + ': ' ~ m.content | trim }}{% endfor %}", {
  messages: [{ role: 'user', content: 'warm' }],
})
