/** A process that writes some tensors of a bench checkpoint. Started by checkpoint.ts, never by hand. */

import { closeSync, openSync } from 'node:fs'
import { type WriteRequest, writeTensors } from './checkpoint.ts'

process.once('message', ({ file, base, shape, seed, indexes }: WriteRequest) => {
  const fd = openSync(file, 'r+')
  try {
    writeTensors(fd, base, shape, seed, indexes)
  } finally {
    closeSync(fd)
  }
  process.disconnect()
})
