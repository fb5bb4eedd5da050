// Filling of weight buffers from their source files: read a tile, convert it, put it in place
// (packed or row-major). Ranks and buffers are filled by several threads; a buffer of a rank by
// one.
#pragma once

#include <span>

#include "runtime/weight_store.h"

namespace nanoweave {

// buffers[i] describes manifest.buffers[i] and has its memory. The first failure, of a thread or of
// the progress callback, stops all threads and is rethrown.
void fill_weights(const WeightManifest& manifest, std::span<const StoredBuffer> buffers,
                  const ProgressCallback& progress, int num_threads);

}  // namespace nanoweave
