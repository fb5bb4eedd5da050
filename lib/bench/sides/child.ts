/**
 * The process of one side: makes the engine named on its command line and answers the parent's
 * requests one after another. Started by process.ts, never by hand.
 */

import { readFileSync } from 'node:fs'
import type { MemoryReply, Side, SideMessage, SideReplies, SideRequest } from './protocol.ts'

async function makeSide(name: string | undefined): Promise<Side> {
  if (name === 'nanoweave') return (await import('./nanoweave.ts')).createNanoweaveSide()
  if (name === 'node-llama-cpp') return (await import('./llama.ts')).createLlamaSide()
  throw new Error(`no side named ${name}`)
}

/** Field of /proc/self/status, bytes; 0 where there is none. */
function statusBytes(status: string, field: string): number {
  return Number(new RegExp(`^${field}:\\s+(\\d+) kB`, 'm').exec(status)?.[1] ?? 0) * 1024
}

function readMemory(): MemoryReply {
  let status = ''
  try {
    status = readFileSync('/proc/self/status', 'utf8')
  } catch {
    // Not Linux: only the peak is known.
  }
  return {
    peakRssBytes: statusBytes(status, 'VmHWM') || process.resourceUsage().maxRSS * 1024,
    rssBytes: statusBytes(status, 'VmRSS') || process.memoryUsage.rss(),
    anonymousBytes: statusBytes(status, 'RssAnon'),
    fileBytes: statusBytes(status, 'RssFile'),
  }
}

async function answer(side: Side, request: SideRequest): Promise<SideReplies[SideRequest['kind']]> {
  switch (request.kind) {
    case 'load':
      return side.load(request)
    case 'run':
      return side.run(request)
    case 'logits':
      return side.logits(request)
    case 'memory':
      return readMemory()
    case 'close':
      await side.close()
      return null
  }
}

// A parent that is gone, however it went, takes its sides along.
process.on('disconnect', () => process.exit())

const side = await makeSide(process.argv[2])
process.on('message', async (request: SideRequest) => {
  let message: SideMessage
  try {
    message = { ok: true, reply: await answer(side, request) }
  } catch (error) {
    const { code, message: text } = error as { code?: string; message?: string }
    message = { ok: false, code: code ?? null, message: text ?? String(error) }
  }
  process.send?.(message, () => {
    if (request.kind === 'close') process.disconnect()
  })
})
