/** Chat templates: the shipped models' expected renderings, template sources, and hostile ones. */

import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type ChatTemplate, loadChatTemplate } from '../lib/tokenizer/index.ts'

interface ExpectedCase {
  readonly messages?: { role: string; content: string }[]
  readonly tools?: unknown[]
  readonly rendered?: string
}

let scratch: string
let nextFolder = 0

beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'nanoweave-template-'))
})
afterAll(() => rm(scratch, { recursive: true, force: true }))

async function templateOf(
  source: string,
  config: object = { bos_token: '<s>', eos_token: { content: '</s>' } },
): Promise<ChatTemplate> {
  const folder = await mkdtemp(join(scratch, `model-${nextFolder++}-`))
  await writeFile(join(folder, 'chat_template.jinja'), source)
  await writeFile(join(folder, 'tokenizer_config.json'), JSON.stringify(config))
  return (await loadChatTemplate(folder))!
}

async function configOnly(config: object): Promise<ChatTemplate | undefined> {
  const folder = await mkdtemp(join(scratch, `config-${nextFolder++}-`))
  await writeFile(join(folder, 'tokenizer_config.json'), JSON.stringify(config))
  return loadChatTemplate(folder)
}

const user = [{ role: 'user', content: 'Hi' }]

describe.each(['tiny-dense', 'tiny-moe'])('%s', (model) => {
  it('renders every expected conversation', async () => {
    const folder = `models/${model}`
    const expected = JSON.parse(await readFile(`${folder}/expected.json`, 'utf8')) as {
      cases: ExpectedCase[]
    }
    const chats = expected.cases.filter((entry) => entry.messages !== undefined)
    expect(chats.length).toBeGreaterThan(0)
    const template = (await loadChatTemplate(folder))!
    try {
      for (const { messages, tools, rendered } of chats) {
        const text = await template.render(messages!, tools === undefined ? {} : { tools })
        expect(text).toBe(rendered)
      }
    } finally {
      await template.close()
    }
  })
})

describe('sources and variables', () => {
  it('is absent where the folder has no template', async () => {
    expect(await configOnly({ bos_token: '<s>' })).toBeUndefined()
  })

  it('reads a string, and picks from a list by name', async () => {
    const single = (await configOnly({ chat_template: '{{ messages[0].content }}!' }))!
    expect(await single.render(user)).toBe('Hi!')
    await single.close()
    const list = (await configOnly({
      chat_template: [
        { name: 'default', template: 'plain' },
        { name: 'tool_use', template: 'tools:{{ tools | length }}' },
      ],
    }))!
    expect(await list.render(user)).toBe('plain')
    expect(await list.render(user, { tools: [{}, {}] })).toBe('tools:2')
    await list.close()
  })

  it('refuses a malformed list', async () => {
    await expect(configOnly({ chat_template: [{ name: 'default' }] })).rejects.toMatchObject({
      code: 'ERR_TEMPLATE',
    })
  })

  it('gives special tokens, tools, the generation prompt and arguments', async () => {
    const template = await templateOf(
      '{{ bos_token }}{{ eos_token }}|{{ tools is none }}|{{ add_generation_prompt }}|{{ mood }}',
    )
    expect(await template.render(user)).toBe('<s></s>|true|true|')
    const text = await template.render(user, {
      addGenerationPrompt: false,
      tools: [{ type: 'function' }],
      kwargs: { mood: 'fine' },
    })
    expect(text).toBe('<s></s>|false|false|fine')
    await expect(template.render(user, { kwargs: { messages: [] } })).rejects.toMatchObject({
      code: 'ERR_USAGE',
    })
    await template.close()
  })

  it('writes JSON as Python does, and parses tool arguments given as text', async () => {
    const template = await templateOf(
      '{{ messages[0].tool_calls[0].function.arguments | tojson }}{{ messages[0].n | tojson }}',
    )
    const text = await template.render([
      {
        role: 'assistant',
        content: null,
        tool_calls: [{ function: { name: 'f', arguments: '{"ü":[1,2.5,true,null],"b":{}}' } }],
        n: { a: 'x<y', b: [] },
      },
    ])
    expect(text).toBe('{"ü": [1, 2.5, true, null], "b": {}}{"a": "x<y", "b": []}')
    await template.close()
  })

  it('knows strftime_now and range', async () => {
    const template = await templateOf(
      "{{ strftime_now('%Y-%m-%d %%') }} {% for i in range(2, 9, 3) %}{{ i }}{% endfor %}",
    )
    expect(await template.render(user)).toMatch(/^\d{4}-\d\d-\d\d % 258$/)
    await template.close()
  })
})

