#include "cuda/nccl.h"

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>

#include "cuda/libraries.h"

#if defined(NANOWEAVE_EMULATION)
#include "cuda/emulation/doubles.h"
#endif

namespace nanoweave {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::microseconds kPollPause{20};

nccl::DataType nccl_type(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return nccl::kFloat32;
    case DType::kBf16:
      return nccl::kBfloat16;
    default:
      CHECK(dtype == DType::kF16);
      return nccl::kFloat16;
  }
}

bool is_enabled(const char* variable) {
  const char* value = std::getenv(variable);
  return value != nullptr && std::strcmp(value, "1") == 0;
}

[[noreturn]] void fail_aborted() {
  fail(ErrorCode::kRankFault,
       "the NCCL communicators were aborted; the runtime must be closed and made anew");
}

}  // namespace

// Never destroyed: runtimes that end with the process still call it.
const NcclLibrary* NcclLibrary::open(std::string& why) {
  static auto& reason = *new std::string;
  static const NcclLibrary* const opened = []() -> const NcclLibrary* {
    try {
      std::optional<SharedLibrary> library = SharedLibrary::open(nccl_search(), reason);
      if (library) return new NcclLibrary(std::move(*library));
    } catch (const EngineError& error) {  // a function is missing
      reason = error.what();
    }
    return nullptr;
  }();
  why = reason;
  return opened;
}

NcclLibrary::NcclLibrary(SharedLibrary opened) : library(std::move(opened)) {
#if defined(NANOWEAVE_EMULATION)
  emulation::join_double(library);
#endif
  const auto bind = [this]<typename Function>(Function*& function, const char* symbol) {
    function = library.function<Function>(symbol);
  };
  bind(get_unique_id, "ncclGetUniqueId");
  bind(comm_init_rank_config, "ncclCommInitRankConfig");
  bind(comm_finalize, "ncclCommFinalize");
  bind(comm_destroy, "ncclCommDestroy");
  bind(comm_abort, "ncclCommAbort");
  bind(comm_get_async_error, "ncclCommGetAsyncError");
  bind(get_error_string, "ncclGetErrorString");
  bind(get_last_error, "ncclGetLastError");
  bind(group_start, "ncclGroupStart");
  bind(group_end, "ncclGroupEnd");
  bind(all_reduce, "ncclAllReduce");
  bind(reduce, "ncclReduce");
  bind(broadcast, "ncclBroadcast");
  bind(reduce_scatter, "ncclReduceScatter");
  bind(all_gather, "ncclAllGather");
  library.function<nccl::GetVersion>("ncclGetVersion")(&version);
}

// ---- Communicators ------------------------------------------------------------------------------

std::string NcclWorld::refuse(const NcclLibrary& library, const NcclOptions& options) {
  const auto world = static_cast<int>(options.devices.size());
  for (int a = 0; a < world; ++a)
    for (int b = a + 1; b < world && b / options.tp == a / options.tp; ++b) {
      if (options.devices[a] != options.devices[b]) continue;
      const std::string ranks = "ranks " + std::to_string(a) + " and " + std::to_string(b) +
                                " of a group share cuda:" + std::to_string(options.devices[a]);
      if (library.version < nccl::kMultiRankVersion)
        return ranks + ", which NCCL " + nccl_version_text(library.version) +
               " cannot do: it takes NCCL 2.30 or newer";
      if (!is_enabled("NCCL_MULTI_RANK_GPU_ENABLE"))
        return ranks + ": NCCL does that only with NCCL_MULTI_RANK_GPU_ENABLE=1 in the environment";
    }
  return {};
}

NcclWorld::NcclWorld(const NcclLibrary& library, NcclOptions options)
    : library_(library), options_(std::move(options)), comms_(options_.devices.size(), nullptr) {
  const std::string refused = refuse(library_, options_);
  if (!refused.empty()) fail(ErrorCode::kUnsupportedLayout, "%s", refused.c_str());
  try {
    connect();
  } catch (...) {
    abort();
    throw;
  }
}

