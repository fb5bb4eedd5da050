// Machine: the emulated GPU. It runs grids of kernels on the CPU, every thread of a block as a
// fiber, in a random order drawn from a seed, so that a missing synchronisation shows as a wrong
// answer for some seed. It refuses what a GPU leaves undefined: a barrier that not all threads
// reach, or that they reach at different lines; a warp operation whose named lanes are not all
// there; a wait that nobody will end. Each throws EmulationFailure out of run().
//
// What is not emulated: timing, caches, and the reordering of loads. Stores made through
// ptx::store_remote() stay invisible to other blocks until a release that covers them, so a missing
// release does show.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <source_location>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/emulation/fiber.h"

namespace nanoweave::emulation {

using Where = std::source_location;

struct EmulationFailure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Index3 {
  unsigned x = 1, y = 1, z = 1;
  unsigned count() const { return x * y * z; }
};

struct Block;
struct Warp;
struct Grid;
struct AsyncProxy;

// A store that other blocks cannot see yet.
struct PendingStore {
  std::byte* to;
  std::array<std::byte, 16> bytes;
  int size;
};

// An asynchronous copy that has been issued and not yet waited for.
struct PendingCopy {
  std::byte* to;
  const std::byte* from;
  int bytes;       // copied; the rest of 16 is zero
  unsigned group;  // number of the commit group it belongs to
};

struct Thread {
  Block* block = nullptr;
  Warp* warp = nullptr;
  unsigned lane = 0;
  Index3 index;
  Fiber* fiber = nullptr;
  bool done = false;

  // What it waits for, for the report of a deadlock; null while runnable.
  const char* waits_for = nullptr;
  Where where;

  std::deque<PendingCopy> copies;
  unsigned copy_group = 0;
  std::vector<PendingStore> stores;  // since this thread's last block barrier
};

// A warp operation that some lanes of its mask have arrived at.
struct WarpOperation {
  const char* name;
  uint32_t mask;
  Where where;
  uint32_t arrived = 0;
  std::array<void*, 32> data{};
};

struct Warp {
  std::array<Thread*, 32> lanes{};
  uint32_t present = 0;  // lanes that have not left the kernel
  std::vector<WarpOperation> open;
};

struct NamedBarrier {
  std::vector<Thread*> waiting;
  unsigned arrived = 0;  // waiting, and arrived without waiting
  unsigned expected = 0;
  Where where;
  bool all = true, any = false;
  bool result_all = true, result_any = false;
};

struct Block {
  Grid* grid = nullptr;
  Index3 index;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::byte* shared = nullptr;  // poisoned; its end is a guard page
  std::byte* mapping = nullptr;
  size_t mapping_bytes = 0;  // guard page left out
  std::array<NamedBarrier, 16> barriers;
  std::vector<PendingStore> stores;         // before the last block barrier, not yet released
  unsigned running = 0;                     // threads not done
  std::shared_ptr<AsyncProxy> async_proxy;  // made when first used

  Block() = default;
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  void map_shared(size_t bytes);
};

struct Stream;

struct Grid {
  std::string name;
  Index3 blocks, threads;
  size_t shared_bytes = 0;
  bool cooperative = false;    // all blocks run at once
  std::function<void()> body;  // one thread
  // The machine's, while it is enqueued:
  Stream* stream = nullptr;
  std::vector<unsigned> remaining;  // linear indices of blocks not started, shuffled
  unsigned unfinished = 0;
};

// What a stream holds: a grid, or something the machine does between grids (a copy, an event).
struct Work {
  std::unique_ptr<Grid> grid;
  std::function<bool()> action;  // false: not yet
};

class Gpu;

// A stream: work in order. Streams run side by side.
struct Stream {
  std::deque<Work> queue;
  bool listed = false;         // the machine looks at it
  uint64_t not_before_ns = 0;  // a late device: nothing starts earlier
  bool dead = false;           // a dead device: nothing ever starts
  Gpu* gpu = nullptr;          // the service it belongs to (gpu.h); null: the machine alone
};

// Launches a grid: through the stream's service, or into the machine.
void enqueue(Stream* stream, std::unique_ptr<Grid> grid);

// A range of addresses that stands for the same offsets in several heaps.
struct Multicast {
  std::byte* base;
  size_t bytes;
  std::vector<std::byte*> heaps;  // in rank order
};

// What a block that ends has left under way; null: nothing.
const char* unfinished_work(const AsyncProxy& proxy);

class Machine {
 public:
  static Machine& instance();

