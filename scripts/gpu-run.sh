#!/usr/bin/env bash
# Runs a bundle (scripts/gpu-bundle.sh) on a GPU host: checks, ceilings, benches and baselines, each
# step with a time limit, most important first. Writes $OUT/h200.json (named after the device: everything),
# $OUT/gpu-run.log and $OUT/test-gpu.json, and prints a short table last.
#
#   gpu-run.sh [--only STEP,STEP] [--skip STEP] [--limit SECONDS] [--device cuda:0] [--build] [--steps]
#
# --build compiles the native part here with nvcc for this GPU first. --steps lists the steps.
# A bundle without data takes test/fixtures/golden and models from the current folder (a checkout).
# `--device cpu` tries the script where there is no GPU: small sizes, no probe, no sanitizer. So does an
# emulated GPU: NANOWEAVE_BINARY=…/build/emulated/nanoweave.node. Exits 3 where the device is not there.
set -uo pipefail

bundle=$(cd "$(dirname "$0")" && pwd)
from=$PWD
OUT=$(realpath -m "${OUT:-$bundle/out}")
only='' skip='' limit=570 device=cuda:0 build=no
steps='facts peaks test model logits engine suites experts collectives torch-ops sanitize torch-engine interference'
while [[ $# -gt 0 ]]; do
  case $1 in
    --only) only=$2; shift 2 ;;
    --skip) skip=$2; shift 2 ;;
    --limit) limit=$2; shift 2 ;;
    --device) device=$2; shift 2 ;;
    --build) build=yes; shift ;;
    --steps) echo "$steps"; exit 0 ;;
    *) echo "unknown argument $1; see the head of gpu-run.sh" >&2; exit 2 ;;
  esac
