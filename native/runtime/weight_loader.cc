#include "runtime/weight_loader.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

#include "core/error.h"
#include "runtime/piece_reader.h"
#include "runtime/source_file.h"

namespace nanoweave {

namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kProgressInterval = std::chrono::milliseconds(50);

int64_t piece_bytes(const WeightPiece& piece) {
  return piece.row_count * piece.col_count * piece.bits() / 8;
}

// Counts bytes of all threads and calls back at most every 50 ms, one caller at a time.
class Progress {
 public:
  Progress(const ProgressCallback& callback, int64_t total) : callback_(callback), total_(total) {}

  void add(int64_t bytes) {
    const int64_t done = done_.fetch_add(bytes, std::memory_order_relaxed) + bytes;
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock() || !callback_ || Clock::now() < next_) return;
    next_ = Clock::now() + kProgressInterval;
    callback_(done, total_);
  }

  void finish() const {
    if (callback_) callback_(total_, total_);
  }

 private:
  const ProgressCallback& callback_;
  const int64_t total_;
  std::atomic<int64_t> done_{0};
  std::mutex mutex_;
  Clock::time_point next_;  // guarded by mutex_
};

}  // namespace

void read_weights(const WeightManifest& manifest, const ProgressCallback& callback, int num_threads,
                  const std::function<TileSink()>& make_sink) {
  std::vector<SourceFile> files;
  files.reserve(manifest.files.size());
  for (const auto& file : manifest.files) files.emplace_back(file.path, file.bytes);

  int64_t total = 0;
  size_t world = 0;
  for (const WeightBuffer& buffer : manifest.buffers) {
    world = std::max(world, buffer.ranks.size());
    for (const auto& pieces : buffer.ranks)
      for (const WeightPiece& piece : pieces) total += piece_bytes(piece);
  }

  Progress progress(callback, total);
  std::atomic<bool> stop{false};
  std::mutex failure_mutex;
  std::exception_ptr failure;  // guarded by failure_mutex
  // Buffer by buffer over all ranks, so that ranks share what the page cache holds.
  std::atomic<size_t> next_task{0};
  const size_t num_tasks = manifest.buffers.size() * world;
  const auto add_progress = [&](int64_t bytes) { progress.add(bytes); };
  const auto work = [&] {
    try {
      PieceReader reader(make_sink());
      for (size_t task; !stop.load(std::memory_order_relaxed) &&
                        (task = next_task.fetch_add(1, std::memory_order_relaxed)) < num_tasks;) {
        const size_t index = task / world, rank = task % world;
        const WeightBuffer& buffer = manifest.buffers[index];
        if (buffer.space == Space::kKv) continue;
        for (const WeightPiece& piece : buffer.ranks[rank])
          reader.copy(files, piece, buffer, index, static_cast<int>(rank), add_progress, stop);
      }
    } catch (...) {
      stop.store(true, std::memory_order_relaxed);
      const std::lock_guard lock(failure_mutex);
      if (!failure) failure = std::current_exception();
    }
  };

  std::vector<std::jthread> helpers;
  const size_t wanted = std::min<size_t>(std::max(1, num_threads), num_tasks);
  helpers.reserve(wanted);
  try {
    for (size_t i = 1; i < wanted; ++i) helpers.emplace_back(work);
  } catch (const std::system_error&) {
    // The system has no more threads: those there are share the work.
  }
  work();
  helpers.clear();  // joins
  if (failure) std::rethrow_exception(failure);
  progress.finish();
}

}  // namespace nanoweave
