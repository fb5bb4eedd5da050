/**
 * SipHash-2-4 with 128 bits of output (Aumasson and Bernstein, 2012) over 32-bit words: the hash of
 * the prefix cache. It is keyed, so that nobody who chooses prompts can choose two prefixes
 * with the same hash; 64-bit arithmetic is done on pairs of 32-bit halves and allocates nothing.
 */

/**
 * Hashes `words[0..length)`, taken as little-endian bytes, with a 128-bit key (4 words) into
 * `out[0..4)`. `out` may be the key or part of `words`.
 */
export function sipHash128(
  key: Int32Array,
  words: Int32Array,
  length: number,
  out: Int32Array,
): void {
  // v0..v3 as low and high halves.
  let v0l = key[0] ^ 0x70736575
  let v0h = key[1] ^ 0x736f6d65
  let v1l = key[2] ^ 0x6e646f6d ^ 0xee
  let v1h = key[3] ^ 0x646f7261
  let v2l = key[0] ^ 0x6e657261
  let v2h = key[1] ^ 0x6c796765
  let v3l = key[2] ^ 0x79746573
  let v3h = key[3] ^ 0x74656462

  // Message blocks (the last one carries the length in bytes), then two finalisations of four
  // rounds, each giving 64 bits.
  const blocks = (length >> 1) + 1
  for (let block = 0; block < blocks + 2; block++) {
    let ml = 0
    let mh = 0
    let rounds = 2
    if (block < blocks - 1) {
      ml = words[2 * block]
      mh = words[2 * block + 1]
    } else if (block === blocks - 1) {
      ml = (length & 1) === 1 ? words[length - 1] : 0
      mh = ((length * 4) & 0xff) << 24
    } else {
      rounds = 4
      if (block === blocks) v2l ^= 0xee
      else v1l ^= 0xdd
    }
    v3l ^= ml
    v3h ^= mh
    for (let round = 0; round < rounds; round++) {
      let sum = (v0l >>> 0) + (v1l >>> 0)
      v0l = sum | 0
      v0h = (v0h + v1h + (sum > 0xffffffff ? 1 : 0)) | 0
      let high = (v1h << 13) | (v1l >>> 19)
      v1l = ((v1l << 13) | (v1h >>> 19)) ^ v0l
      v1h = high ^ v0h
      let swap = v0l
      v0l = v0h
      v0h = swap

      sum = (v2l >>> 0) + (v3l >>> 0)
      v2l = sum | 0
      v2h = (v2h + v3h + (sum > 0xffffffff ? 1 : 0)) | 0
      high = (v3h << 16) | (v3l >>> 16)
      v3l = ((v3l << 16) | (v3h >>> 16)) ^ v2l
      v3h = high ^ v2h

      sum = (v0l >>> 0) + (v3l >>> 0)
      v0l = sum | 0
      v0h = (v0h + v3h + (sum > 0xffffffff ? 1 : 0)) | 0
      high = (v3h << 21) | (v3l >>> 11)
      v3l = ((v3l << 21) | (v3h >>> 11)) ^ v0l
      v3h = high ^ v0h

      sum = (v2l >>> 0) + (v1l >>> 0)
      v2l = sum | 0
      v2h = (v2h + v1h + (sum > 0xffffffff ? 1 : 0)) | 0
      high = (v1h << 17) | (v1l >>> 15)
      v1l = ((v1l << 17) | (v1h >>> 15)) ^ v2l
      v1h = high ^ v2h
      swap = v2l
      v2l = v2h
      v2h = swap
    }
    v0l ^= ml
    v0h ^= mh
    if (block === blocks) {
      out[0] = v0l ^ v1l ^ v2l ^ v3l
      out[1] = v0h ^ v1h ^ v2h ^ v3h
    }
  }
  out[2] = v0l ^ v1l ^ v2l ^ v3l
  out[3] = v0h ^ v1h ^ v2h ^ v3h
}
