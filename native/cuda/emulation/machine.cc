// The scheduler of the emulated GPU, its barriers and warp operations.
#include "cuda/emulation/machine.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <new>
#include <numeric>
#include <utility>

#include "cuda/emulation/simt.h"

namespace nanoweave::emulation {

Index3 threadIdx, blockIdx, blockDim, gridDim;

namespace {

constexpr uint64_t kDispatchNs = 10;  // what the clock advances whenever a thread runs
constexpr unsigned kMaxBlocksAtOnce = 3;

Index3 unflatten(unsigned linear, const Index3& extent) {
  return {linear % extent.x, linear / extent.x % extent.y, linear / extent.x / extent.y};
}

std::string describe(const Thread& thread) {
  char text[160];
  const Block& block = *thread.block;
  std::snprintf(text, sizeof text, "%s: block (%u,%u,%u) thread (%u,%u,%u)",
                block.grid->name.c_str(), block.index.x, block.index.y, block.index.z,
                thread.index.x, thread.index.y, thread.index.z);
  return text;
}

std::string describe(const Where& where) {
  const char* slash = std::strrchr(where.file_name(), '/');
  return std::string(slash == nullptr ? where.file_name() : slash + 1) + ":" +
         std::to_string(where.line());
}

bool same_name(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }

bool same_place(const Where& a, const Where& b) {
  return a.line() == b.line() && same_name(a.file_name(), b.file_name());
}

void move_to(std::vector<PendingStore>& to, std::vector<PendingStore>& from) {
  to.insert(to.end(), from.begin(), from.end());
  from.clear();
}

}  // namespace

Block::~Block() {
  if (mapping != nullptr)
    munmap(mapping, mapping_bytes + static_cast<size_t>(sysconf(_SC_PAGESIZE)));
}

void Block::map_shared(size_t bytes) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t wanted = (bytes + page - 1) / page * page;
  if (wanted > mapping_bytes) {
    if (mapping != nullptr) munmap(mapping, mapping_bytes + page);
    void* memory =
        mmap(nullptr, wanted + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mapping = static_cast<std::byte*>(memory);
    mapping_bytes = wanted;
    mprotect(mapping + wanted, page, PROT_NONE);
  }
  shared = mapping == nullptr ? nullptr : mapping + mapping_bytes - (bytes + 127) / 128 * 128;
  if (bytes > 0) std::memset(shared, 0xff, (bytes + 127) / 128 * 128);  // NaN, -1
}

Machine& Machine::instance() {
  static auto* const machine = new Machine;  // threads use it until the process ends
  return *machine;
}

uint64_t Machine::clock_ns() const {
  if (!real_clock_) return clock_ns_;
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
}

void Machine::enqueue(Stream* stream, Work work) {
  if (work.grid != nullptr) {
    Grid& grid = *work.grid;
    grid.stream = stream;
    if (grid.cooperative) ++collectives_;
    grid.unfinished = grid.blocks.count();
    grid.remaining.resize(grid.unfinished);
    std::iota(grid.remaining.begin(), grid.remaining.end(), 0u);
    for (size_t i = grid.remaining.size(); i > 1; --i)
      std::swap(grid.remaining[i - 1], grid.remaining[random() % i]);
  }
  if (!stream->listed) streams_.push_back(stream);
  stream->listed = true;
  stream->queue.push_back(std::move(work));
  changed_ = true;
}

void Machine::run() {
  while (advance(1 << 20)) {
  }
  drop_everything();
}

bool Machine::advance(int turns) {
  for (; turns > 0 && failure_.empty(); --turns) {
    if (changed_ || clock_ns_ >= next_start_ns_) start_work();
    if (ready_.empty()) {
      if (skip_to_late_stream()) continue;
      if (blocks_.empty()) return false;
      failure_ = describe_stuck();
      break;
    }
    const size_t pick = random() % ready_.size();
    Thread* thread = ready_[pick];
    ready_[pick] = ready_.back();
    ready_.pop_back();
    dispatch(*thread);
  }
  if (failure_.empty()) return true;
  const std::string failure = std::exchange(failure_, {});
  drop_everything();
  throw EmulationFailure(failure);
}

// With nothing to run, the clock jumps to the first late stream.
bool Machine::skip_to_late_stream() {
  if (next_start_ns_ == UINT64_MAX) return false;
  clock_ns_ = next_start_ns_;
  return true;
}

void Machine::dispatch(Thread& thread) {
  clock_ns_ += kDispatchNs;
  running_ = &thread;
  threadIdx = thread.index;
  blockIdx = thread.block->index;
  blockDim = thread.block->grid->threads;
  gridDim = thread.block->grid->blocks;
  fibers_.resume(thread.fiber);
  running_ = nullptr;
  if (!thread.done) return;
  fibers_.release(thread.fiber);
  thread.fiber = nullptr;
  if (thread.block->running == 0) finish_block(*thread.block);
}

void Machine::finish_block(Block& block) {
  publish(block.stores);
  Grid* grid = block.grid;
  const auto at = std::find_if(blocks_.begin(), blocks_.end(),
                               [&](const auto& other) { return other.get() == &block; });
  std::swap(*at, blocks_.back());
  spare_blocks_.push_back(std::move(blocks_.back()));
  blocks_.pop_back();
  changed_ = true;
  if (--grid->unfinished > 0) return;
  if (grid->cooperative) --collectives_;
  grid->stream->queue.pop_front();
}

// Starts what may start, until nothing more does: an action may set another stream going.
void Machine::start_work() {
  changed_ = false;
  for (bool started = true; started;) {
    started = false;
    for (size_t i = 0; i < streams_.size();) {
      Stream& stream = *streams_[i];
      started |= start_from(stream);
      if (!stream.queue.empty()) {
        ++i;
        continue;
      }
      stream.listed = false;
      streams_[i] = streams_.back();
      streams_.pop_back();
    }
  }
  next_start_ns_ = UINT64_MAX;
  for (const Stream* stream : streams_)
    if (!stream->dead && stream->not_before_ns > clock_ns_)
      next_start_ns_ = std::min(next_start_ns_, stream->not_before_ns);
}

// True: an action was done.
bool Machine::start_from(Stream& stream) {
  bool acted = false;
  while (!stream.dead && !stream.queue.empty() && stream.not_before_ns <= clock_ns_) {
    Work& work = stream.queue.front();
    if (work.grid != nullptr ? !start_blocks(*work.grid) : !work.action()) break;
    if (work.grid != nullptr && work.grid->cooperative) --collectives_;  // it had no blocks
    stream.queue.pop_front();
    acted = true;
  }
  return acted;
}

// All blocks of a cooperative grid, a few of another. True: the grid is empty.
bool Machine::start_blocks(Grid& grid) {
  if (grid.unfinished == 0) return true;
  const auto running = static_cast<unsigned>(grid.unfinished - grid.remaining.size());
  unsigned room = grid.cooperative ? grid.unfinished : 1 + random() % kMaxBlocksAtOnce;
  for (; room > running && !grid.remaining.empty(); --room) {
    start_block(grid, grid.remaining.back());
    grid.remaining.pop_back();
  }
  return false;
}

void Machine::start_block(Grid& grid, unsigned index) {
  if (spare_blocks_.empty()) spare_blocks_.push_back(std::make_unique<Block>());
  blocks_.push_back(std::move(spare_blocks_.back()));
  spare_blocks_.pop_back();
  Block& block = *blocks_.back();
  block.grid = &grid;
  block.index = unflatten(index, grid.blocks);
  block.map_shared(grid.shared_bytes);
  block.barriers = {};
  block.async_proxy.reset();
  const unsigned count = grid.threads.count();
  block.running = count;
  block.threads.clear();
  block.threads.resize(count);
  block.warps.assign((count + 31) / 32, {});
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = block.threads[i];
    thread.block = &block;
    thread.warp = &block.warps[i / 32];
    thread.lane = i % 32;
    thread.warp->lanes[thread.lane] = &thread;
    thread.warp->present |= 1u << thread.lane;
    thread.index = unflatten(i, grid.threads);
    thread.fiber = fibers_.create(thread_main, &thread);
    ready_.push_back(&thread);
  }
}

