// split_rope_cache: qkv [T, (Hq + 2·Hkv)·D] → q [T, Hq·D], and keys and values into the KV slots of
// the tokens. Each q and k head is normalised (where a weight is given), then its first rotary_dim
// elements are rotated in pairs (i, i + rotary_dim/2). A norm weight as wide as all heads
// normalises them together. Rows with slot −1 write no KV.
#include <cmath>

#include "cpu/kv_view.h"
#include "ops/norm_row.h"
#include "ops/op.h"
#include "ops/rows.h"

namespace nanoweave {

namespace {

// Whether a norm weight is over all heads together ([heads·D]) or over each ([D]).
bool spans_heads(const OpInstance& op, const BufferDesc* weight, int64_t heads, int64_t head_dim) {
  const bool together = weight != nullptr && weight->cols() == heads * head_dim && heads > 1;
  op.require_weight_vector(weight, together ? heads * head_dim : head_dim);
  op.require(!together || op.program.tp == 1, "norms over all heads need them on one rank");
  return together;
}

// Factor and weights that normalise a head.
class HeadNorm {
 public:
  HeadNorm(const VectorKernels& kernels, const float* weight, bool together, int64_t head_dim,
           float eps)
      : kernels_(kernels), weight_(weight), together_(together), head_dim_(head_dim), eps_(eps) {}

  // Before the heads of a row: [heads·D] of dtype at `source`; `head` is scratch.
  void begin(DType dtype, const std::byte* source, int64_t heads, float* head) {
    if (!together_) return;
    double sum = 0;
    for (int64_t h = 0; h < heads; ++h) {
      kernels_.load(dtype, source + h * head_dim_ * dtype_bytes(dtype), head_dim_, head);
      sum += kernels_.sum_squares(head, head_dim_);
    }
    const auto mean = static_cast<float>(sum / static_cast<double>(heads * head_dim_));
    scale_ = 1.0f / std::sqrt(mean + eps_);
  }
  void apply(float* head, int64_t index) const {
    if (weight_ == nullptr) return;
    if (together_)
      kernels_.scale_mul(head, scale_, weight_ + index * head_dim_, head_dim_, head);
    else
      normalize_row(kernels_, head, head_dim_, weight_, eps_);
  }

 private:
  const VectorKernels& kernels_;
  const float* weight_;
  const bool together_;
  const int64_t head_dim_;
  const float eps_;
  float scale_ = 1;
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
  const bool q_together = spans_heads(op, op.input(2), heads, head_dim);
  const bool k_together = spans_heads(op, op.input(3), kv_heads, head_dim);
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
      HeadNorm query_norm(kernels, q_norm, q_together, head_dim, eps);
      HeadNorm key_norm(kernels, k_norm, k_together, head_dim, eps);
      for (int64_t r = begin; r < end; ++r) {
        const float* cos = reinterpret_cast<const float*>(table.row(r));
        const float* sin = cos + rotary / 2;
        const std::byte* source = qkv.row(r);
        const int64_t head_bytes = head_dim * element;
        query_norm.begin(qkv.dtype, source, heads, head);
        key_norm.begin(qkv.dtype, source + heads * head_bytes, kv_heads, head);
        for (int64_t h = 0; h < heads; ++h, source += head_bytes) {
          kernels.load(qkv.dtype, source, head_dim, head);
          query_norm.apply(head, h);
          kernels.rotate(head, cos, sin, rotary / 2);
          kernels.store(q.dtype, head, head_dim, q.row(r) + h * head_bytes);
        }
        const int32_t slot = run.step.kv_slots[run.tokens.begin + r];
        if (slot < 0) continue;
        for (int64_t h = 0; h < kv_heads; ++h, source += head_bytes) {
          kernels.load(qkv.dtype, source, head_dim, head);
          key_norm.apply(head, h);
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
