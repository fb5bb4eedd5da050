// Gpu: the emulated GPUs of this process as the backend sees them. Host threads put work into
// streams; one thread of its own runs the Machine. Events join streams to each other and to the
// host, and work can be captured into graphs, as CUDA does it: a graph is what was enqueued and
// what each piece waits for, and nothing else orders it when it runs.
//
// A failure (EmulationFailure) is sticky, like a lost device: all later calls throw it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cuda/emulation/machine.h"

namespace nanoweave::emulation {

struct Capture;

struct Event {
  // Outlives the event while streams still have to reach it. Guarded by the Gpu's mutex.
  struct State {
    uint64_t issued = 0;  // records asked for
    uint64_t done = 0;    // records reached
    uint64_t time_ns = 0;
  };
  std::shared_ptr<State> state = std::make_shared<State>();

  // Recorded in a capture: its number, and what the event stands for there.
  uint64_t capture = 0;
  std::vector<int> after;
};

struct Graph {
  struct Node {
    std::function<Work()> make;
    std::vector<int> after;   // nodes
    std::vector<int> before;  // nodes
  };
  std::vector<Node> nodes;
};

struct Capture {
  uint64_t number = 0;
  Stream* origin = nullptr;
  Graph graph;
  std::map<Stream*, std::vector<int>> last;  // streams that take part: what comes next waits for
};

class Gpu {
 public:
  // Starts its thread on the first call; lives as long as the process.
  static Gpu& instance();

  // Host threads. A stream takes part in at most one capture, made by one thread.
  void submit(Stream* stream, std::unique_ptr<Grid> grid);
  void submit(Stream* stream, std::function<void()> action);
  void record(Stream* stream, Event& event);
  void wait(Stream* stream, const Event& event);
  bool is_done(const Event& event);
  // What may wait for every device: while a collective is under way, it could wait for ever.
  void require_no_collective(const char* what);
  // The process ends: returns once nothing runs any more; all later calls fail.
  void unload();
  // Frees a stream once all its work has ended.
  void retire(std::unique_ptr<Stream> stream);

  void begin_capture(Stream* stream);
  // Throws unless every stream that took part has been joined to the first.
  std::unique_ptr<Graph> end_capture(Stream* stream);
  void abandon_capture(Stream* stream);
  void launch(Stream* stream, const Graph& graph);

 private:
  Gpu();
  void work();
  Capture* capture_of(Stream* stream);
  int capture(Capture& capture, Stream* stream, std::function<Work()> make);
  void send(Stream* stream, Work work);
  void require_working() const;

  std::mutex mutex_;
  std::condition_variable arrived_, parked_;
  // Guarded by mutex_:
  std::vector<std::pair<Stream*, Work>> inbox_;
  std::vector<std::unique_ptr<Capture>> captures_;
  uint64_t last_capture_ = 0;
  std::vector<std::unique_ptr<Stream>> retired_;
  std::string failure_;
  bool unloading_ = false;
  bool is_parked_ = false;

  std::atomic<bool> has_arrivals_{false};
};

}  // namespace nanoweave::emulation
