// split_rope_cache: qkv [T, (Hq + 2·Hkv)·D] → q [T, Hq·D], and keys and values into the KV slots of
// the tokens. Each q and k head is normalised (where a weight is given), then its first rotary_dim
// elements are rotated in pairs (i, i + rotary_dim/2). With the means of the squares of all heads,
// as mean_squares and an all_reduce give them, heads are normalised together. Rows with slot −1
// write no KV.
#include <cmath>

#include "cpu/kv_view.h"
#include "ops/norm_row.h"
#include "ops/op.h"
#include "ops/rows.h"

namespace nanoweave {

namespace {

// How heads are normalised: each by itself, or, with `means`, all heads of the group together.
struct HeadNorm {
  const VectorKernels& kernels;
  const float* weight;  // [head_dim], with means [heads, head_dim]; null: not at all
  const float*
      means;  // [T, 2] mean of the squares of all query heads and of all key heads, or null
  int which;  // of the two
  int64_t head_dim;
  float eps;

  void apply(float* head, int64_t row, int64_t index) const {
    if (weight == nullptr) return;
    if (means == nullptr) return normalize_row(kernels, head, head_dim, weight, eps);
    const float scale = 1.0f / std::sqrt(means[row * 2 + which] + eps);
    kernels.scale_mul(head, scale, weight + index * head_dim, head_dim, head);
  }
};

}  // namespace

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
  const BufferDesc* means = op.input(4);
  op.require_weight_vector(op.input(2), means ? heads * head_dim : head_dim);
  op.require_weight_vector(op.input(3), means ? kv_heads * head_dim : head_dim);
  if (means != nullptr) {
    op.require_activation(*means, 2);
    op.require(means->dtype == DType::kF32 && means->shape[0].symbol == Symbol::kTokens,
               "buffer %s must be f32 with T rows", means->name.c_str());
  }
  op.require_kv(op.output(1), kv_heads, head_dim);
  op.require_same_part();
  op.require(op.has("eps") || (op.input(2) == nullptr && op.input(3) == nullptr),
             "q_norm and k_norm need eps");
  const auto eps = static_cast<float>(op.number_or("eps", 0));
  const int64_t block_size = op.program.limits.block_size;

  return [=](const HostRun& run) {
    const Tensor& qkv = run.in[0];
    const Tensor& table = run.in[1];
    const Tensor& q = run.out[0];
    const KvView kv{run.out[1], kv_heads, block_size, head_dim};
    const VectorKernels& kernels = vector_kernels(run.rank.isa);
    const int element = dtype_bytes(qkv.dtype);
    const HeadNorm query_norm{kernels, floats(run.in[2]), floats(run.in[4]), 0, head_dim, eps};
    const HeadNorm key_norm{kernels, floats(run.in[3]), floats(run.in[4]), 1, head_dim, eps};
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
          query_norm.apply(head, r, h);
          kernels.rotate(head, cos, sin, rotary / 2);
          kernels.store(q.dtype, head, head_dim, q.row(r) + h * head_bytes);
        }
        const int32_t slot = run.step.kv_slots[run.tokens.begin + r];
        if (slot < 0) continue;
        for (int64_t h = 0; h < kv_heads; ++h, source += head_bytes) {
          kernels.load(qkv.dtype, source, head_dim, head);
          key_norm.apply(head, r, h);
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
