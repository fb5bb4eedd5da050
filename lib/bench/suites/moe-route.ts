/**
 * moe_route: scores, choice and weights of [tokens, experts] logits, as softmax (Qwen3, Mixtral) and as
 * sigmoid over groups with a bias (DeepSeek-V3). Every rank routes tokens of its own.
 */

import { moeRoute, type RouteAttrs } from '../../ops/moe-route.ts'
import { ProgramBuilder } from '../../program/builder.ts'
import type { Program } from '../../program/types.ts'
import { countWrong, decodeFloats, halfWidthOf, randomBytes } from '../elements.ts'
import { OpMeter } from '../measure.ts'
import { countSets, OpRuntime, placeApart, rowLimits, rowsStep } from '../one-op.ts'
import type { BenchContext, BenchRow, BenchSuite } from '../suite.ts'

type Size = readonly [tokens: number, experts: number, choices: number]

interface Variant {
  readonly name: string
  readonly attrs: RouteAttrs
  readonly bias: boolean
}

const GROUPS = 8

function variantsOf(experts: number): Variant[] {
  const softmax: Variant = {
    name: 'softmax',
    attrs: { score: 'softmax', normalise: true },
    bias: false,
  }
  if (experts % GROUPS !== 0 || experts < 2 * GROUPS) return [softmax]
  const groups = { groups: GROUPS, top_groups: GROUPS / 2, group_score: 'top2' } as const
  return [
    softmax,
    {
      name: 'sigmoid, groups',
      attrs: { score: 'sigmoid', normalise: true, scale: 2.5, ...groups },
      bias: true,
    },
  ]
}

function buildProgram(
  context: BenchContext,
  { attrs, bias }: Variant,
  [tokens, experts, choices]: Size,
  sets: number,
): Program {
  const { ranks } = context
  const builder = new ProgramBuilder({
    name: 'moe_route',
    world: ranks,
    tp: ranks,
    limits: rowLimits(tokens),
  })
  const weight = bias ? builder.weight('bias', 'f32', [experts], 'plain') : undefined
  for (let set = 0; set < sets; set++) {
    const logits = builder.arena(`logits${set}`, 'f32', ['T', experts])
    const ids = builder.arena(`ids${set}`, 'i32', ['T', choices])
    const weights = builder.arena(`weights${set}`, 'f32', ['T', choices])
    builder.add(`route.${set}`, moeRoute({ logits, bias: weight, ids, weights }, attrs))
  }
  return placeApart(builder)
}

const largest = (values: readonly number[], count: number): number[] =>
  values
    .map((_, index) => index)
    .sort((a, b) => values[b]! - values[a]! || a - b)
    .slice(0, count)

/** Ids and weights of one token in float64. */
function routeToken(
  logits: Float32Array,
  bias: Float32Array | undefined,
  { attrs }: Variant,
  choices: number,
): { ids: number[]; weights: number[] } {
  const top = Math.max(...logits)
  const exps = Array.from(logits, (logit) => Math.exp(logit - top))
  const total = exps.reduce((a, b) => a + b, 0)
  const scores =
    attrs.score === 'softmax'
      ? exps.map((value) => value / total)
      : Array.from(logits, (logit) => 1 / (1 + Math.exp(-logit)))
  let worth = scores.map((score, expert) => score + (bias?.[expert] ?? 0))
  if (attrs.groups !== undefined) {
    const size = logits.length / attrs.groups
    const ofGroup = Array.from({ length: attrs.groups }, (_, group) => {
      const mine = worth.slice(group * size, (group + 1) * size).sort((a, b) => b - a)
      return mine[0]! + mine[1]!
    })
    const kept = new Set(largest(ofGroup, attrs.top_groups!))
    worth = worth.map((value, expert) =>
      kept.has(Math.floor(expert / size)) ? value : Number.NEGATIVE_INFINITY,
    )
  }
  const ids = largest(worth, choices)
  const sum = ids.reduce((all, id) => all + scores[id]!, 0)
  return { ids, weights: ids.map((id) => (scores[id]! / sum) * (attrs.scale ?? 1)) }
}

