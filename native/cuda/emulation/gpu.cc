#include "cuda/emulation/gpu.h"

#include <algorithm>
#include <cstdlib>

#include "core/error.h"

namespace nanoweave::emulation {

namespace {

constexpr int kTurnsBetweenArrivals = 4096;

// A graph on its way: a node starts in a stream of its own once all it waits for has ended.
class GraphRun : public std::enable_shared_from_this<GraphRun> {
 public:
  explicit GraphRun(std::shared_ptr<const Graph> graph)
      : graph_(std::move(graph)), left_(graph_->nodes.size()), streams_(graph_->nodes.size()) {}

  // The machine's thread; true once every node has ended.
  bool advance() {
    if (!started_) start();
    return left_ == 0;
  }

 private:
  void start() {
    started_ = true;
    for (const Graph::Node& node : graph_->nodes) waiting_.push_back(node.after.size());
    for (size_t i = 0; i < waiting_.size(); ++i)
      if (waiting_[i] == 0) start(static_cast<int>(i));
  }

  void start(int index) {
    Machine& machine = Machine::instance();
    streams_[index] = std::make_unique<Stream>();
    machine.enqueue(streams_[index].get(), graph_->nodes[index].make());
    machine.enqueue(streams_[index].get(),
                    {.grid = nullptr, .action = [self = shared_from_this(), index] {
                       self->finish(index);
                       return true;
                     }});
  }

  void finish(int index) {
    --left_;
    for (const int next : graph_->nodes[index].before)
      if (--waiting_[next] == 0) start(next);
  }

