#!/usr/bin/env bash
# The CUDA kernels and backend on emulated GPUs, more than `npm test` runs of them: every op case
# against the host ops, then the matrix of goldens (every pair of family, tp, ep, devices, nano-batches
# and graphs). Shows how far it is all along. Usage: scripts/test-emulated.sh [SEEDS]
set -euo pipefail
cd "$(dirname "$0")/.."
seeds=${1:-1}

echo '== build'
node scripts/build-native.cjs --emulated >build/emulated.log 2>&1 || { tail -40 build/emulated.log >&2; exit 1; }
cmake --build build --target nanoweave_cuda_emulation --parallel "${JOBS:-$(nproc)}" >build/emulated.log 2>&1 ||
  { tail -40 build/emulated.log >&2; exit 1; }

echo "== op cases, $seeds seed(s)"
build/nanoweave_cuda_emulation --seeds "$seeds"

echo '== models'
NANOWEAVE_EMULATED_MATRIX=pairs npx vitest run test/cuda-emulation test/cuda-libraries --reporter=verbose
