/** NanoFlow's bound: tokens per second of a device whose matmul units never pause. */

/** Every parameter is multiplied and added once a token (equation 5 of https://arxiv.org/abs/2408.12757). */
export function optimalTokensPerSecond(flopPerSecond: number, activeParameters: number): number {
  return flopPerSecond / (2 * activeParameters)
}
