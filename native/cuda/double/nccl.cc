// A double of NCCL for machines without GPUs: the functions of nccl_abi.h over host memory, as a
// library that is opened like the real one. Ranks meet in the order of their streams, as on a
// device, so a missing call, another order or another count shows as a hang or an error. It writes
// down every call, and can be told to misbehave:
//
//   nanoweave_double_streams(enqueue)   how to run something in a stream; needed before any
//   collective nanoweave_double_fault(what, rank)  "none"; "hang": its collectives never start;
//   "error": its
//                                       communicator fails at one; "error now": fails at once;
//                                       "init": it never becomes ready; "finalize": it never ends
//   nanoweave_double_version(version)
//   nanoweave_double_log()              the calls since the last time, a line each
#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "cuda/double/streams.h"
#include "cuda/nccl_abi.h"

namespace nanoweave::doubles {

using namespace nccl;

enum class Kind { kAllReduce, kReduce, kBroadcast, kReduceScatter, kAllGather };

struct Call {
  Kind kind;
  const void* send;
  void* receive;
  size_t count;
  DataType type;
  int root;
  Comm* comm;
  void* stream;
};

// A collective under way: the calls of the ranks that have come to it, in their streams.
struct Meeting {
  std::vector<const Call*> calls;
  int arrived = 0;
  int left = 0;
  bool done = false;
  bool mismatched = false;
};

struct Clique {
  int ranks = 0;
  int members = 0;
  std::map<uint64_t, Meeting> meetings;  // by number of the collective
};

std::mutex mutex;  // guards all below
std::map<std::string, std::shared_ptr<Clique>> cliques;
std::string log_text, log_taken, fault = "none";
int fault_rank = -1;
int version_code = 23007;
int next_id = 1;
Enqueue enqueue = nullptr;
std::vector<std::unique_ptr<Call>> calls_kept;  // captured streams run them again

thread_local int group_depth = 0;
thread_local std::vector<Call> grouped;

void write(const std::string& line) { log_text += line + "\n"; }

}  // namespace nanoweave::doubles

namespace nanoweave::nccl {

struct Comm {
  std::shared_ptr<doubles::Clique> clique;
  int rank = 0;
  uint64_t executed = 0;  // collectives its streams have come to
  bool failed = false;
  bool finalized = false;
  std::atomic<bool> aborted{false};
};

}  // namespace nanoweave::nccl

