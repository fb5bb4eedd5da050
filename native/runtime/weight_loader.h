// Reading of weights from their source files: a tile at a time is read and converted, and handed to
// whoever puts it in place. Ranks and buffers are read by several threads; a buffer of a rank by
// one.
#pragma once

#include <functional>

#include "program/manifest.h"
#include "runtime/backend.h"

namespace nanoweave {

// A rectangle of a buffer on one rank, in the buffer's dtype.
struct WeightTile {
  size_t buffer;  // of the manifest
  int rank;
  int64_t row, rows;
  int64_t col, cols;
  const std::byte* data;  // until the sink returns
  int64_t stride;         // bytes from row to row
};

inline constexpr int64_t kMaxTileElements = int64_t{1} << 18;

using TileSink = std::function<void(const WeightTile&)>;

// Reads all weight buffers with up to `num_threads` threads; each makes a sink of its own. The
// first failure, of a thread, a sink or the progress callback, stops all threads and is rethrown.
void read_weights(const WeightManifest& manifest, const ProgressCallback& progress, int num_threads,
                  const std::function<TileSink()>& make_sink);

}  // namespace nanoweave
