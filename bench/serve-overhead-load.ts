/** What the two processes of serve-overhead.ts agree on: the requests, the commands, the figures. */

export type ServerCommand =
  | { readonly kind: 'listen' | 'begin' | 'end' | 'close' }
  | {
      readonly kind: 'direct'
      readonly streams: number
      readonly tokens: number
      readonly round: number
    }

export interface Measured {
  readonly wallMs: number
  /** Time in which the event loop was busy. */
  readonly loopMs: number
  /** Processor time of the whole process, all threads. */
  readonly cpuMs: number
  /** Processor time of the event loop's thread alone; 0 where the system does not tell. */
  readonly mainCpuMs: number
  readonly delayP99Ms: number
  readonly delayMaxMs: number
}

const NAMES = ['Ada', 'Ben', 'Mia', 'Tom', 'Eve', 'Sam', 'Zoe', 'Max']
const ANIMALS = ['fox', 'cat', 'dog', 'owl', 'bear', 'frog', 'duck']

/** Greedy would give short outputs: sampled, and never ended before `numTokens`. */
export function chatBodies(numStreams: number, numTokens: number, round: number) {
  return Array.from({ length: numStreams }, (_, at) => {
    const name = NAMES[(at + round) % NAMES.length]
    const animal = ANIMALS[at % ANIMALS.length]
    return {
      messages: [{ role: 'user', content: `Tell me a story about a ${animal} named ${name}.` }],
      max_tokens: numTokens,
      ignore_eos: true,
      temperature: 0.8,
      seed: round * 100_000 + at,
      stream: true,
      stream_options: { include_usage: true },
    }
  })
}
