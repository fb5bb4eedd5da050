/** Files that a command was asked to write. */

import { writeFile } from 'node:fs/promises'
import { EngineError } from '../errors.ts'

/** ERR_IO when it cannot be written. */
export async function saveFile(file: string, text: string): Promise<void> {
  try {
    await writeFile(file, text)
  } catch (cause) {
    throw new EngineError('ERR_IO', `cannot write ${file}: ${(cause as Error).message}`, { cause })
  }
}
