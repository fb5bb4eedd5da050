// Block barriers, copies of boxes and warpgroup products of the emulated GPU.
#include "cuda/emulation/async_proxy.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "cuda/numeric.cuh"

namespace nanoweave::emulation {

namespace {

constexpr uint32_t kWindowBytes = 256 << 10;  // what a descriptor's address field reaches

// The XOR of a swizzle by 128 bytes: 16-byte pieces within a row of 128, by the row of eight.
uint32_t swizzle128(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

// ---- Block barriers -----------------------------------------------------------------------------

// An mbarrier object: counts of arrivals, bytes that copies still owe, completed phases modulo 2.
struct BarrierState {
  uint64_t expected : 20, pending : 20;
  int64_t owed_bytes : 21;
  uint64_t phase : 1, valid : 2;
};
static_assert(sizeof(BarrierState) == 8);
constexpr unsigned kValid = 2;  // poisoned memory has 3
constexpr int64_t kMaxBytes = (1 << 20) - 1;

int lost_every = 0;  // boxes; the machine's thread, and checks while it rests
int boxes_started = 0;

BarrierState load_barrier(const std::byte* barrier, const Where& where) {
  Machine& machine = Machine::instance();
  if (reinterpret_cast<uintptr_t>(barrier) % 8 != 0)
    machine.fail("a block barrier that is not aligned to 8 bytes", where);
  shared_address(barrier);
  BarrierState state;
  std::memcpy(&state, barrier, sizeof state);
  if (state.valid != kValid) machine.fail("a block barrier that was not initialised", where);
  return state;
}

void store_barrier(std::byte* barrier, BarrierState state) {
  if (state.pending == 0 && state.owed_bytes == 0) {
    state.phase ^= 1;
    state.pending = state.expected;
    std::vector<Thread*>& waiting = async_proxy().waiting[barrier];
    for (Thread* thread : waiting) Machine::instance().wake(thread);
    waiting.clear();
  }
  std::memcpy(barrier, &state, sizeof state);
}

// ---- Copies -------------------------------------------------------------------------------------

// Element of the tensor at a box's element, or null outside.
const std::byte* tensor_element(const BoxCopy& copy, const std::array<int64_t, 3>& in_box) {
  int64_t offset = 0;
  for (int d = 0; d < 3; ++d) {
    const int64_t i = copy.at[d] + in_box[d];
    if (i < 0 || i >= copy.map.sizes[d]) return nullptr;
    offset += i * (d == 0 ? 2 : copy.map.strides[d - 1]);
  }
  return static_cast<const std::byte*>(copy.map.base) + offset;
}

void perform(const BoxCopy& copy, const Where& where) {
  AsyncProxy& proxy = async_proxy();
  const auto& box = copy.map.box;
  uint32_t linear = 0;
  std::array<int64_t, 3> i;
  for (i[2] = 0; i[2] < box[2]; ++i[2])
    for (i[1] = 0; i[1] < box[1]; ++i[1])
      for (i[0] = 0; i[0] < box[0]; ++i[0], linear += 2) {
        std::byte* to = proxy.at(swizzle128(copy.to + linear), 2, where);
        if (const std::byte* from = tensor_element(copy, i))
          std::memcpy(to, from, 2);
        else
          std::memset(to, 0, 2);
      }
  BarrierState state = load_barrier(copy.barrier, where);
  state.owed_bytes -= copy.bytes();
  store_barrier(copy.barrier, state);
}

// A random one of the copies under way.
void perform_some_copy(const Where& where) {
  AsyncProxy& proxy = async_proxy();
  const size_t pick = Machine::instance().random() % proxy.copies.size();
  const BoxCopy copy = proxy.copies[pick];
  proxy.copies[pick] = proxy.copies.back();
  proxy.copies.pop_back();
  perform(copy, where);
}

// ---- Products -----------------------------------------------------------------------------------

using Matrix = std::vector<std::array<float, 16>>;  // [rows or columns][k]

class Operand {
 public:
  Operand(const WarpProduct& product, uint64_t bits, const Where& where)
      : descriptor_(bits), is_bf16_(product.is_bf16), where_(where) {
    Machine& machine = Machine::instance();
    if (descriptor_.swizzle != 1)
      machine.fail("the emulation has matrix descriptors with 128-byte swizzle only", where);
    // Without a base offset the pattern begins at multiples of 1024; k moves within 128 bytes.
    if (descriptor_.base_offset != 0 || descriptor_.start % 1024 >= 128)
      machine.fail("a matrix descriptor that does not start where the swizzle pattern does", where);
  }

  float row_element(uint32_t row, uint32_t k) const { return load(descriptor_.row_major(row, k)); }
  float column_element(uint32_t column, uint32_t k) const {
    return load(descriptor_.column_major(column, k));
  }

 private:
  float load(uint32_t address) const {
    uint16_t bits;
    std::memcpy(&bits, async_proxy().at(swizzle128(address), 2, where_), 2);
    return is_bf16_ ? as_float(bf16{bits}) : as_float(f16{bits});
  }

  const MatrixDescriptor descriptor_;
  const bool is_bf16_;
  const Where& where_;
};

// The warp's sixteen rows of a.
Matrix load_a(const WarpProduct& product, unsigned warp, const Where& where) {
  Matrix a(16);
  if (product.a[0] == nullptr) {
    const Operand operand(product, product.a_descriptor, where);
    for (uint32_t row = 0; row < 16; ++row)
      for (uint32_t k = 0; k < 16; ++k) a[row][k] = operand.row_element(warp % 4 * 16 + row, k);
    return a;
  }
  for (uint32_t lane = 0; lane < 32; ++lane)
    for (uint32_t i = 0; i < 4; ++i)
      for (uint32_t half = 0; half < 2; ++half) {
        const auto bits = static_cast<uint16_t>(product.a[lane][i] >> (16 * half));
        const float value = product.is_bf16 ? as_float(bf16{bits}) : as_float(f16{bits});
        a[lane / 4 + i % 2 * 8][lane % 4 * 2 + i / 2 * 8 + half] = value;
      }
  return a;
}

Matrix load_b(const WarpProduct& product, const Where& where) {
  Matrix b(product.columns);
  const Operand operand(product, product.b_descriptor, where);
  const bool in_columns = product.a[0] != nullptr;
  for (uint32_t column = 0; column < b.size(); ++column)
    for (uint32_t k = 0; k < 16; ++k)
      b[column][k] =
          in_columns ? operand.column_element(column, k) : operand.row_element(column, k);
  return b;
}

void perform(const WarpProduct& product, unsigned warp, const Where& where) {
  const Matrix a = load_a(product, warp, where), b = load_b(product, where);
  for (uint32_t lane = 0; lane < 32; ++lane)
    for (int index = 0; index < product.columns / 2; ++index) {
      const int i = index % 4;
      const auto& row = a[lane / 4 + i / 2 * 8];
      const auto& column = b[index / 4 * 8 + lane % 4 * 2 + i % 2];
      float& sum = product.sums[lane][index];
      float total = product.accumulate ? sum : 0.0f;
      for (int k = 0; k < 16; ++k) total += row[k] * column[k];
      sum = total;
    }
}

unsigned running_warp() {
  const Thread& self = Machine::instance().self();
  return static_cast<unsigned>(self.warp - self.block->warps.data());
}

// Performs what is pending of groups before `end`.
void perform_products(WarpProducts& products, unsigned end, const Where& where) {
  while (!products.pending.empty() && products.pending.front().group < end) {
    perform(products.pending.front(), running_warp(), where);
    products.pending.pop_front();
  }
}

struct ProductLane {
  float* sums;
  const uint32_t* a;
  uint64_t a_descriptor, b_descriptor;
};

void check_agreement(const ProductSignature& signature, size_t number, const Where& where) {
  auto& seen = async_proxy().warpgroups[running_warp() / 4];
  if (number == seen.size())
    seen.push_back(signature);
  else if (seen[number] != signature)
    Machine::instance().fail("warps of a warpgroup disagree about a product", where);
}

void enqueue_product(WarpProduct& product, const std::array<ProductLane*, 32>& lanes,
                     const Where& where) {
  Machine& machine = Machine::instance();
  WarpProducts& products = async_proxy().warps[running_warp()];
  if (products.ready_lanes != 0xffffffffu)
    machine.fail("a product after a wait without begin_products()", where);
  for (int lane = 0; lane < 32; ++lane) {
    product.sums[lane] = lanes[lane]->sums;
    product.a[lane] = lanes[lane]->a;
    if (lanes[lane]->a_descriptor != product.a_descriptor ||
        lanes[lane]->b_descriptor != product.b_descriptor)
      machine.fail("lanes disagree about a matrix descriptor", where);
  }
  check_agreement({product.columns, product.a_descriptor, product.b_descriptor}, products.issued++,
                  where);
  product.group = products.group;
  products.pending.push_back(product);
  if (machine.random() % 2 == 0) perform_products(products, products.group + 1, where);
}

// A warp operation without data, for what all lanes do at once.
template <typename Complete>
void together(const char* name, const Complete& complete, const Where& where) {
  int nothing = 0;
  Machine::instance().warp_operation(
      name, 0xffffffffu, nothing, [&](std::array<int*, 32>&) { complete(); }, where);
}

}  // namespace

AsyncProxy& async_proxy() {
  Machine& machine = Machine::instance();
  Block& block = *machine.self().block;
  if (block.async_proxy == nullptr) {
    block.async_proxy = std::make_shared<AsyncProxy>();
    block.async_proxy->shared = block.shared;
    block.async_proxy->shared_bytes = static_cast<uint32_t>(block.grid->shared_bytes);
    block.async_proxy->window = static_cast<uint32_t>(machine.random() % 16) * 128;
  }
  return *block.async_proxy;
}

std::byte* AsyncProxy::at(uint32_t address, uint32_t bytes, const Where& where) {
  if (address < window || address - window + bytes > shared_bytes)
    Machine::instance().fail("an asynchronous access outside of shared memory", where);
  return shared + (address - window);
}

uint32_t shared_address(const void* pointer) {
  AsyncProxy& proxy = async_proxy();
  const auto offset = static_cast<const std::byte*>(pointer) - proxy.shared;
  if (offset < 0 || offset >= kWindowBytes)
    Machine::instance().fail("an address that is not in shared memory", Where::current());
  return proxy.window + static_cast<uint32_t>(offset);
}

void init_block_barrier(std::byte* barrier, int count, const Where& where) {
  Machine& machine = Machine::instance();
  if (count < 1 || count > kMaxBytes) machine.fail("a block barrier of no arrivals", where);
  const BarrierState state{.expected = static_cast<uint64_t>(count),
                           .pending = static_cast<uint64_t>(count),
                           .owed_bytes = 0,
                           .phase = 0,
                           .valid = kValid};
  std::memcpy(barrier, &state, sizeof state);
  async_proxy().unpublished.insert(barrier);
}

void publish_block_barriers() { async_proxy().unpublished.clear(); }

void arrive_at_block_barrier(std::byte* barrier, int64_t expected_bytes, const Where& where) {
  Machine& machine = Machine::instance();
  machine.yield();
  BarrierState state = load_barrier(barrier, where);
  if (state.pending == 0) machine.fail("one arrival too many at a block barrier", where);
  if (state.owed_bytes + expected_bytes > kMaxBytes)
    machine.fail("a block barrier expects too many bytes", where);
  --state.pending;
  state.owed_bytes += expected_bytes;
  store_barrier(barrier, state);
}

bool has_ended(std::byte* barrier, uint32_t parity, const Where& where) {
  Machine::instance().yield();
  if (!async_proxy().copies.empty()) perform_some_copy(where);
  return load_barrier(barrier, where).phase != parity;
}

bool wait_for_block_barrier(std::byte* barrier, uint32_t parity, const Where& where) {
  Machine& machine = Machine::instance();
  AsyncProxy& proxy = async_proxy();
  machine.yield();
  while (load_barrier(barrier, where).phase == parity) {
    if (!proxy.copies.empty()) {
      perform_some_copy(where);
      continue;
    }
    if (proxy.has_lost_copy) return false;
    proxy.waiting[barrier].push_back(&machine.self());
    machine.block_until("block barrier of the copy engine", where);
  }
  return true;
}

void lose_copies(int count) {
  lost_every = count;
  boxes_started = 0;
}

void start_box_copy(void* to, const TensorMap& map, int rank, std::byte* barrier,
                    std::array<int64_t, 3> at, const Where& where) {
  Machine& machine = Machine::instance();
  AsyncProxy& proxy = async_proxy();
  TensorMapShape shape;
  std::memcpy(static_cast<void*>(&shape), &map, sizeof shape);
  if (shape.rank != rank) machine.fail("a copy of another rank than its tensor map", where);
  const uint32_t address = shared_address(to);
  if (address % 128 != 0) machine.fail("a box that is not aligned to 128 bytes", where);
  if (proxy.unpublished.contains(barrier))
    machine.fail("a copy on a block barrier that was not published", where);
  if (lost_every > 0 && ++boxes_started % lost_every == 0) {
    proxy.has_lost_copy = true;
  } else {
    proxy.copies.push_back({.map = shape, .to = address, .barrier = barrier, .at = at});
    if (machine.random() % 2 == 0) perform_some_copy(where);
  }
  // Whoever sleeps at a barrier helps with the copies, so none is left behind.
  for (auto& [unused, threads] : proxy.waiting) {
    for (Thread* thread : threads) machine.wake(thread);
    threads.clear();
  }
}

void fence_products(const Where& where) {
  together(
      "wgmma.fence", [] { async_proxy().warps[running_warp()].ready_lanes = 0xffffffffu; }, where);
}

void start_product(WarpProduct& product, float* sums, const uint32_t* a, const Where& where) {
  ProductLane lane{sums, a, product.a_descriptor, product.b_descriptor};
  Machine::instance().warp_operation(
      "wgmma.mma_async", 0xffffffffu, lane,
      [&](std::array<ProductLane*, 32>& lanes) { enqueue_product(product, lanes, where); }, where);
}

void commit_products(const Where& where) {
  together("wgmma.commit_group", [] { ++async_proxy().warps[running_warp()].group; }, where);
}

void wait_for_products(unsigned pending, const Where& where) {
  together(
      "wgmma.wait_group",
      [&] {
        WarpProducts& products = async_proxy().warps[running_warp()];
        const unsigned end = products.group - std::min(pending, products.group);
        perform_products(products, end, where);
        products.ready_lanes = 0;
      },
      where);
}

const char* unfinished_work(const AsyncProxy& proxy) {
  if (proxy.has_lost_copy) return nullptr;  // it has given up
  if (!proxy.copies.empty()) return "a block ended while copies to it were under way";
  size_t issued[64] = {};
  for (const auto& [warp, products] : proxy.warps) {
    if (!products.pending.empty()) return "a block ended while products were under way";
    size_t& others = issued[warp / 4 % 64];
    if (others != 0 && others != products.issued) return "a warp left out a product of its group";
    others = products.issued;
  }
  return nullptr;
}

}  // namespace nanoweave::emulation
