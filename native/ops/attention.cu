// attention: which kernel serves a shape. 16-bit queries with a cache of the same type, a head size
// that has a tensor-core form and KV blocks of whole 16-key tiles go to the decode and a prefill
// kernel, each over its own list of segments; everything else to the generic one. Prefill on Hopper
// is the kernel of warpgroups where it has the head size, the one for all devices otherwise.
#include "ops/attention.cuh"

namespace nanoweave {

namespace {

CudaKernel choose_prefill(const AttentionShape& shape) {
  const CudaKernel any = attention_prefill(shape);
  if (!kBuiltForHopper || !any.launch) return any;
  const CudaKernel hopper = attention_prefill_wgmma(shape);
  if (!hopper.launch) return any;
  CudaKernel both{.launch =
                      [any = any.launch, hopper = hopper.launch](const CudaLaunch& launch) {
                        (runs_wgmma(launch.device) ? hopper : any)(launch);
                      },
                  .workspace_bytes = nullptr,
                  .functions = any.functions};
  both.functions.insert(both.functions.end(), hopper.functions.begin(), hopper.functions.end());
  return both;
}

}  // namespace

CudaKernel prepare_cuda_attention(const OpInstance& op, const CudaPlan& plan) {
  const BufferDesc& q = *op.input(0);
  const BufferDesc& kv = *op.input(1);
  const Limits& limits = op.program.limits;
  AttentionShape shape{};
  AttentionArgs& args = shape.constant;
  args.dtype = q.dtype;
  args.kv_dtype = kv.dtype;
  args.heads = static_cast<int32_t>(op.integer("heads"));
  args.kv_heads = static_cast<int32_t>(op.integer("kv_heads"));
  args.head_dim = static_cast<int32_t>(op.integer("head_dim"));
  args.block_size = static_cast<int32_t>(limits.block_size);
  args.window = static_cast<int32_t>(op.integer_or("window", 0));
  args.scale = static_cast<float>(op.number("scale"));
  args.softcap = static_cast<float>(op.number_or("softcap", 0));
  shape.which = which_rows(q, op.op.part());
  shape.partial_rows = plan.step.partial_rows;
  shape.q_rows = q.max_rows();
  shape.kv_blocks = limits.num_blocks;
  op.require(args.head_dim <= 1024, "head_dim above 1024 on CUDA");
  op.require(limits.num_blocks * 2 * args.kv_heads * args.block_size <= UINT32_MAX,
             "the KV cache has more than 2^32 rows");
  op.require(limits.max_seqs * args.kv_heads * static_cast<int64_t>(sizeof(uint32_t)) <=
                 kWorkspaceCounterBytes,
             "more than %lld pairs of sequence and KV head",
             static_cast<long long>(kWorkspaceCounterBytes / sizeof(uint32_t)));

  const bool tensor_cores =
      args.dtype == args.kv_dtype && args.dtype != DType::kF32 && args.block_size % 16 == 0;
  CudaKernel decode, prefill;
  if (tensor_cores) {
    decode = attention_decode(shape);
    prefill = choose_prefill(shape);
  }
  if (!decode.launch) return attention_generic(shape);

  CudaKernel both{.launch =
                      [decode = decode.launch, prefill = prefill.launch,
                       splits = plan.step.decode_rows > 0](const CudaLaunch& launch) {
                        if (splits) decode(launch);
                        if (!splits || !launch.bucket.decode_only) prefill(launch);
                      },
                  .workspace_bytes = decode.workspace_bytes,
                  .functions = decode.functions};
  both.functions.insert(both.functions.end(), prefill.functions.begin(), prefill.functions.end());
  return both;
}

}  // namespace nanoweave
