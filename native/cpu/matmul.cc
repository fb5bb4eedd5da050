// The matmul driver: chooses a kernel, prepares the rows of x, cuts the work into blocks and deals
// them to the rank's threads.
//
// A work item is a run of panels times a run of rows. Within it the panels' weights (one k block of
// them) stay in the second-level cache while blocks of rows pass over them:
//
//   for each k block of W: for each block of rows: sweep the panels; after the last k block: finish
//
// With few rows (decode) an item streams its panels from memory once and items are sized for even
// sharing. Partial sums between k blocks are float32 in the thread's part of the scratch memory.
// The items of several matmuls (experts) may be dealt together: one round of the pool, not one
// each.
#include "cpu/matmul.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <span>

#include "core/error.h"
#include "cpu/matmul_kernel.h"
#include "cpu/scratch.h"

namespace nanoweave {
namespace {

constexpr int64_t kUnitBytes = 192 * 1024;         // of the panels of a sweep in a k block
constexpr int64_t kWeightBlockBytes = 512 * 1024;  // of an item's panels in a k block: half an L2
constexpr int64_t kReadOncePanels = 128;           // of an item, when one block of rows is all
constexpr int64_t kManyRows = 25;                  // from here on k is cut for the sake of the L2
constexpr int64_t kPartialRows = 192;              // rows of an item whose k is cut
constexpr int64_t kAmxRows = 16;                   // a tile's
constexpr int64_t kLongItems = 4;                  // per thread, when W is read once
constexpr int64_t kShortItems = 8;                 // per thread, otherwise
constexpr int64_t kMinRowBlocks = 8;  // of an item: fewer would reload its weights too often

int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

int64_t divide_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// Part `index` of `parts` equal parts of [0, count), in units of `unit`.
int64_t part_begin(int64_t count, int64_t parts, int64_t index, int64_t unit) {
  return std::min(count, divide_up(count, unit) * index / parts * unit);
}

struct Plan {
  int64_t m = 0, n = 0, k = 0;
  int64_t panels = 0;
  int64_t panel_stride = 0;  // bytes of a whole panel
  int64_t group_k = 0;       // k of a group
  int64_t groups = 0;
  int64_t group_bytes = 0;
  int64_t k_blocks = 1;
  int64_t panel_unit = 0;   // items begin at multiples of so many panels
  int64_t panel_parts = 1;  // items across panels
  int64_t row_parts = 1;    // items across rows
  int64_t sums_stride = 0;  // floats: panels of the widest item
  int64_t sums_rows = 0;    // rows of a thread's partial sums
};

// `together`: matmuls whose items are dealt together; the more, the fewer items of each will do.
Plan make_plan(const MatmulKernel& kernel, const MatmulArgs& args, int num_threads,
               int64_t together) {
  Plan plan;
  plan.m = args.x.rows;
  plan.n = args.n;
  plan.k = args.x.cols;
  plan.panels = divide_up(plan.n, kPanelWidth);
  plan.panel_stride = packed_bytes(args.w_dtype, kPanelWidth, plan.k);
  plan.group_k = args.w_dtype == DType::kBf16 ? 2 : 1;
  plan.groups = divide_up(plan.k, plan.group_k);
  plan.group_bytes = kPanelWidth * plan.group_k * dtype_bytes(args.w_dtype);

  // Panels are dealt in units of what a sweep takes at a time.
  const int64_t row_blocks = divide_up(plan.m, kernel.max_rows);
  plan.panel_unit = kernel.panels_for(static_cast<int>(std::min<int64_t>(plan.m, kernel.max_rows)));
  // k is cut so that a unit survives in the second-level cache from one block of rows to the next.
  if (row_blocks > 1) {
    const int64_t bytes = plan.m < kManyRows ? kWeightBlockBytes : kUnitBytes;
    plan.k_blocks = std::max<int64_t>(1, divide_up(plan.panel_unit * plan.panel_stride, bytes));
  }
  const int64_t units = divide_up(plan.panels, plan.panel_unit);
  if (row_blocks == 1) {
    // W is read once: an item is long, for the kernel to read ahead in it, and ends where its sums
    // would leave the cache.
    plan.panel_parts = divide_up(plan.panels, kReadOncePanels);
    if (num_threads > 1)
      plan.panel_parts = std::max(plan.panel_parts, divide_up(kLongItems * num_threads, together));
  } else {
    const int64_t bytes = plan.panel_unit * plan.panel_stride / plan.k_blocks;
    plan.panel_parts =
        divide_up(units, std::max<int64_t>(1, kWeightBlockBytes / std::max<int64_t>(1, bytes)));
    if (plan.k_blocks > 1) plan.row_parts = divide_up(plan.m, kPartialRows);
    // Until every thread has several items: fewer rows to an item, but not so few that loading its
    // weights shows; then fewer panels.
    const int64_t wanted = num_threads > 1 ? divide_up(kShortItems * num_threads, together) : 1;
    plan.row_parts = std::max(plan.row_parts, std::min(divide_up(wanted, plan.panel_parts),
                                                       divide_up(row_blocks, kMinRowBlocks)));
    plan.panel_parts = std::max(plan.panel_parts, divide_up(wanted, plan.row_parts));
  }
  // Even shares for threads of even speed.
  const int64_t threads = divide_up(num_threads, together);
  plan.panel_parts = std::min(units, round_up(plan.panel_parts, threads));
  if (plan.panel_parts * plan.row_parts < threads)
    plan.row_parts = std::min(row_blocks, divide_up(threads, plan.panel_parts));
  plan.sums_stride = divide_up(units, plan.panel_parts) * plan.panel_unit * kPanelWidth;
  plan.sums_rows = round_up(
      plan.k_blocks > 1 ? divide_up(row_blocks, plan.row_parts) * kernel.max_rows : kernel.max_rows,
      kernel.row_multiple);
  return plan;
}

// The rows of x as a kernel reads them.
struct Operand {
  const std::byte* data = nullptr;
  int64_t stride = 0;  // bytes
};

int64_t x_stride(const MatmulArgs& args) {
  return args.x_stride > 0 ? args.x_stride : args.x.row_bytes();
}

int64_t y_stride(const MatmulArgs& args) {
  return args.y_stride > 0 ? args.y_stride : args.y.row_bytes();
}

// Rows a multiple of 4 KiB apart share a set of the first-level cache and would evict each other:
// those are copied to a better stride.
bool usable_in_place(const MatmulKernel& kernel, const MatmulArgs& args) {
  const Tensor& x = args.x;
  return x.dtype == kernel.operand && kernel.row_multiple == 1 && x.cols % kernel.k_multiple == 0 &&
         (x.rows == 1 || x_stride(args) % 4096 != 0);
}

// An odd number of cache lines, so that the rows of a block do not meet in one cache set.
int64_t operand_stride(const MatmulKernel& kernel, int64_t k) {
  const int64_t bytes = round_up(k, kernel.k_multiple) * dtype_bytes(kernel.operand);
  return divide_up(bytes, 64) / 2 * 128 + 64;
}

// Row `row` of x in the kernel's operand dtype, zeros after k; all zeros past the last row.
void prepare_row(const MatmulKernel& kernel, const MatmulArgs& args, int64_t row, std::byte* out,
                 int64_t stride) {
  const Tensor& x = args.x;
  const std::byte* source = x.data + row * x_stride(args);
  const int64_t bytes = row < x.rows ? x.cols * dtype_bytes(kernel.operand) : 0;
  if (bytes > 0) {
    if (kernel.operand == x.dtype)
      std::memcpy(out, source, static_cast<size_t>(bytes));
    else
      load_floats(x.dtype, source, x.cols, reinterpret_cast<float*>(out));
  }
  std::memset(out + bytes, 0, static_cast<size_t>(stride - bytes));
}

// One item: rows [row_begin, row_end) times panels [panel_begin, panel_end).
struct Item {
  int64_t row_begin, row_end, panel_begin, panel_end;
};

void run_item(const MatmulKernel& kernel, const MatmulArgs& args, const Plan& plan,
              const Operand& x, const Item& item, float* sums) {
  const int64_t rows = item.row_end - item.row_begin;
  const int64_t blocks = divide_up(rows, kernel.max_rows);
  const int64_t operand_bytes = dtype_bytes(kernel.operand);
  const int64_t y_bytes = dtype_bytes(args.y.dtype);
  const int64_t first_column = item.panel_begin * kPanelWidth;
  const int64_t columns = std::min(plan.n, item.panel_end * kPanelWidth) - first_column;
  const int64_t block_groups = kernel.k_multiple / plan.group_k;
  for (int64_t part = 0; part < plan.k_blocks; ++part) {
    const int64_t group_begin = part_begin(plan.groups, plan.k_blocks, part, block_groups);
    const int64_t group_end = part_begin(plan.groups, plan.k_blocks, part + 1, block_groups);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t row = item.row_begin + block * kernel.max_rows;
      const int64_t next_row = std::min(item.row_end, row + kernel.max_rows);
      float* block_sums =
          plan.k_blocks > 1 ? sums + (row - item.row_begin) * plan.sums_stride : sums;
      kernel.sweep(
          {.x = x.data + row * x.stride + group_begin * plan.group_k * operand_bytes,
           .x_stride = x.stride,
           .w = args.w + item.panel_begin * plan.panel_stride + group_begin * plan.group_bytes,
           .panel_stride = plan.panel_stride,
           .groups = group_end - group_begin,
           .rows = static_cast<int>(next_row - row),
           .panels = static_cast<int>(item.panel_end - item.panel_begin),
           .sums = block_sums,
           .sums_stride = plan.sums_stride,
           .resume = part > 0,
           .whole_panels = plan.k_blocks == 1,
           .read_once = plan.m <= kernel.max_rows});
      if (part + 1 < plan.k_blocks) continue;
      kernel.finish({.sums = block_sums,
                     .sums_stride = plan.sums_stride,
                     .rows = static_cast<int>(next_row - row),
                     .columns = columns,
                     .bias = args.bias ? args.bias + first_column : nullptr,
                     .softcap = args.softcap,
                     .y = args.y.data + row * y_stride(args) + first_column * y_bytes,
                     .y_stride = y_stride(args),
                     .y_dtype = args.y.dtype});
    }
  }
}

// One of the matmuls that are dealt together.
struct Task {
  const MatmulKernel* kernel = nullptr;
  const MatmulArgs* args = nullptr;
  Plan plan;
  Operand x;
  int64_t prepared_rows = 0;  // of x, copied to scratch memory; 0: x is read where it is
  int64_t first_item = 0;     // among the items of all