NcclWorld::~NcclWorld() {
  try {
    if (!aborted_) finalize();
  } catch (const EngineError&) {
    abort();  // its cause was told where it arose, or nobody waits for these ranks any more
  }
  const std::unique_lock lock(calls_);
  for (nccl::Comm* comm : comms_)
    if (comm != nullptr) library_.comm_destroy(comm);
}

void NcclWorld::connect() {
  const auto world = static_cast<int>(comms_.size());
  std::vector<nccl::UniqueId> ids(world / options_.tp);
  for (nccl::UniqueId& id : ids) require(library_.get_unique_id(&id), 0, "making a NCCL id");
  nccl::Config config;
  if (options_.max_blocks > 0) config.max_ctas = options_.max_blocks;
  require(library_.group_start(), 0, "opening a NCCL group");
  int first_error = nccl::kSuccess, failed = 0;
  for (int rank = 0; rank < world; ++rank) {
    options_.set_device(options_.devices[rank]);
    const int result = library_.comm_init_rank_config(
        &comms_[rank], options_.tp, ids[rank / options_.tp], rank % options_.tp, &config);
    if (result == nccl::kSuccess || result == nccl::kInProgress || first_error != nccl::kSuccess)
      continue;
    first_error = result;
    failed = rank;
  }
  const int ended = library_.group_end();
  require(first_error, failed, "making a NCCL communicator");
  require(ended, 0, "making NCCL communicators");
  for (int rank = 0; rank < world; ++rank) wait_until_ready(rank, "making a NCCL communicator");
}

// Destroying a communicator that was not finalized would wait for its peers without a deadline.
void NcclWorld::finalize() {
  const auto world = static_cast<int>(comms_.size());
  for (int rank = 0; rank < world; ++rank) {
    options_.set_device(options_.devices[rank]);
    const std::shared_lock lock(calls_);
    if (aborted_) fail_aborted();
    require(library_.comm_finalize(comms_[rank]), rank, "ending a NCCL communicator");
  }
  for (int rank = 0; rank < world; ++rank) wait_until_ready(rank, "ending a NCCL communicator");
}

void NcclWorld::wait_until_ready(int rank, const char* what) {
  const Clock::time_point deadline = Clock::now() + options_.timeout;
  for (;;) {
    nccl::Result state = nccl::kSuccess;
    int result = nccl::kSuccess;
    {
      const std::shared_lock lock(calls_);
      if (aborted_) fail_aborted();
      result = library_.comm_get_async_error(comms_[rank], &state);
    }
    if (result == nccl::kSuccess) result = state;
    if (result == nccl::kSuccess) return;
    if (result != nccl::kInProgress) fail_rank(rank, what, result);
    if (Clock::now() < deadline) {
      std::this_thread::sleep_for(kPollPause);
      continue;
    }
    abort();
    EngineError error(ErrorCode::kRankTimeout,
                      std::string(what) + ": rank " + std::to_string(rank) + " was not ready in " +
                          std::to_string(options_.timeout.count()) +
                          " ms; all communicators were aborted, the runtime must be made anew");
    error.rank = rank;
    throw error;
  }
}

void NcclWorld::require(int result, int rank, const char* what) const {
  if (result == nccl::kSuccess || result == nccl::kInProgress) return;
  EngineError error(ErrorCode::kRankFault, std::string(what) + " failed on rank " +
                                               std::to_string(rank) + ": " +
                                               library_.get_error_string(result) + " (" +
                                               library_.get_last_error(nullptr) + ")");
  error.rank = rank;
  throw error;
}

void NcclWorld::fail_rank(int rank, const char* what, int result) {
  abort();
  require(result, rank, what);
  CHECK(false);  // `result` is an error
}

