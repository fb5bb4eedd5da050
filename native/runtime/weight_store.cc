#include "runtime/weight_store.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "cpu/host_info.h"
#include "cpu/matmul.h"
#include "runtime/weight_loader.h"

namespace nanoweave {

namespace {

constexpr int64_t kAlignment = 64;

int64_t align(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

StoredBuffer describe(const WeightBuffer& buffer) {
  StoredBuffer stored = describe_stored(buffer);
  if (stored.layout == Layout::kMatmul)
    stored.bytes = packed_bytes(stored.dtype, stored.rows, stored.cols);
  return stored;
}

// Puts a tile where its buffer has it, row-major or packed.
void place_tile(const StoredBuffer& buffer, const WeightTile& tile) {
  if (buffer.layout == Layout::kMatmul) {
    pack_block(buffer.dtype, tile.data, tile.stride, tile.rows, tile.cols, buffer.data[tile.rank],
               buffer.rows, buffer.cols, tile.row, tile.col);
    return;
  }
  const int64_t element = dtype_bytes(buffer.dtype);
  for (int64_t r = 0; r < tile.rows; ++r)
    std::memcpy(buffer.data[tile.rank] + ((tile.row + r) * buffer.cols + tile.col) * element,
                tile.data + r * tile.stride, static_cast<size_t>(tile.cols * element));
}

void check_memory(__int128 wanted) {
  const int64_t free = host_info().free_memory_bytes;
  if (free > 0 && wanted > free)
    fail(ErrorCode::kOutOfMemory,
         "weights and KV cache need %lld MiB, %lld MiB of memory are available; use a smaller KV "
         "cache or model",
         static_cast<long long>(wanted >> 20), static_cast<long long>(free >> 20));
}

}  // namespace

void WeightStore::load(const WeightManifest& manifest, const ProgressCallback& progress,
                       int num_threads) {
  std::vector<StoredBuffer> stored;
  __int128 weight_bytes = 0, kv_bytes = 0, swap_bytes = 0;  // of one rank
  for (const WeightBuffer& buffer : manifest.buffers) {
    if (buffers_.contains(buffer.name))
      fail(ErrorCode::kUsage, "buffer '%s' is already loaded", buffer.name.c_str());
    stored.push_back(describe(buffer));
    (buffer.space == Space::kKv ? kv_bytes : weight_bytes) += align(stored.back().bytes);
    swap_bytes += align(stored.back().host_bytes());
  }
  check_memory((weight_bytes + kv_bytes + swap_bytes) * world_);

  std::vector<Region> regions;
  for (int rank = 0; rank < world_; ++rank) {
    regions.emplace_back(static_cast<int64_t>(weight_bytes), true, "weights");
    regions.emplace_back(static_cast<int64_t>(kv_bytes), false, "the KV cache");
    regions.emplace_back(static_cast<int64_t>(swap_bytes), false, "swapped-out KV blocks");
    std::byte* weights = regions[regions.size() - 3].data();
    std::byte* kv = regions[regions.size() - 2].data();
    std::byte* host = regions[regions.size() - 1].data();
    for (StoredBuffer& buffer : stored) {
      std::byte*& next = buffer.space == Space::kKv ? kv : weights;
      buffer.data.push_back(next);
      next += align(buffer.bytes);
      buffer.host.push_back(buffer.host_blocks > 0 ? host : nullptr);
      host += align(buffer.host_bytes());
    }
  }
  read_weights(manifest, progress, num_threads, [&] {
    return [&](const WeightTile& tile) { place_tile(stored[tile.buffer], tile); };
  });

  for (Region& region : regions) regions_.push_back(std::move(region));
  for (StoredBuffer& buffer : stored) buffers_.emplace(buffer.name, std::move(buffer));
}

const StoredBuffer* WeightStore::find(const std::string& name) const {
  const auto found = buffers_.find(name);
  return found == buffers_.end() ? nullptr : &found->second;
}

const StoredBuffer& WeightStore::get(const std::string& name, int rank) const {
  const StoredBuffer* buffer = find(name);
  if (buffer == nullptr)
    fail(ErrorCode::kUsage, "no weight or KV buffer is called '%.128s'", name.c_str());
  if (rank < 0 || rank >= world_) fail(ErrorCode::kUsage, "rank %d of a world of %d", rank, world_);
  return *buffer;
}

std::vector<uint8_t> WeightStore::read(const std::string& name, int rank) const {
  const StoredBuffer& buffer = get(name, rank);
  const int64_t row_bytes = buffer.cols * dtype_bytes(buffer.dtype);
  std::vector<uint8_t> out(static_cast<size_t>(buffer.rows * row_bytes));
  if (buffer.layout == Layout::kPlain) {
    std::memcpy(out.data(), buffer.data[rank], out.size());
    return out;
  }
  std::vector<float> row(static_cast<size_t>(buffer.cols));
  for (int64_t r = 0; r < buffer.rows; ++r) {
    unpack_row(buffer.dtype, buffer.data[rank], buffer.rows, buffer.cols, r, row.data());
    store_floats(buffer.dtype, row.data(), buffer.cols,
                 reinterpret_cast<std::byte*>(out.data()) + r * row_bytes);
  }
  return out;
}

void WeightStore::write(const std::string& name, int rank, const std::vector<uint8_t>& bytes) {
  const StoredBuffer& buffer = get(name, rank);
  if (buffer.space != Space::kKv)
    fail(ErrorCode::kUsage, "'%s' is a weight and cannot be written", name.c_str());
  if (static_cast<int64_t>(bytes.size()) > buffer.bytes)
    fail(ErrorCode::kUsage, "%zu bytes for '%s', which has %lld", bytes.size(), name.c_str(),
         static_cast<long long>(buffer.bytes));
  std::copy(bytes.begin(), bytes.end(), reinterpret_cast<uint8_t*>(buffer.data[rank]));
}

}  // namespace nanoweave
