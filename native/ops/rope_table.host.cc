// rope_table: table[t] = {cos(p·f_0), …, cos(p·f_{n-1}), sin(p·f_0), …, sin(p·f_{n-1})} · factor
// with p the token's position and n = rotary / 2 frequencies, [T, rotary] f32. Angles are products
// of float32 values, as in the models' own code.
//
// Dynamic NTK scaling: a token at position p ≥ original takes the frequencies of length L = p + 1,
// base' = base · (factor·L/original − (factor − 1))^(rotary / (rotary − 2)),  f_i =
// base'^(−2i/rotary).
#include <cmath>

#include "ops/op.h"
#include "ops/rows.h"

namespace nanoweave {

HostKernel prepare_rope_table(const OpInstance& op) {
  const BufferDesc& table = op.output(0);
  const std::vector<double> given = op.numbers("inv_freq");
  const std::vector<float> inv_freq(given.begin(), given.end());
  const auto half = static_cast<int64_t>(inv_freq.size());
  op.require(half > 0, "inv_freq is empty");
  op.require_activation(table, 2 * half);
  op.require(table.shape[0].symbol == Symbol::kTokens && table.dtype == DType::kF32,
             "buffer %s must be [T, rotary] f32", table.name.c_str());
  const auto attention_factor = static_cast<float>(op.number_or("attention_factor", 1));
  const bool dynamic = op.has("dynamic_factor");
  const double factor = op.number_or("dynamic_factor", 1);
  const double base = op.number_or("dynamic_base", 0);
  const auto original = static_cast<double>(op.integer_or("dynamic_original", 0));
  if (dynamic)
    op.require(factor >= 1 && base > 1 && original >= 1 && half > 1,
               "dynamic scaling needs dynamic_factor >= 1, dynamic_base > 1, "
               "dynamic_original >= 1 and more than one frequency");

  return [=](const HostRun& run) {
    const Tensor& out = run.out[0];
    const auto cols = static_cast<double>(2 * half);
    for_row_chunks(run.rank, out.rows, 32 * half, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) {
        auto* row = reinterpret_cast<float*>(out.row(r));
        const int32_t position = run.step.positions[run.tokens.begin + r];
        double scaled_base = 0;  // 0: the frequencies as given
        if (dynamic && position >= original)
          scaled_base = base * std::pow(factor * (position + 1.0) / original - (factor - 1.0),
                                        cols / (cols - 2.0));
        for (int64_t i = 0; i < half; ++i) {
          const float frequency = scaled_base > 0
                                      ? static_cast<float>(std::pow(scaled_base, -2.0 * i / cols))
                                      : inv_freq[i];
          const float angle = static_cast<float>(position) * frequency;
          row[i] = std::cos(angle) * attention_factor;
          row[half + i] = std::sin(angle) * attention_factor;
        }
      }
    });
  };
}

}  // namespace nanoweave
