// NCCL: the library, opened at run time, and the communicators of a world. Communicators do not
// block: whoever waits for one polls it against our own deadline, and when that has passed, or one
// of them has failed, all are aborted. What runs on the device is watched by the backend, which
// calls check() while it waits for a step and abort() when the step is overdue.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <shared_mutex>
#include <span>
#include <string>
#include <vector>

#include "core/shared_library.h"
#include "cuda/nccl_abi.h"
#include "cuda/op.h"

namespace nanoweave {

// Loaded once in a process and never unloaded.
struct NcclLibrary {
  // Null: `why` says what is missing and what to do.
  static const NcclLibrary* open(std::string& why);

  explicit NcclLibrary(SharedLibrary library);

  SharedLibrary library;
  int version = 0;
  nccl::GetUniqueId* get_unique_id;
  nccl::CommInitRankConfig* comm_init_rank_config;
  nccl::CommFinalize* comm_finalize;
  nccl::CommDestroy* comm_destroy;
  nccl::CommAbort* comm_abort;
  nccl::CommGetAsyncError* comm_get_async_error;
  nccl::GetErrorString* get_error_string;
  nccl::GetLastError* get_last_error;
  nccl::GroupStart* group_start;
  nccl::GroupEnd* group_end;
  nccl::AllReduce* all_reduce;
  nccl::Reduce* reduce;
  nccl::Broadcast* broadcast;
  nccl::ReduceScatter* reduce_scatter;
  nccl::AllGather* all_gather;
};

// Streams beside a lane's: the ranks of one device need a stream each, or the first would wait for
// the second for ever.
struct SideStreams {
  // Stream `index` (1, 2, …), which waits for what the lane has been given so far.
  std::function<CudaStream(CudaStream lane, int index)> fork;
  // The lane waits for what stream `index` has been given so far.
  std::function<void(CudaStream lane, int index)> join;
};

struct NcclOptions {
  int tp = 1;
  std::vector<int> devices;  // [world] ordinals
  std::chrono::milliseconds timeout{30000};
  int max_blocks = 0;  // of one collective; 0: as NCCL likes
  std::function<void(int device)> set_device;
  SideStreams side_streams;
};

class NcclWorld {
 public:
  // Why these ranks cannot have communicators; empty: they can.
  static std::string refuse(const NcclLibrary& library, const NcclOptions& options);

  // Makes a communicator for every rank, all in one group; ERR_RANK_TIMEOUT past the deadline.
  NcclWorld(const NcclLibrary& library, NcclOptions options);
  // Ends what the communicators have under way; past the deadline they are aborted.
  ~NcclWorld();
  NcclWorld(const NcclWorld&) = delete;
  NcclWorld& operator=(const NcclWorld&) = delete;

  // Any thread. ERR_RANK_FAULT names the first rank whose communicator has failed; all are aborted.
  void check();
  // Any thread, more than once: kernels of all ranks leave, later calls throw.
  void abort() noexcept;

 private:
  friend class NcclGroup;

  void connect();
  void finalize();
  void wait_until_ready(int rank, const char* what);
  void require(int result, int rank, const char* what) const;
  [[noreturn]] void fail_rank(int rank, const char* what, int result);

  const NcclLibrary& library_;
  const NcclOptions options_;
  std::vector<nccl::Comm*> comms_;  // [world]
  std::shared_mutex calls_;  // shared: a call is under way; alone: communicators are being freed
  std::atomic<bool> aborted_{false};
};

// The calls of one device's ranks that make one collective: opened, filled with calls for every
// local rank, and finished. Device thread only.
class NcclGroup {
 public:
  NcclGroup(NcclWorld& world, const CudaLaunch& launch);
  ~NcclGroup();
  NcclGroup(const NcclGroup&) = delete;
  NcclGroup& operator=(const NcclGroup&) = delete;

  // `local`: index in launch.ranks; counts are elements; roots are ranks of the group.
  void all_reduce(size_t local, const std::byte* send, std::byte* receive, int64_t count,
                  DType dtype);
  void reduce(size_t local, const std::byte* send, std::byte* receive, int64_t count, DType dtype,
              int root);
  void broadcast(size_t local, const std::byte* send, std::byte* receive, int64_t count,
                 DType dtype, int root);
  void reduce_scatter(size_t local, const std::byte* send, std::byte* receive,
                      int64_t receive_count, DType dtype);
  void all_gather(size_t local, const std::byte* send, std::byte* receive, int64_t send_count,
                  DType dtype);

  // Returns when all calls are in their streams.
  void finish();

 private:
  nccl::Comm* comm(size_t local) const;

  NcclWorld& world_;
  const CudaLaunch& launch_;
  std::shared_lock<std::shared_mutex> lock_;
  std::vector<CudaStream> streams_;  // by local rank
  bool is_open_ = true;
};

}  // namespace nanoweave
