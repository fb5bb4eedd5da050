// The halves of the ops that overlap a matmul with a collective, as kernels over some rows of the
// op: what matmul, all_reduce, reduce_scatter and all_gather_rows are on CUDA.
#pragma once

#include "cuda/op.h"

namespace nanoweave {

// y = in[0]·in[1]ᵀ + in[2], to out[0].
CudaKernel cuda_matmul(const OpInstance& op, const CudaPlan& plan, const BufferDesc& y,
                       int32_t which);
// out[0] = Σ over the group of in[0], on every rank, or (scatter) the rows each owns. y may be f32
// where x is not: then sums are not rounded.
CudaKernel cuda_sum(const OpInstance& op, const CudaPlan& plan, const BufferDesc& x,
                    const BufferDesc& y, int32_t which, bool scatter);
// The rows of out[0] that a rank owns, of each of `groups`, go to all.
CudaKernel cuda_gather_rows(const OpInstance& op, const CudaPlan& plan, const BufferDesc& x,
                            int32_t which, int groups);

}  // namespace nanoweave