const doubling = (value: string, op: string, times: number, after: string): string =>
  `{% set ns = namespace(a=${value}) %}{% for i in range(${times}) %}` +
  `{% set ns.a = ns.a ${op} ns.a %}{% endfor %}{{ ${after} }}`

describe('hostile templates end in ERR_TEMPLATE', () => {
  const hostile: Readonly<Record<string, string>> = {
    'a huge range': '{% for i in range(100000000) %}x{% endfor %}',
    'nested loops':
      '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}',
    'doubling lists': doubling('[1, 2]', '+', 60, 'ns.a | length'),
    'doubling strings': doubling("'ab'", '~', 60, 'ns.a'),
    'flattening a huge string': doubling("'ab'", '~', 27, 'ns.a | upper | length'),
    'splitting a huge string': doubling("'a b'", '~', 27, "ns.a.split(' ') | length"),
    'indenting without end': "{{ 'a\n\n\nb' | indent(90000000, true, true) | upper }}",
    'long output': "{{ 'a' | indent(50000000, true) }}",
    'unbounded recursion': `${'{% if true %}'.repeat(20_000)}${'{% endif %}'.repeat(20_000)}`,
    'a cycle as JSON': '{% set ns = namespace() %}{% set ns.a = ns %}{{ ns | tojson }}',
    raise_exception: "{{ raise_exception('roles must alternate') }}",
    'a syntax error': '{% if %}',
    'an unknown filter': "{{ 'a' | frobnicate }}",
  }

  it.each(Object.keys(hostile))('%s', async (name) => {
    const template = await templateOf(hostile[name]!)
    await expect(template.render(user)).rejects.toMatchObject({ code: 'ERR_TEMPLATE' })
    await template.close()
  })

  it('and the next render works, in the order asked for', async () => {
    const template = await templateOf(
      "{% if messages[0].content == 'bomb' %}{{ ('ab' | indent(200000000, true)) | upper }}" +
        '{% else %}{{ messages[0].content }}{% endif %}',
    )
    const bomb = template.render([{ role: 'user', content: 'bomb' }])
    const fine = template.render(user)
    await expect(bomb).rejects.toMatchObject({ code: 'ERR_TEMPLATE' })
    expect(await fine).toBe('Hi')
    await template.close()
  })

  it('refuses a template file beyond its cap', async () => {
    await expect(templateOf('x'.repeat((1 << 20) + 1))).rejects.toMatchObject({
      code: 'ERR_TEMPLATE',
    })
  })

  it('refuses messages that are not JSON', async () => {
    const template = await templateOf('{{ messages[0].content }}')
    const cyclic: unknown[] = []
    cyclic.push(cyclic)
    await expect(template.render([{ role: 'user', content: cyclic }])).rejects.toMatchObject({
      code: 'ERR_USAGE',
    })
    await template.close()
  })
})

describe('closing', () => {
  it('rejects a render in progress and later ones, and may be repeated', async () => {
    const template = await templateOf(hostileLoop)
    const running = template.render(user)
    const closing = template.close()
    await expect(running).rejects.toMatchObject({ code: 'ERR_CLOSED' })
    await closing
    await expect(template.render(user)).rejects.toMatchObject({ code: 'ERR_CLOSED' })
    await template.close()
  })
})

const hostileLoop = '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}'