  const std::shared_ptr<const Graph> graph_;
  bool started_ = false;
  size_t left_;
  std::vector<size_t> waiting_;  // by node: those it still waits for
  std::vector<std::unique_ptr<Stream>> streams_;
};

void add_missing(std::vector<int>& to, const std::vector<int>& from) {
  for (const int node : from)
    if (std::find(to.begin(), to.end(), node) == to.end()) to.push_back(node);
}

// Nodes that are `ends` or that they wait for.
size_t count_reached(const Graph& graph, std::vector<int> ends) {
  std::vector<bool> seen(graph.nodes.size());
  size_t count = 0;
  while (!ends.empty()) {
    const int node = ends.back();
    ends.pop_back();
    if (seen[node]) continue;
    seen[node] = true;
    ++count;
    ends.insert(ends.end(), graph.nodes[node].after.begin(), graph.nodes[node].after.end());
  }
  return count;
}

}  // namespace

void enqueue(Stream* stream, std::unique_ptr<Grid> grid) {
  if (stream->gpu != nullptr)
    stream->gpu->submit(stream, std::move(grid));
  else
    Machine::instance().enqueue(stream, {.grid = std::move(grid), .action = {}});
}

Gpu& Gpu::instance() {
  static Gpu* const gpu = new Gpu;  // its thread runs until the process ends
  return *gpu;
}

Gpu::Gpu() {
  Machine& machine = Machine::instance();
  const char* seed = std::getenv("NANOWEAVE_EMULATION_SEED");
  machine.seed(seed == nullptr ? 1 : std::strtoull(seed, nullptr, 10));
  machine.use_real_clock();
  std::thread([this] { work(); }).detach();
}

void Gpu::work() {
  Machine& machine = Machine::instance();
  for (bool busy = false;;) {
    if (!busy || has_arrivals_.load(std::memory_order_relaxed)) {
      std::unique_lock lock(mutex_);
      if (!busy) arrived_.wait(lock, [&] { return unloading_ || !inbox_.empty(); });
      if (unloading_) {
        is_parked_ = true;
        parked_.notify_all();
        return;
      }
      for (auto& [stream, work] : inbox_) machine.enqueue(stream, std::move(work));
      inbox_.clear();
      std::erase_if(retired_, [](const auto& stream) { return !stream->listed; });
      has_arrivals_.store(false, std::memory_order_relaxed);
    }
    try {
      busy = machine.advance(kTurnsBetweenArrivals);
    } catch (const EmulationFailure& failure) {
      const std::lock_guard lock(mutex_);
      failure_ = failure.what();
      busy = false;
    }
  }
}

void Gpu::require_working() const {
  if (!failure_.empty())
    fail(ErrorCode::kRankFault,
         "the emulated GPU failed; it is unusable in this process: restart it. %s",
         failure_.c_str());
}

// With mutex_ held.
void Gpu::send(Stream* stream, Work work) {
  require_working();
  inbox_.emplace_back(stream, std::move(work));
  has_arrivals_.store(true, std::memory_order_relaxed);
  arrived_.notify_one();
}

Capture* Gpu::capture_of(Stream* stream) {
  for (const auto& capture : captures_)
    if (capture->last.contains(stream)) return capture.get();
  return nullptr;
}

int Gpu::capture(Capture& capture, Stream* stream, std::function<Work()> make) {
  const auto index = static_cast<int>(capture.graph.nodes.size());
  std::vector<int>& last = capture.last.at(stream);
  for (const int node : last) capture.graph.nodes[node].before.push_back(index);
  capture.graph.nodes.push_back({.make = std::move(make), .after = std::move(last), .before = {}});
  last = {index};
  return index;
}

void Gpu::submit(Stream* stream, std::unique_ptr<Grid> grid) {
  const std::lock_guard lock(mutex_);
  if (Capture* const capturing = capture_of(stream)) {
    const std::shared_ptr<const Grid> kept = std::move(grid);
    capture(*capturing, stream,
            [kept] { return Work{.grid = std::make_unique<Grid>(*kept), .action = {}}; });
    return;
  }
  send(stream, {.grid = std::move(grid), .action = {}});
}

void Gpu::submit(Stream* stream, std::function<void()> action) {
  const auto once = [action = std::move(action)] {
    action();
    return true;
  };
  const std::lock_guard lock(mutex_);
  if (Capture* const capturing = capture_of(stream))
    capture(*capturing, stream, [once] { return Work{.grid = nullptr, .action = once}; });
  else
    send(stream, {.grid = nullptr, .action = once});
}

void Gpu::record(Stream* stream, Event& event) {
  const std::lock_guard lock(mutex_);
  const Capture* const capturing = capture_of(stream);
  event.capture = capturing == nullptr ? 0 : capturing->number;
  if (capturing != nullptr) {
    event.after = capturing->last.at(stream);
    return;
  }
  const uint64_t number = ++event.state->issued;
  send(stream, {.grid = nullptr, .action = [this, number, state = event.state] {
                  const std::lock_guard reached(mutex_);
                  state->done = std::max(state->done, number);
                  state->time_ns = Machine::instance().clock_ns();
                  return true;
                }});
}

void Gpu::wait(Stream* stream, const Event& event) {
  const std::lock_guard lock(mutex_);
  if (event.capture != 0) {
    const auto found = std::find_if(captures_.begin(), captures_.end(), [&](const auto& made) {
      return made->number == event.capture;
    });
    if (found == captures_.end())
      fail(ErrorCode::kInternal, "a stream waits for an event of a capture that has ended");
    add_missing((*found)->last[stream], event.after);
    return;
  }
  if (capture_of(stream) != nullptr)
    fail(ErrorCode::kInternal, "a captured stream waits for an event outside of the capture");
  if (event.state->issued == 0) return;
  send(stream,
       {.grid = nullptr, .action = [this, number = event.state->issued, state = event.state] {
          const std::lock_guard reached(mutex_);
          return state->done >= number;
        }});
}

bool Gpu::is_done(const Event& event) {
  const std::lock_guard lock(mutex_);
  require_working();
  return event.state->done == event.state->issued;
}

void Gpu::require_no_collective(const char* what) {
  if (Machine::instance().collectives_under_way() == 0) return;
  const std::lock_guard lock(mutex_);
  if (failure_.empty())
    failure_ = std::string(what) + " while a collective is under way: CUDA may wait for it there";
}

void Gpu::unload() {
  std::unique_lock lock(mutex_);
  unloading_ = true;
  failure_ = "the process ends";
  has_arrivals_.store(true, std::memory_order_relaxed);
  arrived_.notify_one();
  parked_.wait(lock, [&] { return is_parked_; });
}

void Gpu::retire(std::unique_ptr<Stream> stream) {
  const std::lock_guard lock(mutex_);
  retired_.push_back(std::move(stream));
}

void Gpu::begin_capture(Stream* stream) {
  const std::lock_guard lock(mutex_);
  require_working();
  captures_.push_back(std::make_unique<Capture>());
  captures_.back()->number = ++last_capture_;
  captures_.back()->origin = stream;
  captures_.back()->last[stream] = {};
}

std::unique_ptr<Graph> Gpu::end_capture(Stream* stream) {
  const std::lock_guard lock(mutex_);
  const auto found = std::find_if(captures_.begin(), captures_.end(),
                                  [&](const auto& made) { return made->origin == stream; });
  CHECK(found != captures_.end());
  const std::unique_ptr<Capture> capture = std::move(*found);
  captures_.erase(found);
  if (count_reached(capture->graph, capture->last.at(stream)) != capture->graph.nodes.size())
    fail(ErrorCode::kInternal, "a capture ends with streams that were not joined");
  return std::make_unique<Graph>(std::move(capture->graph));
}

void Gpu::abandon_capture(Stream* stream) {
  const std::lock_guard lock(mutex_);
  std::erase_if(captures_, [&](const auto& made) { return made->origin == stream; });
}

void Gpu::launch(Stream* stream, const Graph& graph) {
  // A copy: the graph may be destroyed while it runs.
  const auto run = std::make_shared<GraphRun>(std::make_shared<const Graph>(graph));
  const std::lock_guard lock(mutex_);
  send(stream, {.grid = nullptr, .action = [run] { return run->advance(); }});
}

}  // namespace nanoweave::emulation