namespace nanoweave::doubles {

namespace {

const char* kind_name(Kind kind) {
  constexpr const char* kNames[] = {"all_reduce", "reduce", "broadcast", "reduce_scatter",
                                    "all_gather"};
  return kNames[static_cast<int>(kind)];
}

size_t bytes_of(DataType type) { return type == kFloat32 ? 4 : 2; }

float load(const void* from, DataType type, size_t i) {
  if (type == kFloat32) return static_cast<const float*>(from)[i];
  if (type == kBfloat16) return to_float(static_cast<const bf16*>(from)[i]);
  return to_float(static_cast<const f16*>(from)[i]);
}

void store(void* to, DataType type, size_t i, float value) {
  if (type == kFloat32)
    static_cast<float*>(to)[i] = value;
  else if (type == kBfloat16)
    static_cast<bf16*>(to)[i] = to_bf16(value);
  else
    static_cast<f16*>(to)[i] = to_f16(value);
}

// Sums go around the ring from the rank that owns the piece on: not in rank order, as with NCCL.
std::vector<float> sum(const Meeting& meeting, size_t begin, size_t count, int first) {
  std::vector<float> total(count, 0.0f);
  const size_t ranks = meeting.calls.size();
  for (size_t step = 0; step < ranks; ++step) {
    const Call& call = *meeting.calls[(static_cast<size_t>(first) + step) % ranks];
    for (size_t i = 0; i < count; ++i) total[i] += load(call.send, call.type, begin + i);
  }
  return total;
}

void store_all(const Call& call, size_t at, const std::vector<float>& values) {
  for (size_t i = 0; i < values.size(); ++i) store(call.receive, call.type, at + i, values[i]);
}

void do_all_reduce(Meeting& meeting) {
  const std::vector<float> total = sum(meeting, 0, meeting.calls[0]->count, 1);
  for (const Call* call : meeting.calls) store_all(*call, 0, total);
}

void do_reduce(Meeting& meeting) {
  const Call& first = *meeting.calls[0];
  const std::vector<float> total = sum(meeting, 0, first.count, first.root);
  store_all(*meeting.calls[first.root], 0, total);
}

void do_reduce_scatter(Meeting& meeting) {
  const size_t count = meeting.calls[0]->count;
  std::vector<std::vector<float>> totals;
  for (size_t rank = 0; rank < meeting.calls.size(); ++rank)
    totals.push_back(sum(meeting, rank * count, count, static_cast<int>(rank)));
  for (size_t rank = 0; rank < meeting.calls.size(); ++rank)
    store_all(*meeting.calls[rank], 0, totals[rank]);
}

void do_broadcast(Meeting& meeting) {
  const Call& root = *meeting.calls[meeting.calls[0]->root];
  for (const Call* call : meeting.calls)
    if (call->receive != root.send)
      std::memmove(call->receive, root.send, root.count * bytes_of(root.type));
}

void do_all_gather(Meeting& meeting) {
  const size_t bytes = meeting.calls[0]->count * bytes_of(meeting.calls[0]->type);
  for (const Call* to : meeting.calls)
    for (size_t rank = 0; rank < meeting.calls.size(); ++rank) {
      std::byte* place = static_cast<std::byte*>(to->receive) + rank * bytes;
      if (place != meeting.calls[rank]->send) std::memmove(place, meeting.calls[rank]->send, bytes);
    }
}

void carry_out(Meeting& meeting) {
  switch (meeting.calls[0]->kind) {
    case Kind::kAllReduce:
      return do_all_reduce(meeting);
    case Kind::kReduce:
      return do_reduce(meeting);
    case Kind::kBroadcast:
      return do_broadcast(meeting);
    case Kind::kReduceScatter:
      return do_reduce_scatter(meeting);
    case Kind::kAllGather:
      return do_all_gather(meeting);
  }
}

bool agree(const Call& a, const Call& b) {
  return a.kind == b.kind && a.count == b.count && a.type == b.type && a.root == b.root;
}

// In the stream of a call: comes to the meeting, and leaves once all have come. Ranks that disagree
// never end, as on a device; their communicators say so.
bool attend(void* pointer, uint64_t* state) {
  const auto& call = *static_cast<const Call*>(pointer);
  const std::lock_guard lock(mutex);
  Comm& comm = *call.comm;
  if (comm.aborted) return true;
  if (fault == "hang" && comm.rank == fault_rank) return false;
  if (fault == "error" && comm.rank == fault_rank) comm.failed = true;
  if (comm.failed) return false;
  Clique& clique = *comm.clique;
  if (*state == 0) {
    *state = ++comm.executed;
    Meeting& meeting = clique.meetings[*state];
    meeting.calls.resize(static_cast<size_t>(clique.ranks));
    meeting.calls[comm.rank] = &call;
    ++meeting.arrived;
  }
  Meeting& meeting = clique.meetings[*state];
  if (meeting.arrived < clique.ranks) return false;
  if (!meeting.done) {
    for (const Call* other : meeting.calls) meeting.mismatched |= !agree(*other, call);
    if (!meeting.mismatched) carry_out(meeting);
    meeting.done = true;
  }
  if (meeting.mismatched) {
    comm.failed = true;
    return false;
  }
  if (++meeting.left == clique.ranks) clique.meetings.erase(*state);
  return true;
}

void start(const Call& call) {
  calls_kept.push_back(std::make_unique<Call>(call));
  std::ostringstream line;
  line << kind_name(call.kind) << " rank " << call.comm->rank << " count " << call.count << " type "
       << call.type;
  if (call.root >= 0) line << " root " << call.root;
  write(line.str());
  enqueue(call.stream, attend, calls_kept.back().get());
}

int take(const Call& call) {
  if (call.comm == nullptr) return kInvalidArgument;
  if (call.comm->aborted) return kInvalidUsage;
  if (group_depth > 0) {
    grouped.push_back(call);
    return kSuccess;
  }
  const std::lock_guard lock(mutex);
  start(call);
  return kSuccess;
}

}  // namespace

}  // namespace nanoweave::doubles

using namespace nanoweave;
using namespace nanoweave::doubles;
using nanoweave::nccl::Comm;

// ---- Control ------------------------------------------------------------------------------------

NANOWEAVE_DOUBLE_EXPORT void nanoweave_double_streams(Enqueue given) {
  const std::lock_guard lock(mutex);
  enqueue = given;
}

NANOWEAVE_DOUBLE_EXPORT void nanoweave_double_fault(const char* what, int rank) {
  const std::lock_guard lock(mutex);
  fault = what;
  fault_rank = rank;
}

NANOWEAVE_DOUBLE_EXPORT void nanoweave_double_version(int version) {
  const std::lock_guard lock(mutex);
  version_code = version;
}

NANOWEAVE_DOUBLE_EXPORT const char* nanoweave_double_log() {
  const std::lock_guard lock(mutex);
  log_taken = std::move(log_text);
  log_text.clear();
  return log_taken.c_str();
}

// ---- NCCL ---------------------------------------------------------------------------------------

NANOWEAVE_DOUBLE_EXPORT int ncclGetVersion(int* version) {
  const std::lock_guard lock(mutex);
  *version = version_code;
  return nccl::kSuccess;
}

NANOWEAVE_DOUBLE_EXPORT const char* ncclGetErrorString(int result) {
  return result == nccl::kRemoteError ? "remote error" : "an error";
}

