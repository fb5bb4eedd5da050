/**
 * Where the code of the grammar workers is: JavaScript in dist/; beside this file when it runs from
 * source, where tsx, a development dependency, reads TypeScript.
 */

import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

/** What a Worker starts with. */
export function findWorkerCode(): URL {
  const here = import.meta.url
  if (!here.endsWith('.ts')) return new URL('./grammar-worker.js', here)
  const source = new URL('./grammar-worker.ts', here)
  // By its path: `require.resolve` finds the one for CommonJS.
  const tsx = pathToFileURL(createRequire(here).resolve('tsx/package.json'))
  const loader = new URL('./dist/esm/api/index.mjs', tsx)
  const code = `import { register } from '${loader}'; register(); await import('${source}')`
  return new URL(`data:text/javascript,${encodeURIComponent(code)}`)
}