void Machine::thread_main(void* argument) {
  Machine& machine = instance();
  Thread& thread = *static_cast<Thread*>(argument);
  try {
    thread.block->grid->body();
    machine.finish_thread(thread);
  } catch (const std::exception& error) {
    machine.failure_ = error.what();
  }
  machine.fibers_.finish();
}

void Machine::finish_thread(Thread& thread) {
  thread.done = true;
  --thread.block->running;
  move_to(thread.block->stores, thread.stores);
  check_nobody_waits_for(thread);
  const Block& block = *thread.block;
  if (block.running > 0 || block.async_proxy == nullptr) return;
  if (const char* left = unfinished_work(*block.async_proxy)) fail(left, thread.where);
}

void Machine::check_nobody_waits_for(Thread& exiting) {
  exiting.warp->present &= ~(1u << exiting.lane);
  for (const WarpOperation& operation : exiting.warp->open)
    if ((operation.mask >> exiting.lane & 1) != 0)
      fail("a lane left the kernel while its warp waits for it", operation.where);
  const unsigned all = exiting.block->grid->threads.count();
  for (const NamedBarrier& barrier : exiting.block->barriers)
    if (!barrier.waiting.empty() && barrier.expected == all)
      fail("a thread left the kernel while its block waits at a barrier", barrier.where);
}

