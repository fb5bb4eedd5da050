// The CUDA op table: the ops of ops/table.cc that run on CUDA.
#include "cuda/op.h"

namespace nanoweave {

CudaKernel prepare_cuda_embed(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_rope_table(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_rms_norm(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_add_rms_norm(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_matmul(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_logits(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_mean_squares(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_split_rope_cache(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_attention(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_mla_split_rope_cache(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_head_matmul(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_mla_attention(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_silu_mul(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_gelu_mul(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_gather_rows(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_sample(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_all_gather(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_all_reduce(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_reduce_scatter(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_all_reduce_rms_norm(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_moe_route(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_moe_place(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_moe_dispatch(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_grouped_matmul(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_grouped_glu(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_moe_combine(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_all_gather_rows(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_matmul_all_reduce(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_matmul_reduce_scatter(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_all_gather_matmul(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_copy(const OpInstance& op, const CudaPlan& plan);
CudaKernel prepare_cuda_stall(const OpInstance& op, const CudaPlan& plan);

std::span<const CudaOpDef> cuda_op_table() {
  static const CudaOpDef table[] = {
      {"embed", prepare_cuda_embed},
      {"rope_table", prepare_cuda_rope_table},
      {"rms_norm", prepare_cuda_rms_norm},
      {"add_rms_norm", prepare_cuda_add_rms_norm},
      {"matmul", prepare_cuda_matmul},
      {"mean_squares", prepare_cuda_mean_squares},
      {"split_rope_cache", prepare_cuda_split_rope_cache},
      {"attention", prepare_cuda_attention},
      {"mla_split_rope_cache", prepare_cuda_mla_split_rope_cache},
      {"head_matmul", prepare_cuda_head_matmul},
      {"mla_attention", prepare_cuda_mla_attention},
      {"silu_mul", prepare_cuda_silu_mul},
      {"gelu_mul", prepare_cuda_gelu_mul},
      {"gather_rows", prepare_cuda_gather_rows},
      {"logits", prepare_cuda_logits},
      {"all_gather", prepare_cuda_all_gather},
      {"sample", prepare_cuda_sample},
      {"all_reduce", prepare_cuda_all_reduce},
      {"reduce_scatter", prepare_cuda_reduce_scatter},
      {"all_reduce_rms_norm", prepare_cuda_all_reduce_rms_norm},
      {"moe_route", prepare_cuda_moe_route},
      {"moe_place", prepare_cuda_moe_place},
      {"moe_dispatch", prepare_cuda_moe_dispatch},
      {"grouped_matmul", prepare_cuda_grouped_matmul},
      {"grouped_glu", prepare_cuda_grouped_glu},
      {"moe_combine", prepare_cuda_moe_combine},
      {"all_gather_rows", prepare_cuda_all_gather_rows},
      {"matmul_all_reduce", prepare_cuda_matmul_all_reduce},
      {"matmul_reduce_scatter", prepare_cuda_matmul_reduce_scatter},
      {"all_gather_matmul", prepare_cuda_all_gather_matmul},
      {"copy", prepare_cuda_copy},
      {"stall", prepare_cuda_stall},
  };
  return table;
}

CudaKernel prepare_cuda_op(const Program& program, const OpDesc& op, const CudaPlan& plan) {
  prepare_host_op(program, op);  // refuses what no backend takes
  const OpInstance instance{.program = program, .op = op};
  instance.require(program.world <= kMaxRanks, "more than %d ranks on CUDA", kMaxRanks);
  instance.require(program.parts <= kMaxParts, "more than %d parts on CUDA", kMaxParts);
  for (const CudaOpDef& def : cuda_op_table())
    if (op.kind == def.name) return def.prepare(instance, plan);
  fail(ErrorCode::kProgram, "op %s (%s): not available on CUDA", op.label.c_str(), op.kind.c_str());
}

}  // namespace nanoweave
