/**
 * Where the bench finds node-llama-cpp: a folder of its own under the cache directory, filled by
 * the npm command below. `--omit=optional` leaves out its CUDA, Vulkan and foreign binaries, which
 * would be hundreds of megabytes; the CPU binary is named instead. No install script runs, nothing
 * is compiled.
 */

import { existsSync, readFileSync } from 'node:fs'
import path from 'node:path'

const PEER = 'node-llama-cpp'
const PEER_VERSION = '3.22.1'

export function installPeerCommand(cacheDirectory: string): string {
  const binary = `@node-llama-cpp/${process.platform}-${process.arch}@${PEER_VERSION}`
  const folder = path.join(cacheDirectory, 'bench-peers')
  return `npm install --prefix ${folder} --omit=optional --ignore-scripts --no-audit --no-fund ${PEER}@${PEER_VERSION} ${binary}`
}

export interface PeerPackage {
  readonly folder: string
  readonly version: string
}

/** Undefined when it is not installed. */
export function findPeer(cacheDirectory: string): PeerPackage | undefined {
  const folder = path.resolve(cacheDirectory, 'bench-peers', 'node_modules', PEER)
  const manifest = path.join(folder, 'package.json')
  if (!existsSync(manifest)) return undefined
  return { folder, version: String(JSON.parse(readFileSync(manifest, 'utf8')).version) }
}
