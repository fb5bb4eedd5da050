#!/usr/bin/env bash
# Builds the native driver with a sanitizer and runs all its checks: barriers and collectives, load
# and close cycles, recorded runs of a model, and fuzzing. Usage: scripts/sanitize.sh address|thread
set -euo pipefail
cd "$(dirname "$0")/.."

sanitizer=${1:-}
if [[ $sanitizer != address && $sanitizer != thread ]]; then
  echo 'usage: scripts/sanitize.sh address|thread' >&2
  exit 2
fi
build=build/sanitize-$sanitizer
recordings=build/recordings
jobs=${JOBS:-$(nproc)}

cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DNANOWEAVE_SANITIZE="$sanitizer" \
  -DNANOWEAVE_CUDA=OFF >/dev/null
cmake --build "$build" --target nanoweave_driver --parallel "$jobs"

# A leak, a bad access or the first data race fails the run.
export ASAN_OPTIONS=detect_leaks=1:abort_on_error=0:detect_stack_use_after_return=1
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1:suppressions=$PWD/scripts/tsan.supp

driver=$build/nanoweave_driver
"$driver" protocol
"$driver" cycles 1000
for case in models/tiny-dense:2:1:2 models/tiny-moe:1:4:2 models/tiny-moe:2:4:2:1 test/fixtures/golden/qwen2-moe-shared:2:4:1 \
  test/fixtures/golden/gpt-oss-sinks:2:2:2 test/fixtures/golden/deepseek-v3-mla:2:4:2 \
  test/fixtures/golden/gemma3:2:1:4 test/fixtures/golden/qwen2-bias:1:1:1 \
  test/fixtures/golden/llama:4:1:1::all_reduce:3 test/fixtures/golden/gemma3:2:1:2::reduce_scatter:4; do
  IFS=: read -r model tp ep parts slots overlap <<<"$case"
  folder=$recordings/$(basename "$model")
  npx tsx scripts/record-run.ts "$model" "$folder" --tp "$tp" --ep "$ep" --parts "$parts" \
    --overlap "${overlap:-none}" ${slots:+--expert-slots "$slots"}
  "$driver" run "$folder" 3
  "$driver" fuzz "$folder" 1000 "${SEED:-1}"
done
echo "sanitize $sanitizer: clean"
