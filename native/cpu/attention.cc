// Sizes of an attention unit's memory.
#include "cpu/attention.h"

namespace nanoweave {

int64_t attention_scratch_floats(int64_t rows, int64_t key_dim, int64_t value_dim) {
  const auto lines = [](int64_t count) { return (count + 15) / 16 * 16; };
  const int64_t stride = attention_value_stride(value_dim);
  const int64_t state = rows * stride + 2 * lines(rows);
  return lines(rows * key_dim) + rows * kTileKeys + key_dim * kTileKeys + kTileKeys * stride +
         2 * state;
}

}  // namespace nanoweave
