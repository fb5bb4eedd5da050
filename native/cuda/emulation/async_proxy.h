// AsyncProxy: what a block of the emulated GPU has under way beside its threads: copies of the copy
// engine (tma.h) and products of warpgroups (wgmma.h). Both happen at a random moment between their
// start and the wait that covers them, so that a wait that is missing and a buffer given back too
// early show.
//
// Written from the PTX ISA: mbarrier objects, tensor maps, swizzling modes, matrix descriptors and
// register fragments of wgmma.mma_async. Descriptors are decoded from their bits, addresses are
// those of the shared window, which starts at a random multiple of 128.
#pragma once

#include <array>
#include <deque>
#include <map>
#include <set>
#include <vector>

#include "cuda/emulation/machine.h"
#include "cuda/tensor_map.h"

namespace nanoweave::emulation {

// ---- Copy engine --------------------------------------------------------------------------------

struct BoxCopy {
  TensorMapShape map;
  uint32_t to;  // address in the shared window
  std::byte* barrier;
  std::array<int64_t, 3> at;  // element coordinates, innermost first

  uint32_t bytes() const { return static_cast<uint32_t>(map.box[0] * map.box[1] * map.box[2] * 2); }
};

// ---- Warpgroup products -------------------------------------------------------------------------

// A matrix descriptor, decoded.
struct MatrixDescriptor {
  explicit MatrixDescriptor(uint64_t bits)
      : start(static_cast<uint32_t>(bits & 0x3fff) << 4),
        leading(static_cast<uint32_t>(bits >> 16 & 0x3fff) << 4),
        stride(static_cast<uint32_t>(bits >> 32 & 0x3fff) << 4),
        base_offset(static_cast<int>(bits >> 49 & 7)),
        swizzle(static_cast<int>(bits >> 62)) {}

  // Where the element lies, before swizzling.
  uint32_t row_major(uint32_t row, uint32_t k) const {
    return start + row / 8 * stride + row % 8 * 128 + k * 2;
  }
  uint32_t column_major(uint32_t column, uint32_t k) const {
    return start + column / 64 * leading + column % 64 * 2 + k / 8 * stride + k % 8 * 128;
  }

  uint32_t start, leading, stride;  // bytes
  int base_offset;
  int swizzle;  // 0 none, 1 128 bytes, 2 64 bytes, 3 32 bytes
};

// One warp's sixteen rows of a warpgroup's product. Pointers by lane; `a` null: from shared memory.
struct WarpProduct {
  int columns;
  bool accumulate;
  bool is_bf16;
  std::array<float*, 32> sums;
  std::array<const uint32_t*, 32> a;
  uint64_t a_descriptor, b_descriptor;
  unsigned group;  // number of the commit group it belongs to
};

struct WarpProducts {
  std::deque<WarpProduct> pending;
  unsigned group = 0;
  size_t issued = 0;
  uint32_t ready_lanes = 0;  // have fenced since their last wait
};

// What all four warps of a warpgroup must agree on.
struct ProductSignature {
  int columns;
  uint64_t a_descriptor, b_descriptor;
  bool operator==(const ProductSignature&) const = default;
};

// ---- The block's part ---------------------------------------------------------------------------

struct AsyncProxy {
  uint32_t window = 0;  // address of the block's shared memory in the shared window
  std::byte* shared = nullptr;
  uint32_t shared_bytes = 0;

  std::vector<BoxCopy> copies;  // under way
  bool has_lost_copy = false;
  std::set<const std::byte*> unpublished;                    // barriers the copies cannot see yet
  std::map<const std::byte*, std::vector<Thread*>> waiting;  // by barrier
  std::map<unsigned, WarpProducts> warps;
  std::map<unsigned, std::vector<ProductSignature>> warpgroups;

  // The byte at an address of the window; fails outside of the block's memory.
  std::byte* at(uint32_t address, uint32_t bytes, const Where& where);
};

// Of the running thread's block.
AsyncProxy& async_proxy();
uint32_t shared_address(const void* pointer);

void init_block_barrier(std::byte* barrier, int count, const Where& where);
void publish_block_barriers();
void arrive_at_block_barrier(std::byte* barrier, int64_t expected_bytes, const Where& where);
// Whether the phase of this parity has ended.
bool has_ended(std::byte* barrier, uint32_t parity, const Where& where);
// Sleeps until it has. False: it has not, and a copy of this block was lost, so that it may never.
bool wait_for_block_barrier(std::byte* barrier, uint32_t parity, const Where& where);
// Checks of what a copy engine that breaks would do: from now on every `count`th box does not come;
// 0: all come.
void lose_copies(int count);
void start_box_copy(void* to, const TensorMap& map, int rank, std::byte* barrier,
                    std::array<int64_t, 3> at, const Where& where);

void fence_products(const Where& where);
void start_product(WarpProduct& product, float* sums, const uint32_t* a, const Where& where);
void commit_products(const Where& where);
void wait_for_products(unsigned pending, const Where& where);

}  // namespace nanoweave::emulation