  void seed(uint64_t seed) { random_state_ = seed * 0x9e3779b97f4a7c15u + 1; }
  // SplitMix64 (Steele, Lea and Flood, 2014).
  uint64_t random() {
    uint64_t z = random_state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }

  void enqueue(Stream* stream, Work work);
  // Forgets everything enqueued; the streams must still be there.
  void drop_everything();
  // Runs everything enqueued; throws the first failure, and then nothing is left in any stream.
  void run();
  // Lets threads run `turns` times; false: nothing can run until more is enqueued. Throws as run().
  bool advance(int turns);

  // Any thread. Cooperative grids that have been enqueued and have not ended: collectives.
  int collectives_under_way() const { return collectives_.load(std::memory_order_acquire); }

  // Time as threads see it: it passes with their turns, or it is the machine's own.
  void use_real_clock() { real_clock_ = true; }
  uint64_t clock_ns() const;

  // Any thread.
  void add_multicast(Multicast range);
  void remove_multicast(const std::byte* base);
  // The range that holds `bytes` bytes from `address`.
  std::optional<Multicast> find_multicast(const std::byte* address, size_t bytes) const;

  // Called by running threads.
  Thread& self() { return *running_; }
  void yield();  // lets others run; the thread stays runnable
  bool block_barrier(unsigned id, unsigned count, bool wait, bool predicate, bool want_all,
                     const Where& where);
  void thread_fence();  // the stores this thread may publish become visible
  void remote_store(std::byte* to, const std::byte* bytes, int size);
  void* shared_memory(size_t bytes);
  [[noreturn]] void fail(const char* what, const Where& where);
  void block_until(const char* reason, const Where& where);  // until somebody calls wake()
  void wake(Thread* thread) { ready_.push_back(thread); }

  // Arrives with `data` at a warp operation; the last lane of `mask` calls
  // complete(data of all lanes, null where absent) and releases the others.
  template <typename Data, typename Complete>
  void warp_operation(const char* name, uint32_t mask, Data& data, const Complete& complete,
                      const Where& where) {
    std::array<void*, 32> arrived;
    if (!arrive_at_warp(name, mask, &data, where, arrived)) return;
    std::array<Data*, 32> lanes;
    for (int i = 0; i < 32; ++i) lanes[i] = static_cast<Data*>(arrived[i]);
    complete(lanes);
    release_warp(mask);
  }

 private:
  void start_work();
  bool start_from(Stream& stream);
  bool start_blocks(Grid& grid);
  void start_block(Grid& grid, unsigned index);
  bool skip_to_late_stream();
  void dispatch(Thread& thread);
  void finish_block(Block& block);
  void finish_thread(Thread& thread);
  void publish(std::vector<PendingStore>& stores);
  bool arrive_at_warp(const char* name, uint32_t mask, void* data, const Where& where,
                      std::array<void*, 32>& arrived);
  void release_warp(uint32_t mask);
  void check_nobody_waits_for(Thread& exiting);
  std::string describe_stuck() const;

  static void thread_main(void* argument);

  uint64_t random_state_ = 1;
  FiberPool fibers_;
  std::vector<Stream*> streams_;                // with work
  std::vector<std::unique_ptr<Block>> blocks_;  // started and not finished
  std::vector<std::unique_ptr<Block>> spare_blocks_;
  bool changed_ = false;                 // work came or blocks ended since start_work() last looked
  uint64_t next_start_ns_ = UINT64_MAX;  // of the first late stream
  std::vector<Thread*> ready_;
  mutable std::mutex multicasts_mutex_;
  std::vector<Multicast> multicasts_;
  std::atomic<int> collectives_{0};
  Thread* running_ = nullptr;
  uint64_t clock_ns_ = 0;
  bool real_clock_ = false;
  std::string failure_;
};

}  // namespace nanoweave::emulation
