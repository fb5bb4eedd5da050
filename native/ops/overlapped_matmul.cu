// matmul_all_reduce, matmul_reduce_scatter, all_gather_matmul: a matmul and a collective over
// groups of rows (comm/protocol.h), each a launch of its own. The matmul keeps its lane; the
// collective runs in the network lane on few blocks, and events order them group by group: of a
// sum, the collective of a group follows its matmul and runs beside the next; of a gather, the
// matmul of a group follows its collective. No kernel waits for one that is launched after it. The
// matmul's persistent kernels and cuBLASLt leave the collective's multiprocessors free.
//
// Bytes and flops are those of the two ops; W is read once per group.
#include <algorithm>

#include "cuda/comm.cuh"
#include "ops/overlapped.cuh"

namespace nanoweave {

namespace {

struct Overlapped {
  std::vector<CudaKernel> matmuls, moves;  // by group
  bool gathers = false;                    // the collective comes first
};

// in[0], in[1], in[2] and the product's buffer.
CudaOperands matmul_operands(const Overlapped& op, const CudaOperands& at) {
  CudaOperands operands = at;
  operands.out = {op.gathers ? at.out[1] : at.out[0]};
  return operands;
}

// A sum is from partial to y; a gather works on x in place.
CudaOperands move_operands(const Overlapped& op, const CudaOperands& at) {
  CudaOperands operands;
  operands.in = {at.out[0]};
  operands.out = {op.gathers ? at.out[0] : at.out[1]};
  return operands;
}

using LocalOperands = std::array<CudaOperands, kMaxRanks>;

CudaLaunch move_launch(const Overlapped& op, const CudaLaunch& launch, LocalOperands& operands) {
  for (size_t i = 0; i < launch.operands.size(); ++i)
    operands[i] = move_operands(op, launch.operands[i]);
  CudaLaunch move = launch;
  move.operands = {operands.data(), launch.operands.size()};
  move.few_blocks = launch.few_blocks || op.moves.size() > 1;
  if (launch.network == nullptr) return move;
  move.stream = launch.network->stream;
  move.comm_slot = launch.network->comm_slot;
  move.sm_budget = launch.network->sm_budget;
  return move;
}

CudaLaunch matmul_launch(const Overlapped& op, const CudaLaunch& launch, LocalOperands& operands) {
  for (size_t i = 0; i < launch.operands.size(); ++i)
    operands[i] = matmul_operands(op, launch.operands[i]);
  CudaLaunch product = launch;
  product.operands = {operands.data(), launch.operands.size()};
  if (launch.network != nullptr && op.moves.size() > 1) {
    const int held = std::min(launch.network->sm_budget, launch.few * launch.max_local_ranks);
    const int left = std::max(1, launch.device.sm_count - held);
    product.sm_budget = std::min(product.sm_budget, left);
  }
  return product;
}

void launch_overlapped(const Overlapped& op, const CudaLaunch& launch) {
  LocalOperands move_at, matmul_at;
  const CudaLaunch move = move_launch(op, launch, move_at);
  const CudaLaunch product = matmul_launch(op, launch, matmul_at);
  const NetworkLane* network = launch.network;
  const auto network_follows = [&] {
    if (network != nullptr) network->follow(launch.stream);
  };
  const auto network_leads = [&] {
    if (network != nullptr) network->lead(launch.stream);
  };
  if (op.gathers) network_follows();
  for (size_t group = 0; group < op.moves.size(); ++group) {
    if (op.gathers) {
      op.moves[group].launch(move);
      network_leads();
      op.matmuls[group].launch(product);
    } else {
      op.matmuls[group].launch(product);
      network_follows();
      op.moves[group].launch(move);
    }
  }
  if (!op.gathers) network_leads();
}

CudaKernel overlapped_kernel(Overlapped op) {
  std::vector<CudaFunction> functions;
  for (const auto* kernels : {&op.matmuls, &op.moves})
    for (const CudaKernel& kernel : *kernels)
      functions.insert(functions.end(), kernel.functions.begin(), kernel.functions.end());
  return {.launch = [op](const CudaLaunch& launch) { launch_overlapped(op, launch); },
          .workspace_bytes =
              [op](const CudaDevice& device, const CudaBucket& bucket) {
                int64_t most = 0;
                for (const CudaKernel& matmul : op.matmuls)
                  if (matmul.workspace_bytes)
                    most = std::max(most, matmul.workspace_bytes(device, bucket));
                return most;
              },
          .functions = std::move(functions),
          .plan =
              [op](const CudaLaunch& launch) {
                LocalOperands operands;
                return op.moves[0].plan(move_launch(op, launch, operands));
              },
          .uses_network_lane = true};
}

CudaKernel prepare_sum(const OpInstance& op, const CudaPlan& plan, bool scatter) {
  const BufferDesc& partial = op.output(0);
  const auto groups = static_cast<int>(op.integer("groups"));
  Overlapped made;
  for (int group = 0; group < groups; ++group) {
    const int32_t which = group_of_rows(which_rows(partial, op.op.part()), groups, group);
    made.matmuls.push_back(cuda_matmul(op, plan, partial, which));
    made.moves.push_back(cuda_sum(op, plan, partial, op.output(1), which, scatter));
  }
  return overlapped_kernel(std::move(made));
}

}  // namespace

CudaKernel prepare_cuda_matmul_all_reduce(const OpInstance& op, const CudaPlan& plan) {
  return prepare_sum(op, plan, false);
}

CudaKernel prepare_cuda_matmul_reduce_scatter(const OpInstance& op, const CudaPlan& plan) {
  return prepare_sum(op, plan, true);
}

CudaKernel prepare_cuda_all_gather_matmul(const OpInstance& op, const CudaPlan& plan) {
  const BufferDesc& x = op.output(0);
  const auto groups = static_cast<int>(op.integer("groups"));
  Overlapped made{.matmuls = {}, .moves = {}, .gathers = true};
  for (int group = 0; group < groups; ++group) {
    const int32_t which = group_of_rows(which_rows(x, op.op.part()), groups, group);
    made.matmuls.push_back(cuda_matmul(op, plan, op.output(1), which));
    made.moves.push_back(cuda_gather_rows(op, plan, x, which, 1));
  }
  return overlapped_kernel(std::move(made));
}

}  // namespace nanoweave
