/** Chat templates that loop, hoard memory or throw: their requests fail, others' streams go on. */

import { mkdtemp, readdir, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { eventsOf, expectBaseline, FOLDER, post, serveFake } from './support.ts'

const HOSTILE = {
  'that loops': '{% for i in range(100000000) %}{{ i }}{% endfor %}',
  'that loops in loops':
    '{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}',
  'that doubles a text':
    "{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
  'that throws': "{{ raise_exception('no') }}",
  'that looks for a way out': "{{ messages.constructor.constructor('return process.exit(1)')() }}",
}

let scratch: string
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'nanoweave-template-'))
})
afterAll(() => rm(scratch, { recursive: true }))

/** The demo model with another template. */
async function folderWith(template: string): Promise<string> {
  const folder = await mkdtemp(join(scratch, 'model-'))
  for (const name of await readdir(FOLDER))
    if (name !== 'chat_template.jinja') await symlink(join(FOLDER, name), join(folder, name))
  await writeFile(join(folder, 'chat_template.jinja'), template)
  return folder
}

describe('a chat template', () => {
  it.each(Object.entries(HOSTILE))(
    '%s fails its requests only',
    { timeout: 60_000 },
    async (_, template) => {
      const running = await serveFake({}, {}, { latencyMs: 5 }, await folderWith(template))
      try {
        const { url } = running
        const text = { prompt: [10, 11, 12], max_tokens: 200, ignore_eos: true, stream: true }
        const stream = post(`${url}/v1/completions`, text)
        const chat = { messages: [{ role: 'user', content: 'Hello' }], max_tokens: 4 }
        for (const isStreamed of [false, true]) {
          const reply = await post(`${url}/v1/chat/completions`, { ...chat, stream: isStreamed })
          expect(reply.status).toBe(400)
          expect(reply.json.error.code).toBe('template_error')
        }
        const events = eventsOf((await stream).text)
        expect(events.at(-1)).toBe('[DONE]')
        const after = await post(`${url}/v1/completions`, { ...text, max_tokens: 3, stream: false })
        expect(after.json.usage.completion_tokens).toBe(3)
        await expectBaseline(running)
      } finally {
        await running.close()
      }
    },
  )
})
