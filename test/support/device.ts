/**
 * Where the tests of ops and models run: the device named by NANOWEAVE_TEST_DEVICE, else the CPU.
 * test/gpu/main.ts runs the same test files on a GPU; `npm test` never sets it.
 */

export const TEST_DEVICE = process.env.NANOWEAVE_TEST_DEVICE || 'cpu'

export const ON_CPU = TEST_DEVICE === 'cpu'
