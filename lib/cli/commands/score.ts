/** `nanoweave score`: the log-probability of every token of a sequence, and its logits as a file. */

import { writeFile } from 'node:fs/promises'
import { type Command, Option } from 'commander'
import { EngineError, systemReason } from '../../errors.ts'
import { encodeSafetensors } from '../../weights/encode-safetensors.ts'
import type { Interrupt } from '../interrupt.ts'
import { addEngineOptions, type EngineFlags, parseTokens, readEngineOptions } from '../options.ts'
import { note, writeJson, writeOut } from '../output.ts'
import { withEngine } from '../with-engine.ts'

interface ScoreFlags extends EngineFlags {
  readonly tokens: number[]
  readonly logits?: string
  readonly json?: boolean
}

const examples = `
One line per token: its id, a tab, and its log-probability given the tokens before it (null for
the first). --logits writes a tensor "logits", [tokens, vocabulary], float32.

Example:
  nanoweave score MODEL --tokens 1,680,679,266,678 --logits logits.safetensors`

async function saveLogits(
  file: string,
  logits: Float32Array,
  shape: readonly number[],
): Promise<void> {
  try {
    await writeFile(file, encodeSafetensors({ logits: { shape, data: logits } }))
  } catch (cause) {
    throw new EngineError('ERR_IO', `cannot write ${file}: ${systemReason(cause)}`, { cause })
  }
}

async function runScore(model: string, flags: ScoreFlags, signal: AbortSignal): Promise<void> {
  const { tokens } = flags
  await withEngine(model, readEngineOptions(flags), signal, async (engine) => {
    const { logprobs } = await engine.score(tokens, { signal })
    if (flags.logits !== undefined) {
      const { logits, shape } = await engine.forward(tokens, { signal })
      await saveLogits(flags.logits, logits, shape)
      note(`wrote [${shape.join(', ')}] to ${flags.logits}`)
    }
    if (flags.json === true) await writeJson({ tokens, logprobs })
    else await writeOut(tokens.map((token, i) => `${token}\t${logprobs[i]}\n`).join(''))
  })
}

export function registerScore(program: Command, { signal }: Interrupt): void {
  const command = program
    .command('score')
    .argument('<MODEL>', 'model folder')
    .summary('log-probability of every token')
    .description('Log-probability of every token of a sequence.')
    .addOption(
      new Option('--tokens <IDS>', 'token ids: 1,2,3').argParser(parseTokens).makeOptionMandatory(),
    )
    .option('--logits <FILE>', 'also write the logits, as safetensors')
    .option('--json', 'one JSON document instead of lines')
  addEngineOptions(command)
    .addHelpText('after', examples)
    .action((model: string, flags: ScoreFlags) => runScore(model, flags, signal))
}
