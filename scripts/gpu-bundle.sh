#!/usr/bin/env bash
# Makes one archive that tests and measures this commit on a GPU host without Node, npm or network:
# Node, the addon built for CUDA, the compiled tests and benches with the packages they need, golden
# checkpoints, the native driver, the GPU probe, and the native sources to build there instead.
#
#   scripts/gpu-bundle.sh [--architectures 90a-real] [--out build/nanoweave-gpu.tar.xz] [--cpu]
#                         [--without-data] [--native FOLDER]
#
# --architectures: CMake's list, separated by ';'. --cpu: an addon without CUDA, to try the bundle.
# --without-data: no goldens and models; gpu-run.sh takes them from the checkout it is started in.
# --native: nanoweave.node, nanoweave_driver and gpu_probe as they lie in FOLDER, instead of a build.
# On the GPU host: tar -xJf nanoweave-gpu.tar.xz && nanoweave-gpu/gpu-run.sh
set -euo pipefail
cd "$(dirname "$0")/.."

architectures=90a-real
out=build/nanoweave-gpu.tar.xz
cuda=ON data=yes native=''
while [[ $# -gt 0 ]]; do
  case $1 in
    --architectures) architectures=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --cpu) cuda=OFF; shift ;;
    --without-data) data=no; shift ;;
    --native) native=$2; shift 2 ;;
    *) echo "unknown argument $1; see the head of $0" >&2; exit 2 ;;
  esac
done
max_bytes=$((60 * 1000 * 1000))
work=build/gpu-bundle
bundle=$work/nanoweave-gpu
jobs=${JOBS:-$(nproc)}

if [[ -z $native ]]; then
  echo '== native'
  native=$work/native
  scripts/build-native-stage.sh "$native" "$cuda" "$architectures" "$jobs" \
    node_modules/node-api-headers/include node_modules/node-addon-api
fi

echo '== files'
rm -rf "$bundle"
mkdir -p "$bundle/bin" "$bundle/build/Release" "$bundle/include"
npx tsc -p tsconfig.bundle.json --outDir "$bundle"
node scripts/bundle-modules.cjs "$bundle"
# The same folder layout as a checkout, so that nothing has to be told where things are.
mkdir -p "$bundle/scripts" "$bundle/bench/peers"
if [[ $data == yes ]]; then
  mkdir -p "$bundle/test/fixtures/golden" "$bundle/models"
  families=$(node --input-type=module -e "
    import { DENSE_FAMILIES, EXPERT_FAMILIES } from './$bundle/test/support/golden.js'
    console.log([...DENSE_FAMILIES, ...EXPERT_FAMILIES].join(' '))")
  for family in $families; do
    cp -r "test/fixtures/golden/$family" "$bundle/test/fixtures/golden/"
  done
  cp -r models/tiny-dense "$bundle/models/"
fi
cp -r native CMakeLists.txt package.json LICENSE "$bundle/"
cp -r bench/gpu "$bundle/bench/"
cp bench/peers/torch_baselines.py "$bundle/bench/peers/"
cp scripts/build-native-stage.sh "$bundle/scripts/"
cp scripts/gpu-run.sh "$bundle/gpu-run.sh"
cp -rL node_modules/node-api-headers/include "$bundle/include/node-api-headers"
mkdir -p "$bundle/include/node-addon-api"
cp node_modules/node-addon-api/*.h "$bundle/include/node-addon-api/"
cp "$native/nanoweave.node" "$bundle/build/Release/"
cp "$native/nanoweave_driver" "$bundle/bin/"
[[ $cuda == OFF ]] || cp "$native/gpu_probe" "$bundle/bin/"
strip --strip-all -o "$bundle/bin/node" "$(node -p 'process.execPath')"
strip "$bundle/build/Release/nanoweave.node" "$bundle/bin/nanoweave_driver"
commit=$(git rev-parse --short=12 HEAD)
git diff --quiet HEAD || commit=$commit+
echo "$commit" >"$bundle/COMMIT"

echo '== archive'
mkdir -p "$(dirname "$out")"
tar -C "$work" --owner=0 --group=0 --numeric-owner -cf - nanoweave-gpu | xz -T"$jobs" "${XZ_LEVEL:--6}" >"$out"
bytes=$(stat -c %s "$out")
echo "$out: $((bytes / 1000)) kB of at most $((max_bytes / 1000)) kB, commit $commit, CUDA $cuda, $architectures"
if ((bytes > max_bytes)); then
  echo 'the bundle is too large' >&2
  exit 1
fi
