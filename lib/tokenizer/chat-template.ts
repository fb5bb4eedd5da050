/**
 * Chat templates of a model folder: messages → prompt text. A template is code nobody vouches
 * for, so it runs in a child process (template-child.js) that is started by the first render and
 * replaced when it dies: whatever a template does ends in ERR_TEMPLATE.
 */

import { type ChildProcess, fork } from 'node:child_process'
import { readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { EngineError } from '../errors.ts'
import { isJsonObject } from '../weights/json.ts'
import { readTokenizerConfig } from './tokenizer-config.ts'
import type { ChatMessage, ChatTemplate, RenderOptions } from './types.ts'

const maxTemplateBytes = 1 << 20
const maxRequestChars = 32 << 20
const limits = {
  /** Processor time of a render; wall time of one attempt, and attempts of a starved one. */
  cpuMs: 200,
  wallMs: 250,
  attempts: 4,
  outputChars: 16 << 20,
}
/** The child limits itself; this is for one that hangs where V8 cannot interrupt it. */
const answerTimeoutMs = 5_000
const childHeapMb = 128

const reservedVariables = ['messages', 'tools', 'add_generation_prompt'] as const

/** Names of tokenizer_config's list of templates. */
const defaultTemplate = 'default'
const toolTemplate = 'tool_use'

interface Answer {
  readonly text?: string
  readonly error?: string
}

function templateError(why: string, cause?: unknown): EngineError {
  return new EngineError('ERR_TEMPLATE', `the chat template failed: ${why}`, { cause })
}

/** Runs one request at a time in a child process of its own. */
class Renderer {
  #child: ChildProcess | undefined
  #tail: Promise<unknown> = Promise.resolve()
  #closed = false

  /** Renders after everything asked for before. */
  render(request: object): Promise<string> {
    const result = this.#tail.then(() => this.#exchange(request))
    this.#tail = result.catch(() => {})
    return result
  }

  async close(): Promise<void> {
    this.#closed = true
    const child = this.#child
    this.#child = undefined
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return
    const exited = new Promise((resolve) => child.once('exit', resolve))
    child.ref()
    child.kill('SIGKILL')
    await exited
  }

  #start(): ChildProcess {
    const { NODE_OPTIONS: _, ...env } = process.env
    const child = fork(fileURLToPath(new URL('./template-child.js', import.meta.url)), [], {
      execArgv: [`--max-old-space-size=${childHeapMb}`, '--max-semi-space-size=8'],
      env,
      stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
    })
    child.on('error', () => {})
    return child
  }

  #exchange(request: object): Promise<string> {
    if (this.#closed) {
      return Promise.reject(new EngineError('ERR_CLOSED', 'the chat template is closed'))
    }
    this.#child ??= this.#start()
    const child = this.#child
    return new Promise<string>((resolve, reject) => {
      // Only a render in progress keeps the process alive.
      child.ref()
      child.channel?.ref()
      const settle = (finish: () => void): void => {
        clearTimeout(timer)
        child.off('message', onMessage)
        child.off('exit', onEnd)
        child.off('error', onEnd)
        child.unref()
        child.channel?.unref()
        finish()
      }
      const discard = (): void => {
        if (this.#child === child) this.#child = undefined
        child.kill('SIGKILL')
      }
      const onMessage = (answer: unknown): void => {
        const { text, error } = answer as Answer
        settle(() => (text === undefined ? reject(templateError(error ?? '')) : resolve(text)))
      }
      const onEnd = (): void => {
        discard()
        settle(() =>
          reject(
            this.#closed
              ? new EngineError('ERR_CLOSED', 'the chat template was closed during a render')
              : templateError('its process ended; it asked for too much memory'),
          ),
        )
      }
      const timer = setTimeout(() => {
        discard()
        settle(() => reject(templateError(`no answer after ${answerTimeoutMs} ms`)))
      }, answerTimeoutMs)
      child.on('message', onMessage)
      child.once('exit', onEnd)
      child.once('error', onEnd)
      child.send(request, (error) => {
        if (error !== null) onEnd()
      })
    })
  }
}

/**
 * Templates iterate over the arguments of a tool call; OpenAI's clients send them as JSON text.
 */
