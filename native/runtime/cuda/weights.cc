#include "runtime/cuda/weights.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <thread>

#include "core/error.h"
#include "cpu/host_info.h"
#include "runtime/weight_loader.h"

namespace nanoweave {

namespace {

constexpr int64_t kAlignment = 256;
constexpr int kMaxLoaders = 8;
constexpr int64_t kMaxElementBytes = 4;
constexpr int64_t kReservedBytes = int64_t{64} << 20;  // of a device, for graphs and kernels

int64_t align(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// One thread's way to the devices.
class Uploader {
 public:
  Uploader(std::span<const StoredBuffer> buffers, std::span<const int> device_of)
      : buffers_(buffers), device_of_(device_of) {}
  ~Uploader() {
    for (auto& [device, lane] : lanes_) try {
        lane.stream.synchronize();  // the pinned tiles are still read
      } catch (const EngineError&) {
        // The device is lost: nothing reads them, and load() has failed.
      }
  }
  Uploader(const Uploader&) = delete;
  Uploader& operator=(const Uploader&) = delete;

  void put(const WeightTile& tile) {
    const StoredBuffer& buffer = buffers_[tile.buffer];
    const int64_t element = dtype_bytes(buffer.dtype);
    const int64_t row_bytes = tile.cols * element;
    Lane& lane = lane_of(device_of_[tile.rank]);
    Slot& slot = lane.slots[lane.turn ^= 1];
    slot.copied.synchronize();
    for (int64_t row = 0; row < tile.rows; ++row)
      std::memcpy(slot.memory.data() + row * row_bytes, tile.data + row * tile.stride,
                  static_cast<size_t>(row_bytes));
    copy_rows_async(buffer.data[tile.rank] + (tile.row * buffer.cols + tile.col) * element,
                    buffer.cols * element, slot.memory.data(), row_bytes, row_bytes, tile.rows,
                    lane.stream.get());
    slot.copied.record(lane.stream.get());
  }

 private:
  struct Slot {
    PinnedMemory memory{kMaxTileElements * kMaxElementBytes, "loading weights"};
    DeviceEvent copied{false};
  };
  struct Lane {
    DeviceStream stream{false};
    std::array<Slot, 2> slots;
    int turn = 0;
  };

  Lane& lane_of(int device) {
    use_device(device);
    return lanes_[device];
  }

  const std::span<const StoredBuffer> buffers_;
  const std::span<const int> device_of_;
  std::map<int, Lane> lanes_;  // by device
};

// Bytes of one rank.
struct Needs {
  int64_t weights = 0;
  int64_t kv = 0;
  int64_t host = 0;
};

void add_bytes(int64_t& total, int64_t bytes) {
  if (bytes > INT64_MAX / 4 - total)
    fail(ErrorCode::kOutOfMemory, "the buffers exceed the address space");
  total += align(bytes);
}

// Page-locking more than there is would take the machine down with us.
void require_host_memory(int64_t bytes_of_rank, int64_t ranks) {
  const int64_t free = host_info().free_memory_bytes;
  if (free <= 0 || bytes_of_rank <= free / ranks) return;
  fail(ErrorCode::kOutOfMemory,
       "swapped-out KV blocks take %lld MiB of host memory for each of %lld ranks, %lld MiB are "
       "available; swap fewer blocks",
       static_cast<long long>(bytes_of_rank >> 20), static_cast<long long>(ranks),
       static_cast<long long>(free >> 20));
}

void require_memory(const Needs& needs, std::span<const int> device_of) {
  std::map<int, int> ranks_on;
  for (const int device : device_of) ++ranks_on[device];
  const auto mib = [](int64_t bytes) { return static_cast<long long>((bytes + 1048575) >> 20); };
  for (const auto& [device, ranks] : ranks_on) {
    const int64_t free = std::max<int64_t>(0, free_device_bytes(device) - kReservedBytes);
    const int64_t fitting = free / ranks;
    if (needs.weights + needs.kv <= fitting) continue;
    if (fitting > needs.weights)
      fail(ErrorCode::kOutOfMemory,
           "each rank needs %lld MiB (weights %lld, KV cache %lld) and cuda:%d has %lld MiB free "
           "for each of its %d ranks; a KV cache of %lld MiB over all ranks would fit",
           mib(needs.weights + needs.kv), mib(needs.weights), mib(needs.kv), device,
           static_cast<long long>(fitting >> 20), ranks,
           static_cast<long long>(
               (fitting - needs.weights) * static_cast<int64_t>(device_of.size()) >> 20));
    fail(ErrorCode::kOutOfMemory,
         "each rank needs %lld MiB (weights %lld, KV cache %lld) and cuda:%d has %lld MiB free for "
         "each of its %d ranks; spread the model over more devices, or take a smaller one",
         mib(needs.weights + needs.kv), mib(needs.weights), mib(needs.kv), device,
         static_cast<long long>(fitting >> 20), ranks);
  }
}

}  // namespace

void CudaWeights::load(const WeightManifest& manifest, const ProgressCallback& progress) {
  std::vector<StoredBuffer> stored;
  Needs needs;
  for (const WeightBuffer& buffer : manifest.buffers) {
    if (buffers_.contains(buffer.name))
      fail(ErrorCode::kUsage, "buffer '%s' is already loaded", buffer.name.c_str());
    stored.push_back(describe_stored(buffer));
    add_bytes(buffer.space == Space::kKv ? needs.kv : needs.weights, stored.back().bytes);
    add_bytes(needs.host, stored.back().host_bytes());
  }
  require_memory(needs, device_of_);
  require_host_memory(needs.host, static_cast<int64_t>(device_of_.size()));

  std::vector<DeviceMemory> memory;
  std::vector<PinnedMemory> host_memory;
  for (const int device : device_of_) {
    use_device(device);
    const DeviceStream stream(false);
    memory.emplace_back(device, needs.weights, "weights");
    memory.emplace_back(device, needs.kv, "the KV cache");
    host_memory.emplace_back(needs.host, "swapped-out KV blocks");
    std::byte* host = host_memory.back().data();
    std::byte* next[] = {memory[memory.size() - 2].data(), memory[memory.size() - 1].data()};
    for (size_t i = memory.size() - 2; i < memory.size(); ++i)
      fill_async(memory[i].data(), 0, memory[i].bytes(), stream.get());
    stream.synchronize();
    for (StoredBuffer& buffer : stored) {
      std::byte*& at = next[buffer.space == Space::kKv];
      buffer.data.push_back(at);
      at += align(buffer.bytes);
      buffer.host.push_back(buffer.host_blocks > 0 ? host : nullptr);
      host += align(buffer.host_bytes());
    }
  }
  const int threads =
      std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMaxLoaders);
  read_weights(manifest, progress, threads, [&] {
    const auto uploader = std::make_shared<Uploader>(stored, device_of_);
    return [uploader](const WeightTile& tile) { uploader->put(tile); };
  });
  for (const int device : device_of_) {
    use_device(device);
    const DeviceStream stream(false);
    stream.synchronize();  // throws where a device was lost meanwhile
  }

