#!/usr/bin/env bash
# Builds the addon, the native driver and (with CUDA) the GPU probe without npm, out of the sources
# beside this script. scripts/gpu-bundle.sh runs it here, gpu-run.sh --build on a GPU host.
#
#   scripts/build-native-stage.sh OUT CUDA ARCHITECTURES JOBS NODE_API_INCLUDE NODE_ADDON_API_INCLUDE
#
# CUDA is ON or OFF. The products are in OUT: nanoweave.node, nanoweave_driver, gpu_probe.
set -euo pipefail
out=$1 cuda=$2 architectures=$3 jobs=$4
api=$(realpath "$5") addon_api=$(realpath "$6")
cd "$(dirname "$0")/.."

generator=()
command -v ninja >/dev/null && generator=(-G Ninja)
# What cmake-js would pass; Node-API needs no more than the two header folders.
cmake -S . -B "$out" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release -DCMAKE_JS_VERSION=8.0.0 \
  -DCMAKE_JS_INC="$api;$addon_api" -DCMAKE_JS_SRC= -DCMAKE_JS_LIB= \
  -DNANOWEAVE_CUDA="$cuda" -DNANOWEAVE_CUDA_ARCHITECTURES="$architectures" >/dev/null
cmake --build "$out" --parallel "$jobs" --target nanoweave nanoweave_driver

if [[ $cuda == ON ]]; then
  nvcc=${CUDA_HOME:-/usr/local/cuda}/bin/nvcc
  [[ -x $nvcc ]] || nvcc=nvcc
  codes=()
  IFS=';' read -ra list <<<"$architectures"
  for one in "${list[@]}"; do
    number=${one%%-*}
    codes+=(-gencode "arch=compute_$number,code=sm_$number")
  done
  "$nvcc" -std=c++20 -O2 "${codes[@]}" -cudart static -Xfatbin=-compress-all -Inative \
    -Xcompiler -Wall,-Wextra bench/gpu/*.cu native/core/shared_library.cc native/core/error.cc \
    native/cuda/libraries.cc -ldl -o "$out/gpu_probe"
fi
