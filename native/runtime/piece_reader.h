// PieceReader: reads a piece of a weight from its file and converts it, a tile at a time, with
// bounded memory. One thread's.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "program/manifest.h"
#include "runtime/source_file.h"
#include "runtime/weight_loader.h"

namespace nanoweave {

class PieceReader {
 public:
  explicit PieceReader(TileSink sink);

  // Hands all tiles of a piece to the sink, in the dtype of `buffer`, and tells `progress` the
  // bytes of each; ends early when `stop` is set.
  void copy(std::span<const SourceFile> files, const WeightPiece& piece, const WeightBuffer& buffer,
            size_t index, int rank, const std::function<void(int64_t)>& progress,
            const std::atomic<bool>& stop);

 private:
  // A piece as it lies in its file: lines, which are rows of the matrix, or columns where it is
  // stored transposed, and places within a line.
  struct Axis {
    int64_t start, step, count;
  };
  struct Stored {
    Axis lines, places;
    int64_t line_elements;  // from one line of the matrix to the next
    int64_t bits;           // of an element
    bool reads_gaps;        // what lies between two lines is read along
  };
  struct Tile {  // relative to the piece
    int64_t line, lines, place, places;
  };

  static Stored describe(const WeightPiece& piece, int64_t tile_places);
  static int64_t span_bytes(const Stored& stored, int64_t places);
  static int64_t lines_per_tile(const Stored& stored, int64_t tile_places);
  void read(const SourceFile& file, const WeightPiece& piece, const Stored& stored,
            const Tile& tile);
  void read_scales(const SourceFile& file, const WeightPiece& piece, const Stored& stored);
  void convert(const WeightPiece& piece, const Stored& stored, DType dtype, const Tile& tile);
  void decode_line(const WeightPiece& piece, const Stored& stored, const Tile& tile, int64_t line,
                   float* out);
  void decode_e4m3(const WeightPiece& piece, int64_t row, int64_t col, int64_t count,
                   const std::byte* source, float* out) const;
  void decode_mxfp4(const WeightPiece& piece, int64_t row, int64_t col, int64_t count,
                    const std::byte* source, float* out) const;
  void transpose(int64_t rows, int64_t cols);

  const TileSink sink_;
  std::vector<std::byte> bounce_;
  std::vector<float> floats_;      // [lines, places] of a tile
  std::vector<float> transposed_;  // [places, lines]
  std::vector<float> spread_;      // a line with the places between
  std::vector<std::byte> converted_;
  // Of the piece being copied, from the line of scales_row_ on; e4m3 has them as floats too.
  std::vector<std::byte> scales_;
  std::vector<float> factors_;
  int64_t scales_row_ = 0;
  int64_t scales_per_row_ = 0;
  const std::byte* source_ = nullptr;
  int64_t source_stride_ =
      0;  // bytes from line to line of the tile; after convert, from row to row
};

}  // namespace nanoweave