  int64_t items() const { return plan.panel_parts * plan.row_parts; }
  int64_t sums_floats() const { return plan.sums_rows * plan.sums_stride; }
};

void make_task(Task& task, int num_threads, int64_t together) {
  task.plan = make_plan(*task.kernel, *task.args, num_threads, together);
  const MatmulArgs& args = *task.args;
  const bool in_place = usable_in_place(*task.kernel, args);
  task.x = {.data = args.x.data,
            .stride = in_place ? x_stride(args) : operand_stride(*task.kernel, task.plan.k)};
  task.prepared_rows = in_place ? 0 : round_up(task.plan.m, task.kernel->row_multiple);
}

void prepare_rows(const Task& task, std::byte* out, ThreadPool& pool) {
  constexpr int64_t kConversionBytes = 64 * 1024;  // per index: worth handing to another thread
  const int64_t rows_per_index = std::max<int64_t>(1, kConversionBytes / task.x.stride);
  pool.parallel_for(divide_up(task.prepared_rows, rows_per_index), [&](int64_t index, int) {
    const int64_t end = std::min(task.prepared_rows, (index + 1) * rows_per_index);
    for (int64_t row = index * rows_per_index; row < end; ++row)
      prepare_row(*task.kernel, *task.args, row, out + row * task.x.stride, task.x.stride);
  });
}

void run_task_item(const Task& task, int64_t index, float* sums) {
  const auto& [kernel, args, plan, x, prepared_rows, first_item] = task;
  // Panels vary fastest: threads work on the same rows of x at a time.
  const int64_t panel_part = index % plan.panel_parts;
  const int64_t row_part = index / plan.panel_parts;
  const Item item{
      .row_begin = part_begin(plan.m, plan.row_parts, row_part, kernel->max_rows),
      .row_end = part_begin(plan.m, plan.row_parts, row_part + 1, kernel->max_rows),
      .panel_begin = part_begin(plan.panels, plan.panel_parts, panel_part, plan.panel_unit),
      .panel_end = part_begin(plan.panels, plan.panel_parts, panel_part + 1, plan.panel_unit)};
  if (kernel->enter) kernel->enter();
  run_item(*kernel, *args, plan, x, item, sums);
  if (kernel->leave) kernel->leave();
}

// Kernel and arguments of every task are set.
void run_tasks(std::span<Task> tasks, ThreadPool& pool, Scratch& scratch) {
  if (tasks.empty()) return;
  int64_t items = 0, operand_bytes = 0, sums_floats = 0;
  for (Task& task : tasks) {
    make_task(task, pool.num_threads(), static_cast<int64_t>(tasks.size()));
    task.first_item = items;
    items += task.items();
    operand_bytes += task.prepared_rows * task.x.stride;
    sums_floats = std::max(sums_floats, task.sums_floats());
  }
  std::byte* memory =
      scratch.get(operand_bytes + pool.num_threads() * sums_floats * int64_t{sizeof(float)});
  auto* sums = reinterpret_cast<float*>(memory + operand_bytes);
  for (Task& task : tasks) {
    if (task.prepared_rows == 0) continue;
    prepare_rows(task, memory, pool);
    task.x.data = memory;
    memory += task.prepared_rows * task.x.stride;
  }
  pool.parallel_for(items, [&](int64_t index, int thread) {
    const Task* task = tasks.data() + tasks.size() - 1;
    while (task->first_item > index) --task;
    run_task_item(*task, index - task->first_item, sums + thread * sums_floats);
  });
}

bool is_empty(const MatmulArgs& args) {
  CHECK(args.y.rows == args.x.rows && args.y.cols == args.n);
  CHECK(args.y.dtype != DType::kI32 && args.y.dtype != DType::kU8);
  return args.x.rows == 0 || args.n == 0;
}

}  // namespace

