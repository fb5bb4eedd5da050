/** Streams a continuation of a prompt. Run: npx tsx examples/stream.ts [MODEL] */

import { Engine } from 'nanoweave'

const folder = process.argv[2] ?? 'models/tiny-dense'
await using engine = await Engine.load(folder, { tensorParallel: 2, nanoBatches: 2 })

const prompt = 'Once upon a time'
process.stdout.write(prompt)
for await (const chunk of engine.generate({ prompt, maxTokens: 200, temperature: 0 })) {
  process.stdout.write(chunk.text)
}
process.stdout.write('\n')
