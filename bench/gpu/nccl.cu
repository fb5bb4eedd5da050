// Does NCCL put two ranks on one GPU here (NCCL_MULTI_RANK_GPU_ENABLE=1)? A sum of both, checked.
#include <cstdlib>

#include "cuda/libraries.h"
#include "cuda/nccl_abi.h"
#include "probe.h"

namespace probe {

namespace nccl = nanoweave::nccl;

namespace {

constexpr int kRanks = 2;
constexpr size_t kCount = 1 << 20;

class Nccl {
 public:
  explicit Nccl(const nanoweave::SharedLibrary& library) : library_(library) {}

  std::string version() const {
    int version = 0;
    library_.function<nccl::GetVersion>("ncclGetVersion")(&version);
    return nanoweave::nccl_version_text(version);
  }

  // "works", or what went wrong.
  std::string sum_of_two_ranks() const {
    nccl::UniqueId id{};
    check_nccl(library_.function<nccl::GetUniqueId>("ncclGetUniqueId")(&id), "ncclGetUniqueId");
    nccl::Comm* comms[kRanks] = {};
    nccl::Config configs[kRanks];
    const auto group_start = library_.function<nccl::GroupStart>("ncclGroupStart");
    const auto group_end = library_.function<nccl::GroupEnd>("ncclGroupEnd");
    check_nccl(group_start(), "ncclGroupStart");
    for (int rank = 0; rank < kRanks; ++rank)
      check_nccl(library_.function<nccl::CommInitRankConfig>("ncclCommInitRankConfig")(
                     &comms[rank], kRanks, id, rank, &configs[rank]),
                 "ncclCommInitRankConfig");
    check_nccl(group_end(), "ncclCommInitRankConfig");

    cudaStream_t streams[kRanks];
    std::vector<float> ones(kCount, 1.0f), twos(kCount, 2.0f), out(kCount);
    DeviceArray<float> send[kRanks] = {DeviceArray<float>(kCount), DeviceArray<float>(kCount)};
    DeviceArray<float> receive[kRanks] = {DeviceArray<float>(kCount), DeviceArray<float>(kCount)};
    const std::vector<float>* values[kRanks] = {&ones, &twos};
    const size_t bytes = kCount * sizeof(float);
    for (int rank = 0; rank < kRanks; ++rank) {
      check(cudaStreamCreateWithFlags(&streams[rank], cudaStreamNonBlocking), "stream");
      check(cudaMemcpy(send[rank].data(), values[rank]->data(), bytes, cudaMemcpyHostToDevice),
            "write");
    }
    check_nccl(group_start(), "ncclGroupStart");
    for (int rank = 0; rank < kRanks; ++rank)
      check_nccl(library_.function<nccl::AllReduce>("ncclAllReduce")(
                     send[rank].data(), receive[rank].data(), kCount, nccl::kFloat32, nccl::kSum,
                     comms[rank], streams[rank]),
                 "ncclAllReduce");
    check_nccl(group_end(), "ncclAllReduce");
    for (int rank = 0; rank < kRanks; ++rank) {
      check(cudaStreamSynchronize(streams[rank]), "ncclAllReduce");
      check(cudaMemcpy(out.data(), receive[rank].data(), bytes, cudaMemcpyDeviceToHost), "read");
      for (const float value : out)
        if (value != 3.0f) return "runs, but the sum is wrong";
    }
    return "works";
  }

 private:
  void check_nccl(int result, const char* what) const {
    if (result == nccl::kSuccess) return;
    throw std::runtime_error(
        std::string(what) + ": " +
        library_.function<nccl::GetErrorString>("ncclGetErrorString")(result));
  }

  nanoweave::SharedLibrary library_;
};

}  // namespace

void print_nccl_facts() {
  setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1", 1);
  std::string why;
  const auto library = nanoweave::SharedLibrary::open(nanoweave::nccl_search(), why);
  if (!library) {
    std::printf("{\"version\": null, \"twoRanksOneGpu\": %s}\n", quoted(why).c_str());
    return;
  }
  const Nccl nccl(*library);
  std::string outcome;
  try {
    outcome = nccl.sum_of_two_ranks();
  } catch (const std::exception& error) {
    outcome = error.what();
  }
  std::printf("{\"version\": %s, \"twoRanksOneGpu\": %s}\n", quoted(nccl.version()).c_str(),
              quoted(outcome).c_str());
}

}  // namespace probe
