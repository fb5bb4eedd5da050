/** `nanoweave demo`: a story from the shipped model, several ranks, nano-batched; then the figures. */

import { fileURLToPath } from 'node:url'
import type { Command } from 'commander'
import type { EngineInfo, GenerateChunk } from '../../engine/types.ts'
import { LANES } from '../../program/types.ts'
import type { Interrupt } from '../interrupt.ts'
import {
  addEngineOptions,
  addSamplingOptions,
  type EngineFlags,
  readEngineOptions,
  readSamplingOptions,
  type SamplingFlags,
} from '../options.ts'
import { formatCount, formatNumber, formatPairs, note, writeJson, writeOut } from '../output.ts'
import { withEngine } from '../with-engine.ts'

interface DemoFlags extends EngineFlags, SamplingFlags {
  readonly prompt: string
  readonly json?: boolean
}

const demoModel = fileURLToPath(new URL('../../../models/tiny-dense', import.meta.url))

function describeProgram({ program, world, devices }: EngineInfo): string {
  const lanes = LANES.map((lane) => `${program.opsPerLane[lane]} ${lane}`).join(', ')
  const places = [...new Set(devices)].join(', ')
  return `${program.ops} ops (${lanes}), ${program.nanoBatches} nano-batches, ${world} ranks on ${places}`
}

function summarize(info: EngineInfo, last: GenerateChunk): string {
  const { timings, usage } = last
  return formatPairs([
    [
      'model',
      `${info.architecture}, ${formatCount(info.parameters)} parameters, ${info.precision}`,
    ],
    ['program', describeProgram(info)],
    ['load', `${formatNumber(info.loadMs)} ms`],
    ['first token', `${formatNumber(timings?.ttftMs ?? Number.NaN)} ms`],
    [
      'speed',
      `${formatNumber(timings?.tokensPerSecond ?? Number.NaN)} tokens/s, ${usage?.completionTokens ?? 0} tokens`,
    ],
  ])
}

async function runDemo(flags: DemoFlags, signal: AbortSignal): Promise<void> {
  const options = { tensorParallel: 2, nanoBatches: 2, ...readEngineOptions(flags) }
  await withEngine(demoModel, options, signal, async (engine) => {
    const { prompt } = flags
    const request = {
      maxTokens: 200,
      temperature: 0,
      ...readSamplingOptions(flags),
      prompt,
      signal,
    }
    if (flags.json === true) {
      const { text, tokens, finishReason, stopReason, usage, timings } =
        await engine.complete(request)
      const { info } = engine
      await writeJson({ info, prompt, text, tokens, finishReason, stopReason, usage, timings })
      return
    }
    await writeOut(prompt)
    let last: GenerateChunk | undefined
    for await (const chunk of engine.generate(request)) {
      await writeOut(chunk.text)
      last = chunk
    }
    await writeOut('\n')
    if (last !== undefined) note(`\n${summarize(engine.info, last)}`)
  })
}

export function registerDemo(program: Command, { signal }: Interrupt): void {
  const command = program
    .command('demo')
    .summary('run the shipped demo model')
    .description(
      'Streams a story from the shipped model, by default over 2 ranks in 2 nano-batches.',
    )
    .option('--prompt <TEXT>', 'how the story begins', 'Once upon a time')
    .option('--json', 'one JSON document instead of text')
  addSamplingOptions(addEngineOptions(command)).action((flags: DemoFlags) => runDemo(flags, signal))
}
