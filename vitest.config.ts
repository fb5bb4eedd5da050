/** Test runner settings. `NANOWEAVE_TEST_REPORT=FILE` adds a JSON report, for .ci/run. */

import { defineConfig } from 'vitest/config'

const report = process.env.NANOWEAVE_TEST_REPORT

// The runner reads the default export.
// biome-ignore lint/style/noDefaultExport: required by vitest
export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // Native addons and worker threads need real processes; a vm context breaks both.
    pool: 'forks',
    testTimeout: 60_000,
    hookTimeout: 300_000,
    reporters: report === undefined ? ['default'] : ['default', 'json'],
    ...(report === undefined ? {} : { outputFile: { json: report } }),
  },
})
