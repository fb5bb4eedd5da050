/** A conversation of two turns through the model's chat template. Run: npx tsx examples/chat.ts [MODEL] */

import { type ChatMessage, Engine } from 'nanoweave'

const folder = process.argv[2] ?? 'models/tiny-dense'
await using engine = await Engine.load(folder)

const messages: ChatMessage[] = []
for (const question of ['Hello!', 'Tell me a story about a fox named Ada.']) {
  messages.push({ role: 'user', content: question })
  const { text, usage } = await engine.complete({ messages, maxTokens: 160, temperature: 0 })
  messages.push({ role: 'assistant', content: text })
  console.log(`> ${question}\n${text}   (${usage.cachedTokens} prompt tokens reused)`)
}