  for (DeviceMemory& piece : memory) memory_.push_back(std::move(piece));
  for (PinnedMemory& piece : host_memory) host_memory_.push_back(std::move(piece));
  for (StoredBuffer& buffer : stored) buffers_.emplace(buffer.name, std::move(buffer));
}

const StoredBuffer* CudaWeights::find(const std::string& name) const {
  const auto found = buffers_.find(name);
  return found == buffers_.end() ? nullptr : &found->second;
}

const StoredBuffer& CudaWeights::get(const std::string& name, int rank) const {
  const StoredBuffer* buffer = find(name);
  if (buffer == nullptr)
    fail(ErrorCode::kUsage, "no weight or KV buffer is called '%.128s'", name.c_str());
  if (rank < 0 || rank >= static_cast<int>(device_of_.size()))
    fail(ErrorCode::kUsage, "rank %d of a world of %zu", rank, device_of_.size());
  return *buffer;
}

std::vector<uint8_t> CudaWeights::read(const std::string& name, int rank) {
  const StoredBuffer& buffer = get(name, rank);
  std::vector<uint8_t> out(static_cast<size_t>(buffer.bytes));
  copies_.read(device_of_[rank], buffer.data[rank], std::as_writable_bytes(std::span(out)));
  return out;
}

void CudaWeights::write(const std::string& name, int rank, const std::vector<uint8_t>& bytes) {
  const StoredBuffer& buffer = get(name, rank);
  if (buffer.space != Space::kKv)
    fail(ErrorCode::kUsage, "'%s' is a weight and cannot be written", name.c_str());
  if (static_cast<int64_t>(bytes.size()) > buffer.bytes)
    fail(ErrorCode::kUsage, "%zu bytes for '%s', which has %lld", bytes.size(), name.c_str(),
         static_cast<long long>(buffer.bytes));
  copies_.write(device_of_[rank], buffer.data[rank], std::as_bytes(std::span(bytes)));
}

}  // namespace nanoweave