const MatmulKernel& choose_kernel(const MatmulArgs& args, CpuIsa isa) {
  const MatmulKernel* kernel = nullptr;
  const bool pairs = args.x.dtype == DType::kBf16 && args.w_dtype == DType::kBf16;
  const int64_t rows = std::max(args.x.rows, args.whole_rows);
  if (pairs && isa >= CpuIsa::kAmx && rows >= kAmxRows && !args.deterministic)
    kernel = amx_kernel();
  if (!kernel && pairs && isa >= CpuIsa::kAvx512Bf16) kernel = avx512_bf16_kernel();
  if (!kernel && isa >= CpuIsa::kAvx512) kernel = avx512_kernel(args.w_dtype);
  if (!kernel && isa >= CpuIsa::kAvx2) kernel = avx2_kernel(args.w_dtype);
  if (!kernel) kernel = portable_kernel(args.w_dtype);
  CHECK(kernel != nullptr);
  return *kernel;
}

void matmul_with(const MatmulKernel& kernel, const MatmulArgs& args, ThreadPool& pool,
                 Scratch& scratch) {
  if (is_empty(args)) return;
  Task task;
  task.kernel = &kernel;
  task.args = &args;
  run_tasks({&task, 1}, pool, scratch);
}

void matmul(const MatmulArgs& args, CpuIsa isa, ThreadPool& pool, Scratch& scratch) {
  matmul_with(choose_kernel(args, isa), args, pool, scratch);
}

void matmuls(std::span<const MatmulArgs> all, CpuIsa isa, ThreadPool& pool, Scratch& scratch) {
  std::array<Task, kMatmulsTogether> tasks;
  size_t count = 0;
  for (const MatmulArgs& args : all) {
    if (!is_empty(args)) {
      Task& task = tasks[count++];
      task.kernel = &choose_kernel(args, isa);
      task.args = &args;
    }
    if (count < tasks.size() && &args != &all.back()) continue;
    run_tasks({tasks.data(), count}, pool, scratch);
    count = 0;
  }
}

}  // namespace nanoweave
