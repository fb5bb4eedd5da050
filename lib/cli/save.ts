/** Files that a command was asked to write. */

import { constants } from 'node:fs'
import { access, writeFile } from 'node:fs/promises'
import { dirname, resolve } from 'node:path'
import { EngineError, systemReason } from '../errors.ts'

function cannotWrite(file: string, cause: unknown): EngineError {
  return new EngineError('ERR_IO', `cannot write ${file}: ${systemReason(cause)}`, { cause })
}

/** ERR_IO where one of `files` has no folder to be written to: said before work is done for it. */
export async function checkFolders(files: readonly (string | undefined)[]): Promise<void> {
  for (const file of files) {
    if (file === undefined || file === '-') continue
    try {
      await access(dirname(resolve(file)), constants.W_OK)
    } catch (cause) {
      throw cannotWrite(file, cause)
    }
  }
}

/** ERR_IO when it cannot be written. */
export async function saveFile(file: string, text: string): Promise<void> {
  try {
    await writeFile(file, text)
  } catch (cause) {
    throw cannotWrite(file, cause)
  }
}
