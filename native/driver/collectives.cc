// all_reduce_rms_norm through whole runtimes: values against a float64 reference, all ranks bit for
// bit alike, with late ranks, epochs that wrap, and a dead rank.
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>

#include "driver/checks.h"
#include "driver/session.h"

namespace nanoweave {

namespace {

constexpr int kMaxTokens = 80;
constexpr double kEps = 1e-5;

// [stall →] all_reduce_rms_norm over `parts` parts. Buffers: partial, residual, y, weight.
std::string make_program(int world, int parts, int hidden, const std::string& stall) {
  const int64_t bytes = (int64_t{kMaxTokens} * hidden * 4 + 63) / 64 * 64;
  const auto buffer = [&](const char* name, int64_t offset) {
    return R"({"name":")" + std::string(name) + R"(","space":"arena","dtype":"f32","shape":["T",)" +
           std::to_string(hidden) + R"(],"offset":)" + std::to_string(offset) + "}";
  };
  const std::string shape = std::to_string(hidden);
  std::string json =
      R"({"version":1,"name":"fused","world":)" + std::to_string(world) + R"(,"tp":)" +
      std::to_string(world) + R"(,"parts":)" + std::to_string(parts) + R"(,"arenaBytes":)" +
      std::to_string(3 * bytes) + R"(,"limits":{"maxTokens":)" + std::to_string(kMaxTokens) +
      R"(,"maxRows":0,"maxSeqs":0,"numBlocks":0,"blockSize":0,"maxBlocksPerSeq":0,)"
      R"("vocabSize":8,"numSlots":0},"buffers":[)" +
      buffer("partial", 0) + "," + buffer("residual", bytes) + "," + buffer("y", 2 * bytes) +
      R"(,{"name":"weight","space":"weight","dtype":"f32","layout":"plain","shape":[)" + shape +
      R"(]}],"ops":[)" + stall;
  for (int part = 0; part < parts; ++part) {
    const auto view = [&](int index) {
      return R"({"buffer":)" + std::to_string(index) + R"(,"part":)" + std::to_string(part) + "}";
    };
    if (part > 0 || !stall.empty()) json += ",";
    json += R"({"kind":"all_reduce_rms_norm","label":"fused#)" + std::to_string(part) +
            R"(","lane":"network","inputs":[)" + view(0) + "," + view(1) +
            R"(,{"buffer":3},null],"outputs":[)" + view(2) + "," + view(1) +
            R"(],"attrs":{"eps":1e-5},"waits":[]})";
  }
  return json + "]}";
}

// The weight vector is all zeros in a manifest without pieces; `add`ing is not possible there, so
// the reference has weight 1 only through this file of ones.
std::string make_manifest(int world, int hidden, const std::string& ones_file) {
  const std::string n = std::to_string(hidden);
  const std::string piece = R"([{"file":0,"offset":0,"dtype":"f32","rows":1,"cols":)" + n +
                            R"(,"rowStart":0,"rowCount":1,"colStart":0,"colCount":)" + n +
                            R"(,"destRow":0,"destCol":0}])";
  std::string ranks = piece;
  for (int rank = 1; rank < world; ++rank) ranks += "," + piece;
  return R"({"version":1,"files":[{"path":")" + ones_file + R"(","bytes":)" +
         std::to_string(hidden * 4) +
         R"(}],"buffers":[{"name":"weight","space":"weight","dtype":"f32","shape":[)" + n +
         R"(],"layout":"plain","ranks":[)" + ranks + "]}]}";
}

class WeightFile {
 public:
  explicit WeightFile(int hidden) : path_("/tmp/nanoweave-driver-XXXXXX") {
    const int fd = mkstemp(path_.data());
    expect(fd >= 0, "cannot make a temporary file");
    FILE* file = fdopen(fd, "wb");
    for (int i = 0; i < hidden; ++i) {
      const float value = weight(i);
      std::fwrite(&value, sizeof value, 1, file);
    }
    std::fclose(file);
  }
  ~WeightFile() { std::remove(path_.c_str()); }
  WeightFile(const WeightFile&) = delete;

  const std::string& path() const { return path_; }
  static float weight(int index) { return 0.5f + 0.001f * static_cast<float>(index % 97); }