done
for name in ${only//,/ } ${skip//,/ }; do
  [[ " $steps " == *" $name "* ]] || { echo "no step $name; there are: $steps" >&2; exit 2; }
done

mkdir -p "$OUT"
# What the steps leave, as they leave it: a run that is killed can still be collected (the last line).
work=$OUT/reports
rm -rf "$work"
mkdir -p "$work"
scratch=$(mktemp -d "${TMPDIR:-/tmp}/nanoweave-gpu.XXXXXX")
# The 8 B model needs 17 GB: memory-backed where there is room, so that no disk is measured.
models=$scratch
shm_kb=$(df -k --output=avail /dev/shm 2>/dev/null | tail -1)
[[ ${shm_kb:-0} -gt 40000000 ]] && models=$(mktemp -d /dev/shm/nanoweave-gpu.XXXXXX)
trap 'rm -rf "$scratch" "$models"' EXIT
log=$OUT/gpu-run.log
: >"$log"

node=$bundle/bin/node
export NANOWEAVE_COMMIT
NANOWEAVE_COMMIT=$(cat "$bundle/COMMIT")
export PATH=$bundle/bin:$PATH TMPDIR=$models PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
on_gpu=yes
if [[ $device == cpu || ${NANOWEAVE_BINARY:-} == *emulated* ]]; then
  on_gpu=no
  export NANOWEAVE_EMULATION_MEMORY=${NANOWEAVE_EMULATION_MEMORY:-2048}  # MiB: the smallest bench
fi
start=$SECONDS

# NCCL and cuBLASLt of a Python environment: the addon looks there too, but not in every layout.
find_wheel_library() {
  python3 - "$1" <<'PYTHON' 2>/dev/null
import glob, importlib.util, sys
spec = importlib.util.find_spec("nvidia")
for folder in spec.submodule_search_locations if spec else []:
    for file in sorted(glob.glob(f"{folder}/*/lib/{sys.argv[1]}")):
        print(file)
        sys.exit()
PYTHON
}
if [[ $on_gpu == yes ]]; then
  [[ -n ${NANOWEAVE_NCCL:-} ]] || NANOWEAVE_NCCL=$(find_wheel_library libnccl.so.2)
  [[ -n ${NANOWEAVE_CUBLASLT:-} ]] || NANOWEAVE_CUBLASLT=$(find_wheel_library 'libcublasLt.so.1[23]')
  [[ -n $NANOWEAVE_NCCL ]] && export NANOWEAVE_NCCL || unset NANOWEAVE_NCCL
  [[ -n $NANOWEAVE_CUBLASLT ]] && export NANOWEAVE_CUBLASLT || unset NANOWEAVE_CUBLASLT
  export NCCL_MULTI_RANK_GPU_ENABLE=1
fi

# Data that a small bundle leaves to the checkout it runs in.
for folder in test/fixtures/golden models; do
  if [[ ! -e $bundle/$folder && -d $from/$folder ]]; then
    mkdir -p "$(dirname "$bundle/$folder")"
    ln -s "$from/$folder" "$bundle/$folder"
  fi
done

wanted() {
  [[ -z $only || ",$only," == *",$1,"* ]] && [[ ",$skip," != *",$1,"* ]]
}

# step NAME SECONDS COMMAND...: within its limit and the whole run's; notes how it ended.
step() {
  local name=$1 seconds=$2 left=$((limit - (SECONDS - start)))
  shift 2
  if ((left < 5)); then
    echo "$name skipped: the time of the whole run is over" | tee -a "$log"
    echo "$name skipped 0" >>"$work/steps"
    return 0
  fi
  ((seconds > left)) && seconds=$left
  local begin=$SECONDS status=0
  echo "== $name: $*" >>"$log"
  timeout --kill-after=5 "$seconds" "$@" >>"$log" 2>&1 || status=$?
  local word=ok
  ((status == 124 || status == 137)) && word=timeout
  ((status != 0 && status != 124 && status != 137)) && word="failed($status)"
  echo "$name $word $((SECONDS - begin))" | tee -a "$work/steps"
}

to_file() { # FILE COMMAND...: stdout into FILE, only once the command has succeeded
  local file=$1
  shift
  "$@" >"$file.partial" && mv "$file.partial" "$file"
}

bench() { # NAME SUITE ARGUMENTS...
  local name=$1 suite=$2
  shift 2
  "$node" "$bundle/lib/cli/main.js" bench "$suite" --device "$device" --cache "$models" \
    --rounds 5 --json "$work/bench-$name.json" "$@"
  # A report with wrong rows is kept: it is what must be seen.
}

checked() { # TOOL
  compute-sanitizer --tool "$1" --error-exitcode 9 --print-limit 20 \
    "$bundle/bin/nanoweave_driver" cases "$scratch/cases"
}

build_native() {
  local capability architecture
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1) || return 1
  architecture=${capability/./}-real
  [[ $architecture == 90-real ]] && architecture=90a-real
  "$bundle/scripts/build-native-stage.sh" "$scratch/native" ON "$architecture" "$(nproc)" \
    "$bundle/include/node-api-headers" "$bundle/include/node-addon-api" &&
    cp "$scratch/native/nanoweave.node" "$bundle/build/Release/" &&
    cp "$scratch/native/nanoweave_driver" "$scratch/native/gpu_probe" "$bundle/bin/"
}
export -f bench checked to_file build_native
torch_device=$([[ $on_gpu == yes ]] && echo cuda || echo cpu)
export node bundle device work scratch models torch_device

cd "$bundle" || exit 1
if [[ $build == yes ]]; then step build 400 bash -c build_native; fi
"$node" test/gpu/main.js --check --device "$device" || exit $?
model=$([[ $on_gpu == yes ]] && echo 8b || echo tiny)
export model

