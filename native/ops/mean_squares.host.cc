// mean_squares: qkv [T, (Hq + 2·Hkv)·D] → y [T, 2] f32: this rank's term of the mean of the squares
// of all query heads and of all key heads of the group. An all_reduce makes the means whole, for
// norms that span the heads of all ranks. Heads that several ranks hold count as often in both.
#include "cpu/vector_kernels.h"
#include "ops/op.h"
#include "ops/rows.h"

namespace nanoweave {

HostKernel prepare_mean_squares(const OpInstance& op) {
  const int64_t heads = op.integer("heads");
  const int64_t kv_heads = op.integer("kv_heads");
  const int64_t head_dim = op.integer("head_dim");
  op.require(heads > 0 && heads <= 4096 && kv_heads > 0 && kv_heads <= heads && head_dim > 0 &&
                 head_dim <= 4096,
             "heads, kv_heads and head_dim must be within 1..4096, kv_heads at most heads");
  const BufferDesc& qkv = *op.input(0);
  const BufferDesc& y = op.output(0);
  op.require_activation(qkv, (heads + 2 * kv_heads) * head_dim);
  op.require_activation(y, 2);
  op.require(y.dtype == DType::kF32, "buffer %s must be f32", y.name.c_str());
  op.require(qkv.shape[0].symbol == y.shape[0].symbol,
             "buffers %s and %s have rows of other symbols", qkv.name.c_str(), y.name.c_str());
  op.require_same_part();
  const int64_t tp = op.program.tp;

  return [=](const HostRun& run) {
    const Tensor& qkv = run.in[0];
    const VectorKernels& kernels = vector_kernels(run.rank.isa);
    const int64_t head_bytes = head_dim * dtype_bytes(qkv.dtype);
    const ThreadFloats scratch(run.rank, head_dim);
    for_row_chunks(run.rank, qkv.rows, qkv.cols, [&](int64_t begin, int64_t end, int thread) {
      float* head = scratch.of(thread);
      const auto mean = [&](const std::byte* source, int64_t count) {
        double sum = 0;
        for (int64_t h = 0; h < count; ++h) {
          kernels.load(qkv.dtype, source + h * head_bytes, head_dim, head);
          sum += kernels.sum_squares(head, head_dim);
        }
        return static_cast<float>(sum / static_cast<double>(tp * count * head_dim));
      };
      for (int64_t r = begin; r < end; ++r) {
        auto* means = reinterpret_cast<float*>(run.out[0].row(r));
        means[0] = mean(qkv.row(r), heads);
        means[1] = mean(qkv.row(r) + heads * head_bytes, kv_heads);
      }
    });
  };
}

}  // namespace nanoweave
