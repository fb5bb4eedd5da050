/** A process that writes some tensors of a bench checkpoint. Started by checkpoint.ts, never by hand. */

import { closeSync, openSync } from 'node:fs'
import { type WriteRequest, writeTensors } from './checkpoint.ts'

const { file, base, shape, seed, indexes }: WriteRequest = JSON.parse(process.argv[2]!)
const fd = openSync(file, 'r+')
try {
  writeTensors(fd, base, shape, seed, indexes)
} finally {
  closeSync(fd)
}
