#include "runtime/weight_loader.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

#include "core/e4m3.h"
#include "core/error.h"
#include "core/tensor.h"
#include "runtime/source_file.h"

namespace nanoweave {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kBounceElements = 4 * kMaxTileElements;  // strided rows are read with their gaps
constexpr int64_t kMinDirectRowBytes = 4096;               // below, one large read beats many small
constexpr auto kProgressInterval = std::chrono::milliseconds(50);

int64_t piece_bytes(const WeightPiece& piece) {
  return piece.row_count * piece.col_count * dtype_bytes(piece.dtype);
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

// A rectangle of a piece, relative to the piece.
struct Tile {
  int64_t row, rows, col, cols;
};

// One thread's buffers.
class PieceReader {
 public:
  explicit PieceReader(TileSink sink)
      : sink_(std::move(sink)),
        bounce_(kBounceElements * 4),
        floats_(kMaxTileElements),
        converted_(kMaxTileElements * 4) {}

  void copy(std::span<const SourceFile> files, const WeightPiece& piece, const WeightBuffer& buffer,
            size_t index, int rank, Progress& progress, const std::atomic<bool>& stop) {
    const SourceFile& file = files[piece.file];
    const int64_t tile_cols = std::min(piece.col_count, kMaxTileElements);
    if (tile_cols == 0) return;
    const int64_t tile_rows = rows_per_tile(piece, tile_cols);
    if (piece.is_e4m3) read_scales(files[piece.scales_file], piece);
    for (int64_t row = 0; row < piece.row_count; row += tile_rows) {
      for (int64_t col = 0; col < piece.col_count; col += tile_cols) {
        if (stop.load(std::memory_order_relaxed)) return;
        const Tile tile = {row, std::min(tile_rows, piece.row_count - row), col,
                           std::min(tile_cols, piece.col_count - col)};
        read(file, piece, tile);
        convert(piece, buffer.dtype, tile);
        sink_({.buffer = index,
               .rank = rank,
               .row = piece.dest_row + tile.row,
               .rows = tile.rows,
               .col = piece.dest_col + tile.col,
               .cols = tile.cols,
               .data = source_,
               .stride = source_stride_});
        progress.add(tile.rows * tile.cols * dtype_bytes(piece.dtype));
      }
    }
  }

 private:
  static bool reads_gaps(const WeightPiece& piece, int64_t tile_cols) {
    return tile_cols == piece.cols || (tile_cols * dtype_bytes(piece.dtype) < kMinDirectRowBytes &&
                                       piece.cols <= kBounceElements);
  }

  static int64_t rows_per_tile(const WeightPiece& piece, int64_t tile_cols) {
    int64_t rows = kMaxTileElements / tile_cols;
    if (reads_gaps(piece, tile_cols)) rows = std::min(rows, kBounceElements / piece.cols);
    return std::max<int64_t>(1, rows);
  }

  // Reads a tile into bounce_; source_ and source_stride_ say where its rows begin.
  void read(const SourceFile& file, const WeightPiece& piece, const Tile& tile) {
    const int64_t element = dtype_bytes(piece.dtype);
    const auto offset = [&](int64_t row) {
      return piece.offset +
             ((piece.row_start + tile.row + row) * piece.cols + piece.col_start + tile.col) *
                 element;
    };
    source_ = bounce_.data();
    if (reads_gaps(piece, tile.cols)) {
      source_stride_ = piece.cols * element;
      const int64_t elements = (tile.rows - 1) * piece.cols + tile.cols;
      file.read(offset(0), elements * element, bounce_.data());
      return;
    }
    source_stride_ = tile.cols * element;
    for (int64_t row = 0; row < tile.rows; ++row)
      file.read(offset(row), source_stride_, bounce_.data() + row * source_stride_);
  }

  void convert(const WeightPiece& piece, DType dtype, const Tile& tile) {
    if (piece.dtype == dtype && piece.add == 0) return;
    const int64_t stride = tile.cols * dtype_bytes(dtype);
    for (int64_t row = 0; row < tile.rows; ++row) {
      if (piece.is_e4m3)
        load_e4m3(piece, tile, row);
      else
        load_floats(piece.dtype, source_ + row * source_stride_, tile.cols, floats_.data());
      if (piece.add != 0)
        for (int64_t i = 0; i < tile.cols; ++i) floats_[i] += piece.add;
      store_floats(dtype, floats_.data(), tile.cols, converted_.data() + row * stride);
    }
    source_ = converted_.data();
    source_stride_ = stride;
  }

  // The factors of the blocks that the piece's rows are in.
  void read_scales(const SourceFile& file, const WeightPiece& piece) {
    const int64_t first = piece.row_start / kScaleBlock;
    const int64_t last = (piece.row_start + piece.row_count - 1) / kScaleBlock;
    scale_cols_ = (piece.cols + kScaleBlock - 1) / kScaleBlock;
    scales_.resize((last - first + 1) * scale_cols_);
    const int64_t row_bytes = scale_cols_ * int64_t{sizeof(float)};
    file.read(piece.scales_offset + first * row_bytes, (last - first + 1) * row_bytes,
              reinterpret_cast<std::byte*>(scales_.data()));
  }

  void load_e4m3(const WeightPiece& piece, const Tile& tile, int64_t row) {
    const int64_t block_row = (piece.row_start + tile.row + row) / kScaleBlock;
    const float* scales =
        scales_.data() + (block_row - piece.row_start / kScaleBlock) * scale_cols_;
    const std::byte* source = source_ + row * source_stride_;
    for (int64_t i = 0; i < tile.cols; ++i) {
      const int64_t col = piece.col_start + tile.col + i;
      floats_[i] = e4m3_to_float(static_cast<uint8_t>(source[i])) * scales[col / kScaleBlock];
    }
  }

  const TileSink sink_;
  std::vector<std::byte> bounce_;
  std::vector<float> floats_;
  std::vector<std::byte> converted_;
  std::vector<float> scales_;  // of the piece being copied
  int64_t scale_cols_ = 0;
  const std::byte* source_ = nullptr;
  int64_t source_stride_ = 0;  // bytes
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
  const auto work = [&] {
    try {
      PieceReader reader(make_sink());
      for (size_t task; !stop.load(std::memory_order_relaxed) &&
                        (task = next_task.fetch_add(1, std::memory_order_relaxed)) < num_tasks;) {
        const size_t index = task / world, rank = task % world;
        const WeightBuffer& buffer = manifest.buffers[index];
        if (buffer.space == Space::kKv) continue;
        for (const WeightPiece& piece : buffer.ranks[rank])
          reader.copy(files, piece, buffer, index, static_cast<int>(rank), progress, stop);
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
