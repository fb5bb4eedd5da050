// embed: x[t] = table[id(t)] · scale, [T, H]. The table is the packed [V/W, H] shard of this rank;
// ids of other ranks give zero rows, summed by the all_reduce that follows when W > 1.
#include <cstring>

#include "cpu/matmul.h"
#include "cpu/vector_kernels.h"
#include "ops/op.h"
#include "ops/rows.h"

namespace nanoweave {

HostKernel prepare_embed(const OpInstance& op) {
  const BufferDesc& table = *op.input(0);
  const BufferDesc& x = op.output(0);
  op.require_activation(x, -1);
  op.require(x.shape[0].symbol == Symbol::kTokens, "buffer %s must have T rows", x.name.c_str());
  const int64_t hidden = x.cols();
  op.require_weight_matrix(table, -1, hidden);
  const int64_t shard = table.shape[0].size;  // ids per rank
  op.require(shard * op.program.tp >= op.program.limits.vocab_size,
             "the shards of %s hold %lld ids, the vocabulary has %lld", table.name.c_str(),
             static_cast<long long>(shard * op.program.tp),
             static_cast<long long>(op.program.limits.vocab_size));
  const auto scale = static_cast<float>(op.number_or("scale", 1));

  return [=](const HostRun& run) {
    const Tensor& weight = run.in[0];
    const Tensor& out = run.out[0];
    const VectorKernels& kernels = vector_kernels(run.rank.isa);
    const int64_t first_id = run.rank.tp_rank() * shard;
    const ThreadFloats scratch(run.rank, hidden);
    for_row_chunks(run.rank, out.rows, hidden, [&](int64_t begin, int64_t end, int thread) {
      float* row = scratch.of(thread);
      for (int64_t r = begin; r < end; ++r) {
        const int64_t id =
            run.rank.slots->resolve(run.step.tokens[run.tokens.begin + r]) - first_id;
        if (id < 0 || id >= shard) {
          std::memset(out.row(r), 0, out.row_bytes());
          continue;
        }
        unpack_row(weight.dtype, weight.data, shard, hidden, id, row);
        if (scale != 1)
          for (int64_t i = 0; i < hidden; ++i) row[i] *= scale;
        kernels.store(out.dtype, row, hidden, out.row(r));
      }
    });
  };
}

}  // namespace nanoweave