void Machine::fail(const char* what, const Where& where) {
  throw EmulationFailure(describe(*running_) + ": " + what + " (" + describe(where) + ")");
}

std::string Machine::describe_stuck() const {
  std::string text = "all threads wait for each other:";
  int shown = 0;
  for (const auto& block : blocks_)
    for (const Thread& thread : block->threads)
      if (!thread.done && ++shown <= 4)
        text += "\n  " + describe(thread) + " in " +
                (thread.waits_for == nullptr ? "?" : thread.waits_for) + " at " +
                describe(thread.where);
  return text;
}

void Machine::drop_everything() {
  for (const auto& block : blocks_)
    for (Thread& thread : block->threads)
      if (thread.fiber != nullptr) fibers_.release(std::exchange(thread.fiber, nullptr));
  for (auto& block : blocks_) spare_blocks_.push_back(std::move(block));
  for (auto& block : spare_blocks_) block->stores.clear();
  blocks_.clear();
  ready_.clear();
  collectives_ = 0;
  for (Stream* stream : streams_) {
    stream->queue.clear();
    stream->listed = false;
  }
  streams_.clear();
}

void Machine::add_multicast(Multicast range) {
  const std::lock_guard lock(multicasts_mutex_);
  multicasts_.push_back(std::move(range));
}

void Machine::remove_multicast(const std::byte* base) {
  const std::lock_guard lock(multicasts_mutex_);
  std::erase_if(multicasts_, [&](const Multicast& range) { return range.base == base; });
}

std::optional<Multicast> Machine::find_multicast(const std::byte* address, size_t bytes) const {
  const std::lock_guard lock(multicasts_mutex_);
  for (const Multicast& range : multicasts_)
    if (address >= range.base && address + bytes <= range.base + range.bytes) return range;
  return std::nullopt;
}

void Machine::yield() {
  ready_.push_back(running_);
  fibers_.suspend();
}

void Machine::block_until(const char* reason, const Where& where) {
  running_->waits_for = reason;
  running_->where = where;
  fibers_.suspend();
  running_->waits_for = nullptr;
}

