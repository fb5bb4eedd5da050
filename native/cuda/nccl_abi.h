// The part of NCCL's binary interface that is used, declared here so that no header is needed to
// build. cuda/abi_check/nccl.cc compares it with the real nccl.h.
#pragma once

#include <climits>
#include <cstddef>

namespace nanoweave::nccl {

struct Comm;  // ncclComm

struct UniqueId {
  char bytes[128];
};

enum Result : int {
  kSuccess = 0,
  kInvalidArgument = 4,
  kInvalidUsage = 5,
  kRemoteError = 6,
  kInProgress = 7,
};

enum DataType : int {
  kFloat16 = 6,
  kFloat32 = 7,
  kBfloat16 = 9,
  kFloat8e4m3 = 10,
  kFloat8e5m2 = 11,
};

enum RedOp : int { kSum = 0 };

inline constexpr int kUndefined = INT_MIN;
inline constexpr unsigned kApiMagic = 0xcafebeef;
// Several ranks of a communicator on one device, with NCCL_MULTI_RANK_GPU_ENABLE=1.
inline constexpr int kMultiRankVersion = 23000;

// ncclConfig_t as of 2.17. Libraries take `size` bytes of it and their defaults for the rest.
struct Config {
  size_t size = sizeof(Config);
  unsigned magic = kApiMagic;
  unsigned version = 21700;
  int blocking = 0;
  int cga_cluster_size = kUndefined;
  int min_ctas = kUndefined;
  int max_ctas = kUndefined;
  const char* net_name = nullptr;
};

using GetVersion = int(int* version);
using GetUniqueId = int(UniqueId* id);
using CommInitRankConfig = int(Comm** comm, int ranks, UniqueId id, int rank, Config* config);
using CommFinalize = int(Comm* comm);
using CommDestroy = int(Comm* comm);
using CommAbort = int(Comm* comm);
using CommGetAsyncError = int(Comm* comm, Result* error);
using GetErrorString = const char*(int result);
using GetLastError = const char*(Comm* comm);
using GroupStart = int();
using GroupEnd = int();
// Streams are cudaStream_t.
using AllReduce = int(const void* send, void* receive, size_t count, DataType type, RedOp op,
                      Comm* comm, void* stream);
using Reduce = int(const void* send, void* receive, size_t count, DataType type, RedOp op, int root,
                   Comm* comm, void* stream);
using Broadcast = int(const void* send, void* receive, size_t count, DataType type, int root,
                      Comm* comm, void* stream);
using ReduceScatter = int(const void* send, void* receive, size_t receive_count, DataType type,
                          RedOp op, Comm* comm, void* stream);
using AllGather = int(const void* send, void* receive, size_t send_count, DataType type, Comm* comm,
                      void* stream);

}  // namespace nanoweave::nccl
