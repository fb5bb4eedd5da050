// WeightManifest: the native mirror of lib/weights/types.ts.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "program/program.h"

namespace nanoweave {

inline constexpr int64_t kScaleBlock = 128;

// What the bytes of a source are. e4m3: 8-bit floats, each block of kScaleBlock² with a factor, f32
// or bf16. mxfp4: 4-bit floats with an exponent for every 32 of a row; core/mxfp4.h.
enum class Encoding : uint8_t { kPlain, kE4m3, kMxfp4 };

struct WeightPiece {
  int file = 0;
  int64_t offset = 0;  // bytes
  DType dtype = DType::kF32;
  int64_t rows = 0, cols = 0;
  int64_t row_start = 0, row_count = 0, row_step = 1;  // every row_step-th row
  int64_t col_start = 0, col_count = 0, col_step = 1;
  bool transposed = false;  // the source lies as [cols, rows]
  int64_t dest_row = 0, dest_col = 0;
  float add = 0;
  Encoding encoding = Encoding::kPlain;  // others: of dtype u8
  int scales_file = 0;
  int64_t scales_offset = 0;  // bytes; a row for every kScaleBlock rows (e4m3) or every row
  DType scales_dtype = DType::kF32;

  // Of an element of the source.
  int64_t bits() const { return encoding == Encoding::kMxfp4 ? 4 : 8 * dtype_bytes(dtype); }
};

struct WeightBuffer {
  std::string name;
  Space space = Space::kWeight;
  DType dtype = DType::kF32;
  Layout layout = Layout::kPlain;
  std::vector<int64_t> shape;
  int64_t host_blocks = 0;  // kv: blocks of the same kind on the host, for swapping
  std::vector<std::vector<WeightPiece>> ranks;  // [world]
};

struct WeightManifest {
  struct File {
    std::string path;
    int64_t bytes;
  };
  std::vector<File> files;
  std::vector<WeightBuffer> buffers;
};

// Checks every rectangle against its source, its file's size and its destination.
WeightManifest parse_manifest(std::string_view json, int world);

}  // namespace nanoweave