bool Machine::block_barrier(unsigned id, unsigned count, bool wait, bool predicate, bool want_all,
                            const Where& where) {
  Thread& self = *running_;
  Block& block = *self.block;
  NamedBarrier& barrier = block.barriers[id];
  const unsigned expected = count == 0 ? block.grid->threads.count() : count;
  if (expected > block.running) fail("a barrier waits for threads that have left", where);
  if (barrier.arrived > 0) {
    if (barrier.expected != expected) fail("threads disagree about a barrier's size", where);
    if (id == 0 && !same_place(barrier.where, where))
      fail(("threads of a block are at different barriers, others at " + describe(barrier.where))
               .c_str(),
           where);
  }
  barrier.expected = expected;
  barrier.where = where;
  barrier.all = barrier.arrived == 0 ? predicate : barrier.all && predicate;
  barrier.any = barrier.arrived == 0 ? predicate : barrier.any || predicate;
  move_to(block.stores, self.stores);
  if (++barrier.arrived < expected) {
    if (!wait) return true;
    barrier.waiting.push_back(&self);
    block_until("block barrier", where);
    return want_all ? barrier.result_all : barrier.result_any;
  }
  barrier.result_all = barrier.all;
  barrier.result_any = barrier.any;
  for (Thread* thread : barrier.waiting) ready_.push_back(thread);
  barrier.waiting.clear();
  barrier.arrived = 0;
  const bool result = want_all ? barrier.result_all : barrier.result_any;
  if (random() % 2 == 0) yield();  // the last to arrive is not always the first to go on
  return result;
}

void Machine::publish(std::vector<PendingStore>& stores) {
  for (const PendingStore& store : stores) std::memcpy(store.to, store.bytes.data(), store.size);
  stores.clear();
}

void Machine::thread_fence() {
  publish(running_->block->stores);
  publish(running_->stores);
}

void Machine::remote_store(std::byte* to, const std::byte* bytes, int size) {
  PendingStore store{.to = to, .bytes = {}, .size = size};
  std::memcpy(store.bytes.data(), bytes, size);
  running_->stores.push_back(store);
}

void* Machine::shared_memory(size_t bytes) {
  if (bytes > running_->block->grid->shared_bytes)
    fail("more shared memory is used than the launch asks for", Where::current());
  return running_->block->shared;
}

bool Machine::arrive_at_warp(const char* name, uint32_t mask, void* data, const Where& where,
                             std::array<void*, 32>& arrived) {
  Thread& self = *running_;
  Warp& warp = *self.warp;
  const uint32_t own = 1u << self.lane;
  if ((mask & own) == 0) fail("a lane is not in the mask of its warp operation", where);
  if ((mask & ~warp.present) != 0) fail("a lane named by a warp operation has left", where);
  WarpOperation* joined = nullptr;
  for (WarpOperation& operation : warp.open) {
    if (operation.mask == mask && same_name(operation.name, name) &&
        same_place(operation.where, where))
      joined = &operation;
    else if ((operation.mask & own) != 0 && (operation.arrived & mask) != 0)
      fail(("lanes of a warp are at different operations, one at " + describe(operation.where))
               .c_str(),
           where);
  }
  if (joined == nullptr)
    joined = &warp.open.emplace_back(
        WarpOperation{.name = name, .mask = mask, .where = where, .arrived = 0, .data = {}});
  joined->arrived |= own;
  joined->data[self.lane] = data;
  if (joined->arrived == mask) {
    arrived = joined->data;
    std::swap(*joined, warp.open.back());
    warp.open.pop_back();
    return true;
  }
  block_until(name, where);
  return false;
}

void Machine::release_warp(uint32_t mask) {
  for (unsigned lane = 0; lane < 32; ++lane) {
    Thread* thread = running_->warp->lanes[lane];
    if ((mask >> lane & 1) != 0 && thread != running_) ready_.push_back(thread);
  }
}

}  // namespace nanoweave::emulation