function parseToolArguments(message: ChatMessage): ChatMessage {
  const calls = message.tool_calls
  if (!Array.isArray(calls)) return message
  return {
    ...message,
    tool_calls: calls.map((call: unknown) => {
      if (!isJsonObject(call) || !isJsonObject(call.function)) return call
      const text = call.function.arguments
      if (typeof text !== 'string') return call
      try {
        const value: unknown = JSON.parse(text)
        if (isJsonObject(value))
          return { ...call, function: { ...call.function, arguments: value } }
      } catch {
        // Not JSON: the template gets the text.
      }
      return call
    }),
  }
}

/** Serialised here first: what JSON cannot carry is the caller's mistake, not the template's. */
function checkRequest(request: object): void {
  let chars: number
  try {
    chars = JSON.stringify(request).length
  } catch (cause) {
    const reason = (cause as Error).message
    throw new EngineError('ERR_USAGE', `messages and tools must be plain JSON: ${reason}`, {
      cause,
    })
  }
  if (chars > maxRequestChars) {
    throw new EngineError(
      'ERR_USAGE',
      `messages of ${chars} characters; at most ${maxRequestChars}`,
    )
  }
}

async function readTemplateFile(folder: string): Promise<string | undefined> {
  const path = join(folder, 'chat_template.jinja')
  try {
    const { size } = await stat(path)
    if (size > maxTemplateBytes) {
      throw new EngineError(
        'ERR_TEMPLATE',
        `${path} has ${size} bytes; at most ${maxTemplateBytes}`,
      )
    }
    return await readFile(path, 'utf8')
  } catch (cause) {
    if (cause instanceof EngineError) throw cause
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    const reason = (cause as Error).message
    throw new EngineError('ERR_TEMPLATE', `cannot read ${path}: ${reason}`, { cause })
  }
}

/** Templates by name: a string is the default one; a list has `{ name, template }` entries. */
function namedTemplates(value: unknown): ReadonlyMap<string, string> {
  const entries = typeof value === 'string' ? [{ name: defaultTemplate, template: value }] : value
  const templates = new Map<string, string>()
  if (entries === undefined || entries === null) return templates
  const malformed = (): EngineError =>
    new EngineError('ERR_TEMPLATE', 'tokenizer_config.json: chat_template is malformed or too long')
  if (!Array.isArray(entries)) throw malformed()
  for (const entry of entries as readonly unknown[]) {
    if (!isJsonObject(entry)) throw malformed()
    const { name, template } = entry
    if (typeof name !== 'string' || typeof template !== 'string') throw malformed()
    if (template.length > maxTemplateBytes) throw malformed()
    templates.set(name, template)
  }
  return templates
}

/**
 * The chat template of a model folder: chat_template.jinja, else tokenizer_config.json's
 * `chat_template`; undefined where there is neither. Rendering rejects with ERR_TEMPLATE when
 * the template raises, loops or allocates without end.
 */
export async function loadChatTemplate(folder: string): Promise<ChatTemplate | undefined> {
  const config = readTokenizerConfig(folder)
  const file = await readTemplateFile(folder)
  const templates = namedTemplates(file ?? config.chatTemplate)
  const fallback = templates.get(defaultTemplate) ?? templates.values().next().value
  if (fallback === undefined) return undefined
  const renderer = new Renderer()
  return {
    async render(messages: readonly ChatMessage[], options: RenderOptions = {}) {
      const { tools, kwargs = {}, addGenerationPrompt = true } = options
      for (const name of reservedVariables) {
        if (Object.hasOwn(kwargs, name)) {
          throw new EngineError('ERR_USAGE', `template argument ${name} has an option of its own`)
        }
      }
      const hasTools = tools !== undefined && tools.length > 0
      const request = {
        template: (hasTools ? templates.get(toolTemplate) : undefined) ?? fallback,
        variables: {
          ...config.specialTokens,
          documents: null,
          ...kwargs,
          messages: messages.map(parseToolArguments),
          tools: hasTools ? tools : null,
          add_generation_prompt: addGenerationPrompt,
        },
        limits,
      }
      checkRequest(request)
      return renderer.render(request)
    },
    async warmUp() {
      await renderer.render({ template: '', variables: {}, limits })
    },
    close: () => renderer.close(),
  }
}
