'use strict'
// Modification times of source trees, for scripts that do nothing when their output is newer.

const fs = require('node:fs')
const path = require('node:path')

/**
 * Newest modification time under the given files and folders, milliseconds; 0 where none exists.
 * Folders count themselves, so a deleted or renamed file is noticed as well.
 */
function newestMtimeMs(paths) {
  let newest = 0
  for (const entry of paths) {
    const stat = fs.statSync(entry, { throwIfNoEntry: false })
    if (stat === undefined) continue
    newest = Math.max(newest, stat.mtimeMs)
    if (!stat.isDirectory()) continue
    for (const name of fs.readdirSync(entry)) {
      newest = Math.max(newest, newestMtimeMs([path.join(entry, name)]))
    }
  }
  return newest
}

/** True where `output` exists and no source was changed after it was written. */
function isFresh(output, sources) {
  const stat = fs.statSync(output, { throwIfNoEntry: false })
  return stat !== undefined && stat.mtimeMs >= newestMtimeMs(sources)
}

module.exports = { newestMtimeMs, isFresh }