 private:
  std::string path_;
};

std::vector<uint8_t> to_bytes(const std::vector<float>& values) {
  std::vector<uint8_t> bytes(values.size() * 4);
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

std::vector<float> to_floats(const std::vector<uint8_t>& bytes) {
  std::vector<float> values(bytes.size() / 4);
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

RuntimeConfig make_config(int world, int timeout_ms) {
  return {.devices = std::vector<std::string>(world, "cpu"),
          .tp = world,
          .heap_bytes = 1 << 20,
          .threads_per_rank = 1,
          .wait_timeout_ms = timeout_ms};
}

void check_fused(int world, int parts, int hidden, int num_tokens, const std::string& stall) {
  const WeightFile weights(hidden);
  RuntimeConfig config = make_config(world, 60000);
  config.first_epoch = 0xffffffff - 3;  // wraps within the first ops
  Session session(config);
  session.load_weights(make_manifest(world, hidden, weights.path()));
  const int program = session.load_program(make_program(world, parts, hidden, stall));

  std::mt19937 random(static_cast<uint32_t>(world * 1000 + hidden + num_tokens));
  std::uniform_real_distribution<float> uniform(-1, 1);
  const size_t size = static_cast<size_t>(num_tokens) * hidden;
  std::vector<float> residual(size);
  for (float& value : residual) value = uniform(random);
  std::vector<double> sum(residual.begin(), residual.end());
  for (int rank = 0; rank < world; ++rank) {
    std::vector<float> partial(size);
    for (float& value : partial) value = uniform(random);
    for (size_t i = 0; i < size; ++i) sum[i] += partial[i];
    session.write(program, "partial", rank, to_bytes(partial));
    session.write(program, "residual", rank, to_bytes(residual));
    session.write(program, "y", rank, to_bytes(std::vector<float>(size, NAN)));
  }
  session.submit(program, plain_step(1, num_tokens, parts));

  const std::vector<float> first = to_floats(session.read(program, "y", 0));
  for (int rank = 0; rank < world; ++rank) {
    const std::vector<float> y = to_floats(session.read(program, "y", rank));
    expect(std::memcmp(y.data(), first.data(), size * 4) == 0, "rank %d differs from rank 0", rank);
  }
  for (int row = 0; row < num_tokens; ++row) {
    double squares = 0;
    for (int i = 0; i < hidden; ++i) squares += std::pow(sum[row * hidden + i], 2);
    const double scale = 1 / std::sqrt(squares / hidden + kEps);
    for (int i = 0; i < hidden; ++i) {
      const double wanted = sum[row * hidden + i] * scale * WeightFile::weight(i);
      const double got = first[row * hidden + i];
      expect(std::abs(got - wanted) < 1e-5 * std::max(1.0, std::abs(wanted)),
             "world %d, %d parts, hidden %d, row %d of %d, column %d: %g instead of %g", world,
             parts, hidden, row, num_tokens, i, got, wanted);
    }
  }
  session.close();
}

std::string stall_op(int rank, int ms) {
  return R"({"kind":"stall","label":"stall","lane":"network","inputs":[{"buffer":0}],)"
         R"("outputs":[{"buffer":0}],"attrs":{"rank":)" +
         std::to_string(rank) + R"(,"ms":)" + std::to_string(ms) + R"(},"waits":[]})";
}

void check_dead_rank(int world) {
  constexpr int kHidden = 8, kTimeoutMs = 100;
  const WeightFile weights(kHidden);
  Session session(make_config(world, kTimeoutMs));
  session.load_weights(make_manifest(world, kHidden, weights.path()));
  const int dead = world - 1;
  const int program = session.load_program(make_program(world, 1, kHidden, stall_op(dead, -1)));
  for (int attempt = 0; attempt < 3; ++attempt) {  // poisoned: the same root cause every time
    try {
      session.submit(program, plain_step(5, 8, 1));
      expect(false, "a step succeeded without rank %d", dead);
    } catch (const EngineError& error) {
      expect(error.code == ErrorCode::kRankTimeout && error.rank == dead && error.op == "fused#0" &&
                 error.step == 5,
             "the root cause is %s on rank %d in '%s'", error_code_name(error.code), error.rank,
             error.op.c_str());
    }
  }
  session.close();
}

}  // namespace

void check_collectives() {
  for (int world = 1; world <= 8; ++world) {
    for (const int num_tokens : {1, 3, 7, kMaxTokens})  // kMaxTokens ≥ 8 · world: sharded
      check_fused(world, 1, 24, num_tokens, "");
    check_fused(world, 2, 136, 67, "");
    check_fused(world, 4, 8, 5, stall_op(world / 2, 3));  // a late rank, empty last parts
  }
  for (const int world : {2, 5}) check_dead_rank(world);
  std::printf("collectives: all_reduce_rms_norm over worlds 1..8, late and dead ranks\n");
}

}  // namespace nanoweave
