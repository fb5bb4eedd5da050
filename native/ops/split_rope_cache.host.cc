// split_rope_cache: qkv [T, (Hq + 2·Hkv)·D] → q [T, Hq·D], and keys and values into the KV slots of
// the tokens. Each q and k head is normalised (where a weight is given), then its first rotary_dim
// elements are rotated in pairs (i, i + rotary_dim/2). Rows with slot −1 write no KV.
#include "cpu/kv_view.h"
#include "ops/norm_row.h"
#include "ops/op.h"
#include "ops/rows.h"

namespace nanoweave {

HostKernel prepare_split_rope_cache(const OpInstance& op) {
  const int64_t heads = op.integer("heads");
  const int64_t kv_heads = op.integer("kv_heads");
  const int64_t head_dim = op.integer("head_dim");
  const int64_t rotary = op.integer("rotary_dim");
  op.require(heads > 0 && heads <= 4096 && kv_heads > 0 && kv_heads <= heads && head_dim > 0 &&
                 head_dim <= 4096,
             "heads, kv_heads and head_dim must be within 1..4096, kv_heads at most heads");
  op.require(rotary > 0 && rotary % 2 == 0 && rotary <= head_dim,
             "rotary_dim must be even and within 2..head_dim");
  const BufferDesc& qkv = *op.input(0);
  const BufferDesc& table = *op.input(1);
  const BufferDesc& q = op.output(0);
  op.require_activation(qkv, (heads + 2 * kv_heads) * head_dim);
  op.require_activation(table, rotary);
  op.require(table.dtype == DType::kF32, "buffer %s must be f32", table.name.c_str());
  op.require_activation(q, heads * head_dim);
  op.require_alike(qkv, q);
  op.require(qkv.shape[0].symbol == Symbol::kTokens && table.shape[0].symbol == Symbol::kTokens,
             "buffers %s and %s must have T rows", qkv.name.c_str(), table.name.c_str());
  op.require_weight_vector(op.input(2), head_dim);
  op.require_weight_vector(op.input(3), head_dim);
  op.require_kv(op.output(1), kv_heads, head_dim);
  op.require_same_part();
  op.require(op.has("eps") || (op.input(2) == nullptr && op.input(3) == nullptr),
             "q_norm and k_norm need eps");
  const auto eps = static_cast<float>(op.number_or("eps", 0));
  const int64_t block_size = op.program.limits.block_size;

  return [=](const HostRun& run) {
    const Tensor& qkv = run.in[0];
    const Tensor& table = run.in[1];
    const float* q_norm = floats(run.in[2]);
    const float* k_norm = floats(run.in[3]);
    const Tensor& q = run.out[0];
    const KvView kv{run.out[1], kv_heads, block_size, head_dim};
    const VectorKernels& kernels = vector_kernels(run.rank.isa);
    const int element = dtype_bytes(qkv.dtype);
    const ThreadFloats scratch(run.rank, head_dim);
    for_row_chunks(run.rank, qkv.rows, qkv.cols, [&](int64_t begin, int64_t end, int thread) {
      float* head = scratch.of(thread);
      for (int64_t r = begin; r < end; ++r) {
        const float* cos = reinterpret_cast<const float*>(table.row(r));
        const float* sin = cos + rotary / 2;
        const std::byte* source = qkv.row(r);
        const int64_t head_bytes = head_dim * element;
        for (int64_t h = 0; h < heads; ++h, source += head_bytes) {
          kernels.load(qkv.dtype, source, head_dim, head);
          if (q_norm != nullptr) normalize_row(kernels, head, head_dim, q_norm, eps);
          kernels.rotate(head, cos, sin, rotary / 2);
          kernels.store(q.dtype, head, head_dim, q.row(r) + h * head_bytes);
        }
        const int32_t slot = run.step.kv_slots[run.tokens.begin + r];
        if (slot < 0) continue;
        for (int64_t h = 0; h < kv_heads; ++h, source += head_bytes) {
          kernels.load(qkv.dtype, source, head_dim, head);
          if (k_norm != nullptr) normalize_row(kernels, head, head_dim, k_norm, eps);
          kernels.rotate(head, cos, sin, rotary / 2);
          kernels.store(kv.dtype(), head, head_dim, kv.key(slot, h));
        }
        for (int64_t h = 0; h < kv_heads; ++h, source += head_bytes) {
          kernels.load(qkv.dtype, source, head_dim, head);
          kernels.store(kv.dtype(), head, head_dim, kv.value(slot, h));
        }
      }
    });
  };
}

}  // namespace nanoweave
