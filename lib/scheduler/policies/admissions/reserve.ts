/** The watermark: blocks that admission leaves free for sequences that grow. */

const WATERMARK = 0.01

export function reservedBlocks(totalBlocks: number): number {
  return Math.floor(totalBlocks * WATERMARK)
}