for name in $steps; do
  wanted "$name" || continue
  case $name in
    facts)
      [[ $on_gpu == yes ]] || continue
      step facts 60 bash -c 'to_file "$work/facts.json" "$bundle/bin/gpu_probe" facts'
      step nccl-fact 60 bash -c 'to_file "$work/nccl.json" "$bundle/bin/gpu_probe" nccl'
      ;;
    peaks)
      [[ $on_gpu == yes ]] || continue
      step peaks 60 bash -c 'to_file "$models/bench-peaks-gpu.json" "$bundle/bin/gpu_probe" peaks &&
        cp "$models/bench-peaks-gpu.json" "$work/peaks.json"'
      ;;
    test)
      step test 240 "$node" test/gpu/main.js --device "$device" --limit 230 --json "$OUT/test-gpu.json"
      ;;
    sanitize)
      [[ $on_gpu == yes ]] || continue
      if ! command -v compute-sanitizer >/dev/null; then
        echo 'sanitize skipped: no compute-sanitizer on the PATH' | tee -a "$log"
        continue
      fi
      step record-cases 30 env NANOWEAVE_TEST_DEVICE="$device" \
        "$node" test/gpu/record-cases.js "$scratch/cases"
      for tool in memcheck racecheck synccheck; do
        step "$tool" 90 bash -c "checked $tool"
      done
      ;;
    model)
      step model 120 bash -c '"$node" bench/make-model.js "$model" --out "$models/bench-models"'
      ;;
    logits)
      step logits 120 bash -c 'python3 bench/peers/torch_baselines.py logits --device "$torch_device" \
        --model "$models/bench-models/llama-$model-seed1"'
      ;;
    engine)
      if [[ $on_gpu == yes ]]; then
        step engine 200 bash -c 'bench engine engine --set model=$model --rounds 3'
      else
        step engine 200 bash -c 'bench engine engine --set model=tiny --sizes 1x16x8,4x16x8 --rounds 2'
      fi
      ;;
    suites)
      for suite in attention-decode attention-prefill matmul rms-norm copy; do
        small=''
        if [[ $on_gpu == no ]]; then
          case $suite in
            attention-decode) small='--sizes 2x64' ;;
            attention-prefill) small='--sizes 48' ;;
            matmul) small='--sizes 4x64x64' ;;
            *) small='--sizes 8x64' ;;
          esac
        fi
        step "$suite" 100 bash -c "bench $suite $suite $small"
      done
      ;;
    experts)
      for suite in moe-route grouped-matmul; do
        small=''
        if [[ $on_gpu == no ]]; then
          small=$([[ $suite == moe-route ]] && echo '--sizes 8x16x2' || echo '--sizes 24x4x32x40')
        fi
        step "$suite" 100 bash -c "bench $suite $suite $small"
      done
      for ranks in 8 4; do
        small=$([[ $on_gpu == yes ]] || echo '--sizes 8x32x8x2')
        step "moe-dispatch-$ranks" 100 bash -c "bench moe-dispatch-$ranks moe-dispatch --ranks $ranks $small"
      done
      small=$([[ $on_gpu == yes ]] || echo '--sizes 8x48x32x8x2')
      for ranks in 1 4; do
        step "moe-layer-$ranks" 100 bash -c "bench moe-layer-$ranks moe-layer --ranks $ranks $small"
      done
      ;;
    collectives)
      small=$([[ $on_gpu == yes ]] || echo '--sizes 8x64,40x64')
      for suite in all-reduce-rms-norm all-reduce; do
        for ranks in 4 2; do
          step "$suite-$ranks" 60 bash -c "bench $suite-$ranks $suite --ranks $ranks $small"
        done
      done
      small=$([[ $on_gpu == yes ]] || echo '--sizes 8x64x96')
      for ranks in 4 2; do
        step "overlap-$ranks" 100 bash -c "bench overlap-$ranks overlap --ranks $ranks $small"
      done
      ;;
    torch-ops)
      small=$([[ $on_gpu == yes ]] || echo --small)
      step torch-ops 90 bash -c "python3 bench/peers/torch_baselines.py ops $small --device $torch_device --out $work/torch-ops.json"
      ;;
    torch-engine)
      small=$([[ $on_gpu == yes ]] || echo '--small --batches 1')
      step torch-engine 150 bash -c "python3 bench/peers/torch_baselines.py engine $small --device $torch_device --model $models/bench-models/llama-$model-seed1 --out $work/torch-engine.json"
      ;;
    interference)
      [[ $on_gpu == yes ]] || continue
      step interference 90 bash -c 'to_file "$work/interference.json" "$bundle/bin/gpu_probe" interference'
      ;;
  esac
done

"$node" bench/gpu/collect.js "$work" "$OUT"
