// mla_split_rope_cache: latent [T, L+R] → the token's slot of the latent cache: the first L
// elements normalised, the last R rotated. And the last R columns of each head of q
// [T, heads·(N+R)], rotated → q_rope [T, heads·R]. Rotation takes pairs (i, i + R/2); where they
// come interleaved, (2i, 2i + 1), they are sorted first, in queries and keys alike. Rows with slot
// −1 write no cache.
#include "cpu/kv_view.h"
#include "ops/norm_row.h"
#include "ops/op.h"
#include "ops/rows.h"

namespace nanoweave {

namespace {

// Loads `size` elements, rotates them and stores them; `values` and `sorted` hold `size` floats.
struct Rotation {
  const VectorKernels& kernels;
  int64_t size;
  bool interleaved;
  float* values;
  float* sorted;

  void turn(DType from, const std::byte* source, const float* table, DType to, std::byte* out) {
    kernels.load(from, source, size, values);
    float* x = values;
    const int64_t half = size / 2;
    if (interleaved) {
      for (int64_t i = 0; i < half; ++i) {
        sorted[i] = values[2 * i];
        sorted[half + i] = values[2 * i + 1];
      }
      x = sorted;
    }
    kernels.rotate(x, table, table + half, half);
    kernels.store(to, x, size, out);
  }
};

}  // namespace

HostKernel prepare_mla_split_rope_cache(const OpInstance& op) {
  const int64_t heads = op.integer("heads");
  const int64_t latent_dim = op.integer("latent_dim");
  const int64_t rope = op.integer("rope_dim");
  op.require(heads > 0 && heads <= 4096 && latent_dim > 0 && latent_dim <= 4096 && rope > 0 &&
                 rope % 2 == 0 && rope <= 4096,
             "heads, latent_dim and rope_dim must be within 1..4096, rope_dim even");
  const BufferDesc& q = *op.input(0);
  const BufferDesc& latent = *op.input(1);
  const BufferDesc& table = *op.input(2);
  const BufferDesc& q_rope = op.output(0);
  op.require_activation(q, -1);
  op.require(q.cols() % heads == 0 && q.cols() / heads >= rope,
             "buffer %s must have at least %lld columns for each of %lld heads", q.name.c_str(),
             static_cast<long long>(rope), static_cast<long long>(heads));
  op.require_activation(latent, latent_dim + rope);
  op.require_activation(table, rope);
  op.require(table.dtype == DType::kF32, "buffer %s must be f32", table.name.c_str());
  op.require_activation(q_rope, heads * rope);
  op.require_alike(q, latent);
  op.require_alike(q, q_rope);
  op.require(q.shape[0].symbol == Symbol::kTokens && table.shape[0].symbol == Symbol::kTokens,
             "buffers %s and %s must have T rows", q.name.c_str(), table.name.c_str());
  op.require_weight_vector(op.input(3), latent_dim);
  op.require_latent_cache(op.output(1), latent_dim + rope);
  op.require_same_part();
  const auto eps = static_cast<float>(op.number("eps"));
  op.require(eps >= 0, "eps is negative");
  const bool interleaved = op.boolean_or("interleaved", false);
  const int64_t block_size = op.program.limits.block_size;

  return [=](const HostRun& run) {
    const Tensor& q = run.in[0];
    const Tensor& latent = run.in[1];
    const Tensor& table = run.in[2];
    const Tensor& q_rope = run.out[0];
    const float* norm = floats(run.in[3]);
    const KvView cache{run.out[1], 1, block_size, latent_dim + rope, 1};
    const VectorKernels& kernels = vector_kernels(run.rank.isa);
    const int64_t element = dtype_bytes(q.dtype);
    const int64_t head_bytes = q.row_bytes() / heads;
    const ThreadFloats scratch(run.rank, latent_dim + 2 * rope);
    for_row_chunks(run.rank, q.rows, q.cols, [&](int64_t begin, int64_t end, int thread) {
      float* values = scratch.of(thread);
      Rotation rotation{kernels, rope, interleaved, values + latent_dim,
                        values + latent_dim + rope};
      for (int64_t r = begin; r < end; ++r) {
        const auto* angles = reinterpret_cast<const float*>(table.row(r));
        for (int64_t h = 0; h < heads; ++h)
          rotation.turn(q.dtype, q.row(r) + (h + 1) * head_bytes - rope * element, angles,
                        q_rope.dtype, q_rope.row(r) + h * rope * element);
        const int32_t slot = run.step.kv_slots[run.tokens.begin + r];
        if (slot < 0) continue;
        std::byte* out = cache.key(slot, 0);
        kernels.load(latent.dtype, latent.row(r), latent_dim, values);
        normalize_row(kernels, values, latent_dim, norm, eps);
        kernels.store(cache.dtype(), values, latent_dim, out);
        rotation.turn(latent.dtype, latent.row(r) + latent_dim * element, angles, cache.dtype(),
                      out + latent_dim * dtype_bytes(cache.dtype()));
      }
    });
  };
}

}  // namespace nanoweave
