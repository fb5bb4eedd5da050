#include "runtime/piece_reader.h"

#include <algorithm>
#include <utility>

#include "core/e4m3.h"
#include "core/mxfp4.h"
#include "core/tensor.h"

namespace nanoweave {

namespace {

constexpr int64_t kBounceBytes = 16 * kMaxTileElements;  // strided lines are read with their gaps
constexpr int64_t kMinDirectBytes = 4096;                // below, one large read beats many small
constexpr int64_t kSquare = 16;                          // of a transposition, in both directions

}  // namespace

PieceReader::PieceReader(TileSink sink)
    : sink_(std::move(sink)),
      bounce_(kBounceBytes),
      floats_(kMaxTileElements),
      converted_(kMaxTileElements * 4) {}

void PieceReader::copy(std::span<const SourceFile> files, const WeightPiece& piece,
                       const WeightBuffer& buffer, size_t index, int rank,
                       const std::function<void(int64_t)>& progress,
                       const std::atomic<bool>& stop) {
  if (piece.row_count == 0 || piece.col_count == 0) return;
  const int64_t places = piece.transposed ? piece.row_count : piece.col_count;
  const int64_t step = piece.transposed ? piece.row_step : piece.col_step;
  // A line of a tile fits the buffers with the places between.
  const int64_t tile_places =
      std::min(places, std::max<int64_t>(1, kMaxTileElements / std::min(step, kMaxTileElements)));
  const Stored stored = describe(piece, tile_places);
  const int64_t tile_lines = lines_per_tile(stored, tile_places);
  if (piece.encoding != Encoding::kPlain) read_scales(files[piece.scales_file], piece, stored);
  for (int64_t line = 0; line < stored.lines.count; line += tile_lines) {
    for (int64_t place = 0; place < places; place += tile_places) {
      if (stop.load(std::memory_order_relaxed)) return;
      const Tile tile = {line, std::min(tile_lines, stored.lines.count - line), place,
                         std::min(tile_places, places - place)};
      read(files[piece.file], piece, stored, tile);
      convert(piece, stored, buffer.dtype, tile);
      const auto [row, rows, col, cols] =
          piece.transposed ? Tile{tile.place, tile.places, tile.line, tile.lines} : tile;
      sink_({.buffer = index,
             .rank = rank,
             .row = piece.dest_row + row,
             .rows = rows,
             .col = piece.dest_col + col,
             .cols = cols,
             .data = source_,
             .stride = source_stride_});
      progress(rows * cols * stored.bits / 8);
    }
  }
}

PieceReader::Stored PieceReader::describe(const WeightPiece& piece, int64_t tile_places) {
  const Axis rows = {piece.row_start, piece.row_step, piece.row_count};
  const Axis cols = {piece.col_start, piece.col_step, piece.col_count};
  Stored stored = {.lines = piece.transposed ? cols : rows,
                   .places = piece.transposed ? rows : cols,
                   .line_elements = piece.transposed ? piece.rows : piece.cols,
                   .bits = piece.bits(),
                   .reads_gaps = false};
  const int64_t span = span_bytes(stored, tile_places);
  const int64_t stride = stored.line_elements * stored.bits / 8 * stored.lines.step;
  const bool whole = tile_places * stored.places.step >= stored.line_elements * stored.lines.step;
  stored.reads_gaps = whole || (span < kMinDirectBytes && stride <= kBounceBytes);
  return stored;
}

// Bytes from the first to the last of `places` places of a line; with half bytes, one for either
// end.
int64_t PieceReader::span_bytes(const Stored& stored, int64_t places) {
  const int64_t elements = (places - 1) * stored.places.step + 1;
  return (elements * stored.bits + 7) / 8 + (stored.bits < 8 ? 1 : 0);
}

int64_t PieceReader::lines_per_tile(const Stored& stored, int64_t tile_places) {
  const int64_t span = span_bytes(stored, tile_places);
  const int64_t stride = stored.line_elements * stored.bits / 8 * stored.lines.step;
  int64_t lines = std::min(kMaxTileElements / tile_places, kBounceBytes / span);
  if (stored.reads_gaps)
    lines = std::min(lines, (kBounceBytes - span) / std::max<int64_t>(1, stride) + 1);
  return std::max<int64_t>(1, lines);
}

// Reads a tile into bounce_; source_ and source_stride_ say where its lines begin.
void PieceReader::read(const SourceFile& file, const WeightPiece& piece, const Stored& stored,
                       const Tile& tile) {
  const auto line_bytes = stored.line_elements * stored.bits / 8;
  const int64_t first = stored.places.start + tile.place * stored.places.step;
  const int64_t last = first + (tile.places - 1) * stored.places.step;
  const int64_t begin = first * stored.bits / 8;
  const int64_t span = ((last + 1) * stored.bits + 7) / 8 - begin;
  const auto offset = [&](int64_t line) {
    return piece.offset +
           (stored.lines.start + (tile.line + line) * stored.lines.step) * line_bytes + begin;
  };
  source_ = bounce_.data();
  if (stored.reads_gaps) {
    source_stride_ = line_bytes * stored.lines.step;
    file.read(offset(0), (tile.lines - 1) * source_stride_ + span, bounce_.data());
    return;
  }
  source_stride_ = span;
  for (int64_t line = 0; line < tile.lines; ++line)
    file.read(offset(line), span, bounce_.data() + line * span);
}

// The tile's lines → rows in `dtype`, unless they are so already.
void PieceReader::convert(const WeightPiece& piece, const Stored& stored, DType dtype,
                          const Tile& tile) {
  const bool as_stored = piece.encoding == Encoding::kPlain && piece.dtype == dtype &&
                         piece.add == 0 && !piece.transposed && piece.col_step == 1;
  if (as_stored) return;
  for (int64_t line = 0; line < tile.lines; ++line) {
    float* values = floats_.data() + line * tile.places;
    decode_line(piece, stored, tile, line, values);
    if (piece.add != 0)
      for (int64_t i = 0; i < tile.places; ++i) values[i] += piece.add;
  }
  if (piece.transposed) transpose(tile.lines, tile.places);
  const int64_t rows = piece.transposed ? tile.places : tile.lines;
  const int64_t cols = piece.transposed ? tile.lines : tile.places;
  source_stride_ = cols * dtype_bytes(dtype);
  store_floats(dtype, piece.transposed ? transposed_.data() : floats_.data(), rows * cols,
               converted_.data());
  source_ = converted_.data();
}

void PieceReader::decode_line(const WeightPiece& piece, const Stored& stored, const Tile& tile,
                              int64_t line, float* out) {
  const std::byte* source = source_ + line * source_stride_;
  const int64_t row = stored.lines.start + (tile.line + line) * stored.lines.step;
  const int64_t col = stored.places.start + tile.place;
  if (piece.encoding == Encoding::kE4m3)
    return decode_e4m3(piece, row, col, tile.places, source, out);
  if (piece.encoding == Encoding::kMxfp4)
    return decode_mxfp4(piece, row, col, tile.places, source, out);
  const int64_t step = stored.places.step;
  if (step == 1) return load_floats(piece.dtype, source, tile.places, out);
  spread_.resize((tile.places - 1) * step + 1);
  load_floats(piece.dtype, source, static_cast<int64_t>(spread_.size()), spread_.data());
  for (int64_t i = 0; i < tile.places; ++i) out[i] = spread_[i * step];
}

// The scales of all lines that the piece takes.
void PieceReader::read_scales(const SourceFile& file, const WeightPiece& piece,
                              const Stored& stored) {
  const bool e4m3 = piece.encoding == Encoding::kE4m3;
  const int64_t block_rows = e4m3 ? kScaleBlock : 1;
  const int64_t block_places = e4m3 ? kScaleBlock : kMxfp4Block;
  const int64_t bytes = dtype_bytes(piece.scales_dtype);
  scales_per_row_ = (stored.line_elements + block_places - 1) / block_places;
  const Axis& lines = stored.lines;
  scales_row_ = lines.start / block_rows;
  const int64_t last = (lines.start + (lines.count - 1) * lines.step) / block_rows;
  const int64_t count = (last - scales_row_ + 1) * scales_per_row_;
  scales_.resize(count * bytes);
  file.read(piece.scales_offset + scales_row_ * scales_per_row_ * bytes, count * bytes,
            scales_.data());
  if (!e4m3) return;
  factors_.resize(count);
  load_floats(piece.scales_dtype, scales_.data(), count, factors_.data());
}

void PieceReader::decode_e4m3(const WeightPiece& piece, int64_t row, int64_t col, int64_t count,
                              const std::byte* source, float* out) const {
  const float* factors = factors_.data() + (row / kScaleBlock - scales_row_) * scales_per_row_;
  for (int64_t i = 0; i < count; ++i)
    out[i] = e4m3_to_float(static_cast<uint8_t>(source[i])) * factors[(col + i) / kScaleBlock];
}

void PieceReader::decode_mxfp4(const WeightPiece& piece, int64_t row, int64_t col, int64_t count,
                               const std::byte* source, float* out) const {
  const std::byte* scales = scales_.data() + (row - scales_row_) * scales_per_row_;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t place = col + i;
    const auto pair = static_cast<uint8_t>(source[place / 2 - col / 2]);
    const float scale = e8m0_to_float(static_cast<uint8_t>(scales[place / kMxfp4Block]));
    out[i] = kE2m1[place % 2 == 0 ? pair & 15 : pair >> 4] * scale;
  }
}

// floats_ [rows, cols] → transposed_ [cols, rows].
void PieceReader::transpose(int64_t rows, int64_t cols) {
  transposed_.resize(kMaxTileElements);
  for (int64_t r0 = 0; r0 < rows; r0 += kSquare)
    for (int64_t c = 0; c < cols; ++c)
      for (int64_t r = r0; r < std::min(rows, r0 + kSquare); ++r)
        transposed_[c * rows + r] = floats_[r * cols + c];
}

}  // namespace nanoweave