void NcclWorld::check() {
  for (int rank = 0; rank < static_cast<int>(comms_.size()); ++rank) {
    nccl::Result state = nccl::kSuccess;
    {
      const std::shared_lock lock(calls_);
      if (aborted_) return;  // the cause has been told
      library_.comm_get_async_error(comms_[rank], &state);
    }
    if (state != nccl::kSuccess && state != nccl::kInProgress)
      fail_rank(rank, "a NCCL collective", state);
  }
}

void NcclWorld::abort() noexcept {
  aborted_ = true;
  const std::unique_lock lock(calls_);
  for (nccl::Comm*& comm : comms_)
    if (comm != nullptr) library_.comm_abort(std::exchange(comm, nullptr));
}

// ---- Calls --------------------------------------------------------------------------------------

NcclGroup::NcclGroup(NcclWorld& world, const CudaLaunch& launch)
    : world_(world), launch_(launch), lock_(world.calls_) {
  if (world.aborted_) fail_aborted();
  streams_.push_back(launch.stream);
  for (int index = 1; index < static_cast<int>(launch.ranks.size()); ++index)
    streams_.push_back(world.options_.side_streams.fork(launch.stream, index));
  world.require(world.library_.group_start(), launch.ranks[0].rank, "opening a NCCL group");
}

NcclGroup::~NcclGroup() {
  if (is_open_) world_.library_.group_end();  // a call failed: the error is on its way
}

nccl::Comm* NcclGroup::comm(size_t local) const { return world_.comms_[launch_.ranks[local].rank]; }

void NcclGroup::all_reduce(size_t local, const std::byte* send, std::byte* receive, int64_t count,
                           DType dtype) {
  world_.require(
      world_.library_.all_reduce(send, receive, static_cast<size_t>(count), nccl_type(dtype),
                                 nccl::kSum, comm(local), streams_[local]),
      launch_.ranks[local].rank, "ncclAllReduce");
}

void NcclGroup::reduce(size_t local, const std::byte* send, std::byte* receive, int64_t count,
                       DType dtype, int root) {
  world_.require(world_.library_.reduce(send, receive, static_cast<size_t>(count), nccl_type(dtype),
                                        nccl::kSum, root, comm(local), streams_[local]),
                 launch_.ranks[local].rank, "ncclReduce");
}

void NcclGroup::broadcast(size_t local, const std::byte* send, std::byte* receive, int64_t count,
                          DType dtype, int root) {
  world_.require(world_.library_.broadcast(send, receive, static_cast<size_t>(count),
                                           nccl_type(dtype), root, comm(local), streams_[local]),
                 launch_.ranks[local].rank, "ncclBroadcast");
}

void NcclGroup::reduce_scatter(size_t local, const std::byte* send, std::byte* receive,
                               int64_t receive_count, DType dtype) {
  world_.require(
      world_.library_.reduce_scatter(send, receive, static_cast<size_t>(receive_count),
                                     nccl_type(dtype), nccl::kSum, comm(local), streams_[local]),
      launch_.ranks[local].rank, "ncclReduceScatter");
}

void NcclGroup::all_gather(size_t local, const std::byte* send, std::byte* receive,
                           int64_t send_count, DType dtype) {
  world_.require(world_.library_.all_gather(send, receive, static_cast<size_t>(send_count),
                                            nccl_type(dtype), comm(local), streams_[local]),
                 launch_.ranks[local].rank, "ncclAllGather");
}

void NcclGroup::finish() {
  is_open_ = false;
  world_.require(world_.library_.group_end(), launch_.ranks[0].rank, "a NCCL collective");
  lock_.unlock();
  for (const CudaRank& rank : launch_.ranks)
    world_.wait_until_ready(rank.rank, "enqueuing a NCCL collective");
  for (int index = 1; index < static_cast<int>(streams_.size()); ++index)
    world_.options_.side_streams.join(launch_.stream, index);
}

}  // namespace nanoweave