async function countWrongRoutes(
  runtime: OpRuntime,
  context: BenchContext,
  variant: Variant,
  [tokens, experts, choices]: Size,
  logits: Float32Array,
  bias: Float32Array,
  set: number,
): Promise<number> {
  const routes = Array.from({ length: tokens }, (_, token) =>
    routeToken(
      logits.subarray(token * experts, (token + 1) * experts),
      variant.bias ? bias : undefined,
      variant,
      choices,
    ),
  )
  let wrong = 0
  for (let rank = 0; rank < context.ranks; rank++) {
    const ids = new Int32Array((await runtime.read(0, `ids${set}`, rank)).slice().buffer)
    routes
      .flatMap((route) => route.ids)
      .forEach((id, i) => {
        if (ids[i] !== id) wrong++
      })
    const weights = decodeFloats(await runtime.read(0, `weights${set}`, rank), 'f32')
    const expected = routes.flatMap((route) => route.weights)
    wrong += countWrong(weights.subarray(0, expected.length), expected, 'f32')
  }
  return wrong
}

async function runRoute(
  context: BenchContext,
  meter: OpMeter,
  variant: Variant,
  size: Size,
): Promise<BenchRow> {
  const [tokens, experts, choices] = size
  const { ranks } = context
  const bytes = 4 * tokens * experts + 8 * tokens * choices
  const sets = countSets(bytes, context.device)
  const bias = randomBytes(experts, 'f32', 0.1, 5)
  const contents = new Map([['bias', { dtype: 'f32' as const, bytes: bias }]])
  const runtime = await OpRuntime.open(
    context,
    [buildProgram(context, variant, size, sets)],
    variant.bias ? contents : new Map(),
  )
  try {
    const logits = randomBytes(tokens * experts, 'f32', halfWidthOf(2), 3)
    for (let rank = 0; rank < ranks; rank++) {
      for (let set = 0; set < sets; set++) await runtime.write(0, `logits${set}`, rank, logits)
      await runtime.poison(0, `ids${sets - 1}`, rank, 4 * tokens * choices)
      await runtime.poison(0, `weights${sets - 1}`, rank, 4 * tokens * choices)
    }
    const step = rowsStep(tokens)
    await runtime.run(0, step)
    const [values, biases] = [decodeFloats(logits, 'f32'), decodeFloats(bias, 'f32')] as const
    const wrong = await countWrongRoutes(runtime, context, variant, size, values, biases, sets - 1)
    const [time] = await meter.measure(runtime, [
      { name: 'nanoweave', program: 0, step, ops: sets },
    ])
    return {
      op: 'moe_route',
      variant: variant.name,
      shape: size.join('×'),
      dtype: 'f32',
      ranks,
      ...(runtime.virtualRanks && { virtualRanks: true }),
      ours: time!,
      bytes: ranks * bytes,
      flops: ranks * 3 * tokens * experts,
      memoryPeak: 'read',
      computePeak: 'f32',
      checked: ranks * 2 * tokens * choices,
      wrong,
    }
  } finally {
    await runtime.close()
  }
}

export const moeRouteSuite: BenchSuite = {
  name: 'moe-route',
  summary: 'experts of tokens and their weights from router logits, softmax and grouped sigmoid',
  sizeNames: ['tokens', 'experts', 'choices'],
  settingNames: ['cpuIsa'],
  defaultSizes: [
    [1, 128, 8],
    [64, 128, 8],
    [512, 128, 8],
    [512, 256, 8],
  ],
  gpuSizes: [
    [1, 256, 8],
    [128, 256, 8],
    [4096, 256, 8],
    [4096, 128, 8],
  ],
  async run(context) {
    const meter = new OpMeter(context)
    const rows: BenchRow[] = []
    for (const size of context.sizes as readonly Size[]) {
      for (const variant of variantsOf(size[1])) {
        context.log(`moe-route ${variant.name} ${size.join('×')}`)
        rows.push(await runRoute(context, meter, variant, size))
      }
    }
    return { rows, notes: [meter.note()], details: {} }
  },
}