NANOWEAVE_DOUBLE_EXPORT const char* ncclGetLastError(Comm*) { return "told by the double"; }

NANOWEAVE_DOUBLE_EXPORT int ncclGetUniqueId(nccl::UniqueId* id) {
  const std::lock_guard lock(mutex);
  std::memset(id->bytes, 0, sizeof id->bytes);
  const std::string text = "id " + std::to_string(next_id++);
  std::memcpy(id->bytes, text.data(), text.size());
  return nccl::kSuccess;
}

NANOWEAVE_DOUBLE_EXPORT int ncclCommInitRankConfig(Comm** comm, int ranks, nccl::UniqueId id,
                                                   int rank, nccl::Config* config) {
  const std::lock_guard lock(mutex);
  if (config->magic != nccl::kApiMagic || config->blocking != 0 || rank < 0 || rank >= ranks)
    return nccl::kInvalidArgument;
  std::shared_ptr<Clique>& clique = cliques[id.bytes];
  if (clique == nullptr) clique = std::make_shared<Clique>();
  clique->ranks = ranks;
  ++clique->members;
  *comm = new Comm;
  (*comm)->clique = clique;
  (*comm)->rank = rank;
  write("init rank " + std::to_string(rank) + " of " + std::to_string(ranks));
  return group_depth > 0 ? nccl::kSuccess : nccl::kInProgress;
}

NANOWEAVE_DOUBLE_EXPORT int ncclCommGetAsyncError(Comm* comm, nccl::Result* error) {
  const std::lock_guard lock(mutex);
  const bool never =
      comm->rank == fault_rank && (fault == "init" || (fault == "finalize" && comm->finalized));
  const bool is_ready = comm->clique->members == comm->clique->ranks && !never;
  if (fault == "error now" && comm->rank == fault_rank) comm->failed = true;
  *error = comm->failed ? nccl::kRemoteError : is_ready ? nccl::kSuccess : nccl::kInProgress;
  return nccl::kSuccess;
}

NANOWEAVE_DOUBLE_EXPORT int ncclCommFinalize(Comm* comm) {
  const std::lock_guard lock(mutex);
  write("finalize rank " + std::to_string(comm->rank));
  comm->finalized = true;
  return nccl::kInProgress;
}

// Communicators stay in memory: streams may still hold their calls. The real one would wait for
// peers here, had the communicator not been finalized.
NANOWEAVE_DOUBLE_EXPORT int ncclCommDestroy(Comm* comm) {
  const std::lock_guard lock(mutex);
  if (!comm->finalized) return nccl::kInvalidUsage;
  write("destroy rank " + std::to_string(comm->rank));
  return nccl::kSuccess;
}

NANOWEAVE_DOUBLE_EXPORT int ncclCommAbort(Comm* comm) {
  const std::lock_guard lock(mutex);
  write("abort rank " + std::to_string(comm->rank));
  comm->aborted = true;
  return nccl::kSuccess;
}

NANOWEAVE_DOUBLE_EXPORT int ncclGroupStart() {
  ++group_depth;
  return nccl::kSuccess;
}

NANOWEAVE_DOUBLE_EXPORT int ncclGroupEnd() {
  if (--group_depth > 0) return nccl::kSuccess;
  const std::lock_guard lock(mutex);
  for (const Call& call : grouped) start(call);
  grouped.clear();
  return nccl::kInProgress;
}

NANOWEAVE_DOUBLE_EXPORT int ncclAllReduce(const void* send, void* receive, size_t count,
                                          nccl::DataType type, nccl::RedOp, Comm* comm,
                                          void* stream) {
  return take({Kind::kAllReduce, send, receive, count, type, -1, comm, stream});
}

NANOWEAVE_DOUBLE_EXPORT int ncclReduce(const void* send, void* receive, size_t count,
                                       nccl::DataType type, nccl::RedOp, int root, Comm* comm,
                                       void* stream) {
  return take({Kind::kReduce, send, receive, count, type, root, comm, stream});
}

NANOWEAVE_DOUBLE_EXPORT int ncclBroadcast(const void* send, void* receive, size_t count,
                                          nccl::DataType type, int root, Comm* comm, void* stream) {
  return take({Kind::kBroadcast, send, receive, count, type, root, comm, stream});
}

NANOWEAVE_DOUBLE_EXPORT int ncclReduceScatter(const void* send, void* receive, size_t count,
                                              nccl::DataType type, nccl::RedOp, Comm* comm,
                                              void* stream) {
  return take({Kind::kReduceScatter, send, receive, count, type, -1, comm, stream});
}

NANOWEAVE_DOUBLE_EXPORT int ncclAllGather(const void* send, void* receive, size_t count,
                                          nccl::DataType type, Comm* comm, void* stream) {
  return take({Kind::kAllGather, send, receive, count, type, -1, comm, stream});
}
