// Compiles only if nccl_abi.h agrees with the nccl.h that the compiler finds. Without one there is
// nothing to compare.
#include "cuda/nccl_abi.h"

#if __has_include(<nccl.h>)
#include <nccl.h>

#include "cuda/abi_check/same_abi.h"

namespace nanoweave::nccl {

static_assert(sizeof(UniqueId) == sizeof(ncclUniqueId));
static_assert(int{kSuccess} == ncclSuccess && int{kInProgress} == ncclInProgress);
static_assert(int{kInvalidArgument} == ncclInvalidArgument);
static_assert(int{kInvalidUsage} == ncclInvalidUsage && int{kRemoteError} == ncclRemoteError);
static_assert(sizeof(Result) == sizeof(ncclResult_t));
static_assert(int{kFloat16} == ncclFloat16 && int{kFloat32} == ncclFloat32);
static_assert(int{kBfloat16} == ncclBfloat16);
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 24, 0)
static_assert(int{kFloat8e4m3} == ncclFloat8e4m3 && int{kFloat8e5m2} == ncclFloat8e5m2);
#endif
static_assert(sizeof(DataType) == sizeof(ncclDataType_t));
static_assert(int{kSum} == ncclSum && sizeof(RedOp) == sizeof(ncclRedOp_t));
static_assert(kUndefined == NCCL_CONFIG_UNDEF_INT && kApiMagic == NCCL_API_MAGIC);

// Config is a prefix of ncclConfig_t.
static_assert(sizeof(Config) <= sizeof(ncclConfig_t));
#define SAME_PLACE(ours, theirs) \
  static_assert(offsetof(Config, ours) == offsetof(ncclConfig_t, theirs))
SAME_PLACE(size, size);
SAME_PLACE(magic, magic);
SAME_PLACE(version, version);
SAME_PLACE(blocking, blocking);
SAME_PLACE(cga_cluster_size, cgaClusterSize);
SAME_PLACE(min_ctas, minCTAs);
SAME_PLACE(max_ctas, maxCTAs);
SAME_PLACE(net_name, netName);
#undef SAME_PLACE

static_assert(SameAbi<GetVersion, decltype(ncclGetVersion)>::value);
static_assert(SameAbi<GetUniqueId, decltype(ncclGetUniqueId)>::value);
static_assert(SameAbi<CommInitRankConfig, decltype(ncclCommInitRankConfig)>::value);
static_assert(SameAbi<CommFinalize, decltype(ncclCommFinalize)>::value);
static_assert(SameAbi<CommDestroy, decltype(ncclCommDestroy)>::value);
static_assert(SameAbi<CommAbort, decltype(ncclCommAbort)>::value);
static_assert(SameAbi<CommGetAsyncError, decltype(ncclCommGetAsyncError)>::value);
static_assert(SameAbi<GetErrorString, decltype(ncclGetErrorString)>::value);
static_assert(SameAbi<GetLastError, decltype(ncclGetLastError)>::value);
static_assert(SameAbi<GroupStart, decltype(ncclGroupStart)>::value);
static_assert(SameAbi<GroupEnd, decltype(ncclGroupEnd)>::value);
static_assert(SameAbi<AllReduce, decltype(ncclAllReduce)>::value);
static_assert(SameAbi<Reduce, decltype(ncclReduce)>::value);
static_assert(SameAbi<Broadcast, decltype(ncclBroadcast)>::value);
static_assert(SameAbi<ReduceScatter, decltype(ncclReduceScatter)>::value);
static_assert(SameAbi<AllGather, decltype(ncclAllGather)>::value);

}  // namespace nanoweave::nccl
#endif
