/**
 * Time of a matmul alone on a device, by waves of tiles: the output is cut into tiles, every unit
 * computes one at a time, and a wave takes as long as a tile, full or not. The best tile counts, as
 * a library's heuristic would choose; a short wave may be avoided by cutting the depth (split-K),
 * which writes and reads float32 partial sums. Never faster than its bytes.
 */

import type { Hardware } from './hardware.ts'

export interface MatmulShape {
  readonly rows: number
  readonly cols: number
  readonly depth: number
  /** Bytes of an element of x and y, and of the weight. */
  readonly elementBytes: number
  readonly weightBytes: number
}

const DEPTH_SPLITS = [1, 2, 4, 8] as const
/** Thinner slices of the depth cost more in filling than they save. */
const MIN_SPLIT_DEPTH = 512
const SUM_BYTES = 4

export function matmulBytes({ rows, cols, depth, elementBytes, weightBytes }: MatmulShape): number {
  return rows * depth * elementBytes + cols * depth * weightBytes + rows * cols * elementBytes
}

/** Seconds, launch not included, when `units` of the device's units take part. */
export function matmulSeconds(
  hardware: Hardware,
  shape: MatmulShape,
  units = hardware.units,
): number {
  if (shape.rows === 0) return 0
  const rowTiles = (tileRows: number) => Math.ceil(shape.rows / tileRows)
  const seconds = tiledSeconds(hardware, shape, rowTiles, units)
  return Math.max(seconds, matmulBytes(shape) / hardware.memoryBytesPerSecond)
}

/** Matmuls of several experts in one launch, each with the rows that chose it. */
export interface GroupedShape extends MatmulShape {
  readonly experts: number
  /** `rows` counts every choice: tokens × choices of a token. */
  readonly choices: number
}

/** Seconds, launch not included, for tokens that choose evenly at random. */
export function groupedMatmulSeconds(
  hardware: Hardware,
  shape: GroupedShape,
  units = hardware.units,
): number {
  const { rows, experts } = shape
  if (rows === 0) return 0
  const perExpert = rows / experts
  const chosen = experts * (1 - Math.exp(-perExpert))
  // The last tile of an expert is half full on average.
  const rowTiles = (tileRows: number) => Math.max(chosen, rows / tileRows + chosen / 2)
  const seconds = tiledSeconds(hardware, shape, rowTiles, units)
  return Math.max(seconds, groupedMatmulBytes(shape) / hardware.memoryBytesPerSecond)
}

/** The weights of experts that nobody chose are not read. */
export function groupedMatmulBytes(shape: GroupedShape): number {
  const { rows, cols, depth, experts, choices, elementBytes, weightBytes } = shape
  const chosen = experts * (1 - (1 - choices / experts) ** (rows / choices))
  return chosen * cols * depth * weightBytes + rows * (cols + depth) * elementBytes
}

function tiledSeconds(
  hardware: Hardware,
  shape: MatmulShape,
  rowTiles: (tileRows: number) => number,
  units: number,
): number {
  const { matmulFlopPerSecond, tileOverheadSeconds, memoryBytesPerSecond } = hardware
  const rate = shape.elementBytes === 4 ? matmulFlopPerSecond.f32 : matmulFlopPerSecond.half
  let best = Infinity
  for (const tile of hardware.tiles) {
    const tiles = rowTiles(tile.rows) * Math.ceil(shape.cols / tile.cols)
    for (const splits of DEPTH_SPLITS) {
      if (splits > 1 && !maySplit(tiles, units, shape.depth / splits)) break
      const waves = Math.ceil((tiles * splits) / units)
      const flops = 2 * tile.rows * tile.cols * (shape.depth / splits)
      const tileSeconds = (flops * hardware.units) / (rate * tile.efficiency) + tileOverheadSeconds
      const sumBytes = splits === 1 ? 0 : 2 * splits * shape.rows * shape.cols * SUM_BYTES
      best = Math.min(best, waves * tileSeconds + sumBytes / memoryBytesPerSecond)
    }
  }
  return best
}

/** Libraries cut the depth where tiles leave most units idle, and not into slivers. */
function maySplit(tiles: number, units: number, depth: number): boolean {
  return tiles <= units / 2 && depth >= MIN_SPLIT_DEPTH
}
