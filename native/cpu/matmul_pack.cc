// The packed form of a weight matrix: writing blocks of it at load, reading rows back.
//
// Packing is a transpose of 16 rows at a time. Sixteen rows of a power-of-two width fall into one
// set of the first-level cache, so a strip of 64 bytes per row is copied aside first and transposed
// from there.
#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "cpu/matmul.h"

namespace nanoweave {
namespace {

constexpr int64_t kPanelRows = 16;

int64_t group_size(DType dtype) { return dtype == DType::kBf16 ? 2 : 1; }

int64_t panel_elements(DType dtype, int64_t cols) {
  const int64_t group = group_size(dtype);
  return (cols + group - 1) / group * group * kPanelRows;
}

// Columns [col_begin, col_end) of one panel. `source` is element (row_begin, col_begin) of the
// block; rows [row_begin, row_end) of the panel come from it and rows [row_end, pad_row_end) are
// set to zero. An Element is one value: a bf16 group is two of them.
template <typename Element, int kGroup>
void pack_panel(const std::byte* source, int64_t source_stride, int64_t row_begin, int64_t row_end,
                int64_t pad_row_end, int64_t col_begin, int64_t col_end, std::byte* panel) {
  constexpr int64_t kStrip = 64 / sizeof(Element);
  Element strip[kPanelRows][kStrip] = {};
  auto* out = reinterpret_cast<Element*>(panel);
  // The first strip ends on a strip boundary of the panel, so that whole groups follow.
  for (int64_t begin = col_begin; begin < col_end;) {
    const int64_t end = std::min(col_end, (begin / kStrip + 1) * kStrip);
    for (int64_t row = row_begin; row < row_end; ++row) {
      std::memcpy(strip[row],
                  source + (row - row_begin) * source_stride +
                      (begin - col_begin) * int64_t{sizeof(Element)},
                  static_cast<size_t>(end - begin) * sizeof(Element));
    }
    if (row_begin == 0 && pad_row_end == kPanelRows && end - begin == kStrip) {
      Element* group = out + begin * kPanelRows;
      for (int64_t col = 0; col < kStrip; col += kGroup, group += kPanelRows * kGroup)
        for (int64_t row = 0; row < kPanelRows; ++row)
          std::memcpy(group + row * kGroup, &strip[row][col], sizeof(Element) * kGroup);
    } else {
      for (int64_t col = begin; col < end; ++col)
        for (int64_t row = row_begin; row < pad_row_end; ++row)
          out[(col / kGroup * kPanelRows + row) * kGroup + col % kGroup] = strip[row][col - begin];
    }
    begin = end;
  }
}

template <typename Element, int kGroup>
void pack_rows(const std::byte* source, int64_t source_stride, int64_t row_count, int64_t col_count,
               std::byte* packed, int64_t rows, int64_t cols, int64_t dest_row, int64_t dest_col) {
  const int64_t panel_stride = (cols + kGroup - 1) / kGroup * kGroup * kPanelRows;
  const int64_t col_end = dest_col + col_count;
  const bool pads_cols = col_end == cols && cols % kGroup != 0;
  for (int64_t row = dest_row; row < dest_row + row_count;) {
    const int64_t panel = row / kPanelRows;
    const int64_t row_begin = row % kPanelRows;
    const int64_t row_end = std::min(kPanelRows, dest_row + row_count - panel * kPanelRows);
    const int64_t pad_row_end = panel * kPanelRows + row_end == rows ? kPanelRows : row_end;
    std::byte* out = packed + panel * panel_stride * int64_t{sizeof(Element)};
    pack_panel<Element, kGroup>(source + (row - dest_row) * source_stride, source_stride, row_begin,
                                row_end, pad_row_end, dest_col, col_end, out);
    if (pads_cols) {
      auto* last = reinterpret_cast<Element*>(out) + (cols - 1) * kPanelRows;
      for (int64_t r = row_begin; r < pad_row_end; ++r) last[r * kGroup + 1] = 0;
    }
    row = panel * kPanelRows + row_end;
  }
}

template <typename Element, int kGroup>
void unpack(const std::byte* packed, int64_t cols, int64_t row, float* out) {
  const int64_t panel_stride = (cols + kGroup - 1) / kGroup * kGroup * kPanelRows;
  const auto* panel = reinterpret_cast<const Element*>(packed) + row / kPanelRows * panel_stride;
  const int64_t lane = row % kPanelRows;
  for (int64_t col = 0; col < cols; ++col)
    out[col] = to_float(panel[(col / kGroup * kPanelRows + lane) * kGroup + col % kGroup]);
}

}  // namespace

int64_t packed_bytes(DType dtype, int64_t rows, int64_t cols) {
  return (rows + kPanelRows - 1) / kPanelRows * panel_elements(dtype, cols) * dtype_bytes(dtype);
}

void pack_block(DType dtype, const std::byte* source, int64_t source_row_stride_bytes,
                int64_t row_count, int64_t col_count, std::byte* packed, int64_t rows, int64_t cols,
                int64_t dest_row, int64_t dest_col) {
  CHECK(dest_row >= 0 && row_count >= 0 && dest_row + row_count <= rows);
  CHECK(dest_col >= 0 && col_count >= 0 && dest_col + col_count <= cols);
  if (row_count == 0 || col_count == 0) return;
  switch (dtype) {
    case DType::kF32:
      return pack_rows<uint32_t, 1>(source, source_row_stride_bytes, row_count, col_count, packed,
                                    rows, cols, dest_row, dest_col);
    case DType::kBf16:
      return pack_rows<uint16_t, 2>(source, source_row_stride_bytes, row_count, col_count, packed,
                                    rows, cols, dest_row, dest_col);
    case DType::kF16:
      return pack_rows<uint16_t, 1>(source, source_row_stride_bytes, row_count, col_count, packed,
                                    rows, cols, dest_row, dest_col);
    case DType::kI32:
    case DType::kU8:
      break;
  }
  fail(ErrorCode::kInternal, "weights of dtype %d have no packed form: pack f32, bf16 or f16",
       static_cast<int>(dtype));
}

void unpack_row(DType dtype, const std::byte* packed, int64_t rows, int64_t cols, int64_t row,
                float* out) {
  CHECK(row >= 0 && row < rows);
  switch (dtype) {
    case DType::kF32:
      return unpack<float, 1>(packed, cols, row, out);
    case DType::kBf16:
      return unpack<bf16, 2>(packed, cols, row, out);
    case DType::kF16:
      return unpack<f16, 1>(packed, cols, row, out);
    case DType::kI32:
    case DType::kU8:
      break;
  }
  fail(ErrorCode::kInternal, "weights of dtype %d have no packed form: pack f32, bf16 or f16",
       static_cast<int>(dtype));
}

}  // namespace nanoweave
