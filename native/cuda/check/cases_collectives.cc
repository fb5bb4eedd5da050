// Cases of the collectives: virtual ranks on one device, ranks on several, late and dead devices,
// several groups, epochs that wrap. Sums are compared bit by bit with the host's.
#include "cuda/check/op_case.h"

namespace nanoweave::check {

namespace {

constexpr DType kDTypes[] = {DType::kF32, DType::kBf16, DType::kF16};

struct Placement {
  const char* name;
  int tp;
  std::vector<int> devices;
  std::vector<double> late_us;
};

const Placement kPlacements[] = {
    {"1 rank", 1, {}, {}},
    {"2 on one device", 2, {}, {}},
    {"4 on one device", 4, {}, {}},
    {"3 on two devices", 3, {0, 1, 1}, {}},
    {"2 devices, one late", 2, {0, 1}, {40, 0}},
    {"4 devices, one late", 4, {0, 1, 2, 3}, {0, 0, 25, 0}},
};

void place(OpCase& c, const Placement& placement) {
  c.devices = placement.devices;
  c.late_us = placement.late_us;
  c.device.sm_count = c.sm_budget = 12;
}

std::string case_name(const Placement& placement, DType dtype, int64_t rows, int64_t cols) {
  return std::string(placement.name) + ", " + dtype_name(dtype) + " " + std::to_string(rows) + "x" +
         std::to_string(cols);
}

void set_form(OpCase& c, const char* form) {
  c.attrs(std::string(R"({"form": ")") + form + "\"}");
  if (form != std::string("auto")) c.name += std::string(", ") + form;
}

OpCase reduce_case(const char* kind, const Placement& placement, DType dtype, int64_t rows,
                   int64_t cols, const char* form = "auto", Fill fill = Fill::kRandom) {
  OpCase c(case_name(placement, dtype, rows, cols), kind, placement.tp);
  place(c, placement);
  c.in(c.arena("x", dtype, Symbol::kTokens, cols, fill));
  c.out(c.arena("y", dtype, Symbol::kTokens, cols, Fill::kPoison));
  set_form(c, form);
  c.steps[0].add_tokens(rows, 64);
  c.tolerance = Tolerance::kExact;
  return c;
}

OpCase gather_case(const Placement& placement, DType dtype, int64_t rows, int64_t cols,
                   const char* form = "auto") {
  OpCase c(case_name(placement, dtype, rows, cols), "all_gather", placement.tp);
  place(c, placement);
  c.in(c.arena("x", dtype, Symbol::kTokens, cols));
  c.out(c.arena("y", dtype, Symbol::kTokens, cols * placement.tp, Fill::kPoison));
  set_form(c, form);
  c.steps[0].add_tokens(rows, 64);
  c.tolerance = Tolerance::kExact;
  return c;
}

OpCase fused_case(const Placement& placement, DType dtype, int64_t rows, int64_t cols,
                  const char* form, bool post, Fill fill = Fill::kRandom) {
  OpCase c(case_name(placement, dtype, rows, cols) + ", " + form + (post ? ", post" : ""),
           "all_reduce_rms_norm", placement.tp);
  place(c, placement);
  c.in(c.arena("partial", dtype, Symbol::kTokens, cols, fill));
  const View residual = c.arena("residual", dtype, Symbol::kTokens, cols, fill);
  c.in(residual);
  c.in(c.vector_weight("weight", cols));
  if (post)
    c.in(c.vector_weight("post_weight", cols));
  else
    c.absent();
  c.out(c.arena("y", dtype, Symbol::kTokens, cols, Fill::kPoison));
  c.out(residual);
  c.attrs(std::string(R"({"eps": 1e-5, "form": ")") + form + "\"}");
  c.steps[0].add_tokens(rows, 64);
  return c;
}

void add_faults(Cases& cases) {
  // A device that never starts: its peers name one of its ranks.
  for (const char* kind : {"all_reduce", "all_reduce_rms_norm", "all_gather"}) {
    const Placement placement{"4 on two devices, one dead", 4, {0, 0, 1, 1}, {}};
    OpCase c = kind == std::string("all_gather") ? gather_case(placement, DType::kBf16, 5, 16)
               : kind == std::string("all_reduce")
                   ? reduce_case(kind, placement, DType::kBf16, 5, 16)
                   : fused_case(placement, DType::kBf16, 33, 64, "auto", false);
    c.dead = {false, true};
    c.expects_fault = true;
    c.timeout_ns = 300'000;
    cases.push_back(std::move(c));
  }
  // A rank that dies on a device it shares: its epochs fall back, the others go on.
  for (const int ms : {-1, 0}) {
    OpCase c(ms < 0 ? "after a dead rank on the same device" : "after a late rank", "stall", 3);
    place(c, kPlacements[2]);
    const View x = c.arena("x", DType::kF32, Symbol::kTokens, 16);
    c.in(x);
    c.out(x);
    c.attrs("{\"rank\": 2, \"ms\": " + std::to_string(ms) + "}");
    c.next_op("all_reduce");
    c.in(x);
    c.out(c.arena("y", DType::kF32, Symbol::kTokens, 16, Fill::kPoison));
    c.steps[0].add_tokens(3, 64);
    c.tolerance = Tolerance::kExact;
    c.expects_fault = ms < 0;
    c.timeout_ns = 300'000;
    cases.push_back(std::move(c));
  }
}

// The collective between ops that write what it reads, read what it wrote at once, and overwrite
// what it read: each device runs ahead as far as the barriers let it. form: for both reductions.
void add_pipelines(Cases& cases, const Placement& placement, int64_t rows, int64_t cols) {
  for (const std::string kind : {"all_reduce", "all_gather", "all_reduce_rms_norm"}) {
    OpCase c("between copies, " + case_name(placement, DType::kBf16, rows, cols) + " " + kind,
             "copy", placement.tp);
    place(c, placement);
    const int64_t out_cols = kind == "all_gather" ? cols * placement.tp : cols;
    const View first = c.arena("first", DType::kBf16, Symbol::kTokens, cols);
    const View second = c.arena("second", DType::kBf16, Symbol::kTokens, cols);
    const View x = c.arena("x", DType::kBf16, Symbol::kTokens, cols, Fill::kPoison);
    const View y = c.arena("y", DType::kBf16, Symbol::kTokens, out_cols, Fill::kPoison);
    const View residual = c.arena("residual", DType::kBf16, Symbol::kTokens, cols);
    const View weight = c.vector_weight("weight", cols);
    const auto copy = [&](View from, View to) {
      c.in(from);
      c.out(to);
    };
    const auto collect = [&](const char* result) {
      c.next_op(kind.c_str());
      c.in(x);
      if (kind == "all_reduce_rms_norm") {
        c.in(residual);
        c.in(weight);
        c.absent();
        c.attrs(R"({"eps": 1e-5})");
        c.out(y);
        c.out(residual);
      } else {
        c.out(y);
      }
      c.next_op("copy");
      copy(y, c.arena(result, DType::kBf16, Symbol::kTokens, out_cols, Fill::kPoison));
    };
    copy(first, x);
    collect("result of the first");
    c.next_op("copy");
    copy(second, x);
    collect("result of the second");
    c.steps[0].add_tokens(rows, 64);
    cases.push_back(std::move(c));
  }
}

void add_parts_and_groups(Cases& cases) {
  for (const int part : {0, 1, 2}) {  // part 1 is empty
    OpCase c = fused_case(kPlacements[2], DType::kF16, 50, 40, "auto", true);
    c.name += ", part " + std::to_string(part);
    c.use_part(part, 3);
    c.steps[0].part_bounds = {0, 41, 41, 50};
    cases.push_back(std::move(c));
  }
  // Two groups of two ranks, one of them with nothing to do, each device with a rank of both.
  OpCase c("two groups on two devices", "all_reduce", 2, 4);
  c.devices = {0, 1, 0, 1};
  c.device.sm_count = c.sm_budget = 8;
  c.in(c.arena("x", DType::kBf16, Symbol::kTokens, 24));
  c.out(c.arena("y", DType::kBf16, Symbol::kTokens, 24, Fill::kPoison));
  c.steps[0].add_tokens(9, 64);
  c.tolerance = Tolerance::kExact;
  cases.push_back(std::move(c));
}

void add_multicast(Cases& cases) {
  for (const DType dtype : kDTypes) {
    for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{3, 24}, {40, 520}}) {
      const char* form = "multicast";
      OpCase sum =
          reduce_case("all_reduce", kPlacements[2], dtype, rows, cols, form, Fill::kIntegers);
      OpCase own =
          reduce_case("reduce_scatter", kPlacements[4], dtype, rows, cols, form, Fill::kIntegers);
      OpCase fused = fused_case(kPlacements[5], dtype, rows, cols, form, true, Fill::kIntegers);
      OpCase gather = gather_case(kPlacements[3], dtype, rows, cols, form);
      for (OpCase* c : {&sum, &own, &fused, &gather}) {
        c->multicast = true;
        cases.push_back(std::move(*c));
      }
    }
  }
}

// By NCCL. Without counts all ranks do all rows of the bucket, and keep all of the residual.
void add_nccl(Cases& cases) {
  const auto add = [&](OpCase c, bool counts_known, const char* calls = nullptr) {
    c.nccl = true;
    c.counts_known = counts_known;
    if (counts_known) c.name += ", counts";
    if (calls != nullptr) c.expects_calls = calls;
    cases.push_back(std::move(c));
  };
  for (const DType dtype : kDTypes)
    for (const int placement : {1, 3, 4}) {
      const Placement& at = kPlacements[placement];
      add(reduce_case("all_reduce", at, dtype, 7, 40, "nccl", Fill::kIntegers), false);
      add(reduce_case("reduce_scatter", at, dtype, 12, 40, "nccl", Fill::kIntegers), true);
      add(reduce_case("reduce_scatter", at, dtype, 13, 40, "nccl", Fill::kIntegers), true);
      add(gather_case(at, dtype, 5, 24, "nccl"), false);
      add(fused_case(at, dtype, 7, 72, "nccl", true), false);
      add(fused_case(at, dtype, 36, 72, "nccl", false), true);  // shares are equal
      add(fused_case(at, dtype, 37, 72, "nccl", true), true);   // and not
      OpCase whole = fused_case(at, dtype, 37, 72, "nccl", false);
      whole.name += ", whole residual";
      whole.host_attrs = R"({"eps": 1e-5, "form": "one_shot"})";
      add(std::move(whole), false);
    }
  const Placement& two = kPlacements[4];
  add(reduce_case("all_reduce", two, DType::kBf16, 3, 16, "nccl", Fill::kIntegers), false,
      "all_reduce rank 0 count 48 type 9\nall_reduce rank 1 count 48 type 9\n");
  add(fused_case(two, DType::kF32, 16, 8, "nccl", false), true,
      "reduce_scatter rank 0 count 64 type 7\nall_gather rank 0 count 64 type 7\n"
      "reduce_scatter rank 1 count 64 type 7\nall_gather rank 1 count 64 type 7\n");
  add(fused_case(two, DType::kF16, 17, 8, "nccl", false), true,
      "reduce rank 0 count 64 type 6 root 0\nreduce rank 0 count 72 type 6 root 1\n"
      "broadcast rank 0 count 64 type 6 root 0\nbroadcast rank 0 count 72 type 6 root 1\n"
      "reduce rank 1 count 64 type 6 root 0\nreduce rank 1 count 72 type 6 root 1\n"
      "broadcast rank 1 count 64 type 6 root 0\nbroadcast rank 1 count 72 type 6 root 1\n");
  for (const int part : {0, 1, 2}) {  // part 1 is empty
    OpCase c = fused_case(kPlacements[2], DType::kF16, 50, 40, "nccl", true);
    c.name += ", part " + std::to_string(part);
    c.use_part(part, 3);
    c.steps[0].part_bounds = {0, 41, 41, 50};
    if (part == 1) c.expects_calls = "";
    add(c, true);
    if (part == 1) continue;
    c.name += ", captured";
    c.expects_calls.reset();
    c.expects_error = "form nccl cannot be had here: a part of a captured step";
    add(std::move(c), false);
  }
  // Two groups, one with nothing to do in this step.
  OpCase groups("two groups, nccl", "all_reduce", 2, 4);
  groups.devices = {0, 1, 0, 1};
  groups.device.sm_count = groups.sm_budget = 8;
  groups.in(groups.arena("x", DType::kF32, Symbol::kTokens, 24, Fill::kIntegers));
  groups.out(groups.arena("y", DType::kF32, Symbol::kTokens, 24, Fill::kPoison));
  groups.attrs(R"({"form": "nccl"})");
  groups.steps[1].add_tokens(9, 64);
  groups.tolerance = Tolerance::kExact;
  add(std::move(groups), true);
  // A device that never starts: the host's deadline ends it for all ranks.
  for (const char* kind : {"all_reduce", "all_gather"}) {
    const Placement placement{"4 on two devices, one dead", 4, {0, 0, 1, 1}, {}};
    OpCase c = kind == std::string("all_gather")
                   ? gather_case(placement, DType::kBf16, 5, 16, "nccl")
                   : reduce_case(kind, placement, DType::kBf16, 5, 16, "nccl");
    c.dead = {false, true};
    c.expects_fault = true;
    add(std::move(c), false);
  }
}

// Rows that are no whole 16-byte vectors: one element, a prime, two numbers as mean_squares writes
// them; parts that begin in the middle of a vector.
void add_narrow(Cases& cases) {
  for (const char* kind : {"all_reduce", "reduce_scatter"})
    for (const Placement& placement : kPlacements)
      for (const DType dtype : kDTypes)
        for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 2}, {5, 1}, {37, 7}})
          cases.push_back(reduce_case(kind, placement, dtype, rows, cols));
  for (const char* form : {"one_shot", "two_shot"})
    cases.push_back(reduce_case("all_reduce", kPlacements[5], DType::kF32, 1301, 2, form));
  // Beyond the limit of one shot.
  cases.push_back(reduce_case("all_reduce", kPlacements[2], DType::kF32, 9001, 2));
  for (const int part : {0, 1, 2}) {  // part 1 is empty
    OpCase c = reduce_case("all_reduce", kPlacements[3], DType::kF32, 50, 2);
    c.name += ", part " + std::to_string(part);
    c.use_part(part, 3);
    c.steps[0].part_bounds = {0, 41, 41, 50};
    cases.push_back(std::move(c));
  }
  OpCase by_nccl =
      reduce_case("all_reduce", kPlacements[4], DType::kF32, 7, 2, "nccl", Fill::kIntegers);
  by_nccl.nccl = true;
  cases.push_back(std::move(by_nccl));
  OpCase refused = reduce_case("all_reduce", kPlacements[2], DType::kF32, 7, 2, "multicast");
  refused.multicast = true;
  refused.name += ", refused";
  refused.expects_error = "a switch sums whole 16-byte vectors";
  cases.push_back(std::move(refused));
}

// A matmul with its collective: whole numbers, so that both halves are exact.
OpCase overlapped_case(const char* kind, const Placement& placement, DType dtype, DType sum,
                       int64_t rows, int groups, const std::string& more = "") {
  constexpr int64_t kDepth = 24, kCols = 40;
  const bool gathers = kind == std::string("all_gather_matmul");
  OpCase c(case_name(placement, dtype, rows, kCols) + " " + kind + " in " + std::to_string(groups) +
               more,
           kind, placement.tp);
  place(c, placement);
  const View x = c.arena("x", dtype, Symbol::kTokens, kDepth, Fill::kIntegers);
  c.in(x);
  c.in(c.matrix_weight("weight", dtype, kCols, kDepth));
  c.in(c.vector_weight("bias", kCols));
  for (CaseBuffer& buffer : c.buffers) buffer.fill = Fill::kIntegers;
  c.out(gathers ? x : c.arena("partial", dtype, Symbol::kTokens, kCols, Fill::kPoison));
  c.out(c.arena("y", gathers ? dtype : sum, Symbol::kTokens, kCols, Fill::kPoison));
  c.attrs("{\"groups\": " + std::to_string(groups) + ", \"bias_on\": \"rank0\"" + more + "}");
  c.steps[0].add_tokens(rows, 64);
  c.tolerance = Tolerance::kExact;
  return c;
}

void add_overlapped(Cases& cases) {
  constexpr const char* kKinds[] = {"matmul_all_reduce", "matmul_reduce_scatter",
                                    "all_gather_matmul"};
  for (const char* kind : kKinds) {
    for (const Placement& placement : kPlacements)
      for (const DType dtype : kDTypes) {
        cases.push_back(overlapped_case(kind, placement, dtype, dtype, 1, 2));
        cases.push_back(overlapped_case(kind, placement, dtype, DType::kF32, 37, 3));
      }
    for (const char* form : {", \"form\": \"one_shot\"", ", \"form\": \"two_shot\""})
      cases.push_back(
          overlapped_case(kind, kPlacements[5], DType::kBf16, DType::kF32, 300, 2, form));
    // A switch rounds sums to the type of their terms.
    OpCase switched = overlapped_case(kind, kPlacements[5], DType::kBf16, DType::kBf16, 40, 2,
                                      ", \"form\": \"multicast\"");
    switched.multicast = true;
    cases.push_back(std::move(switched));
    for (const int part : {0, 1, 2}) {  // part 1 is empty
      OpCase c = overlapped_case(kind, kPlacements[2], DType::kF16, DType::kF16, 50, 2);
      c.name += ", part " + std::to_string(part);
      c.use_part(part, 3);
      c.steps[0].part_bounds = {0, 41, 41, 50};
      cases.push_back(std::move(c));
    }
    // By NCCL and cuBLASLt, which take their sizes from the host.
    for (const int64_t rows : {72, 77}) {
      OpCase c = overlapped_case(kind, kPlacements[4], DType::kBf16, DType::kBf16, rows, 2,
                                 ", \"form\": \"nccl\"");
      c.nccl = c.cublaslt = c.counts_known = true;
      cases.push_back(std::move(c));
    }
    OpCase captured = overlapped_case(kind, kPlacements[4], DType::kBf16, DType::kBf16, 8, 2,
                                      ", \"form\": \"nccl\"");
    captured.nccl = true;
    captured.expects_error = "no size that NCCL could be told";
    cases.push_back(std::move(captured));
    OpCase dead =
        overlapped_case(kind, Placement{"4 on two devices, one dead", 4, {0, 0, 1, 1}, {}},
                        DType::kBf16, DType::kF32, 9, 2);
    dead.dead = {false, true};
    dead.expects_fault = true;
    dead.timeout_ns = 300'000;
    cases.push_back(std::move(dead));
  }
  for (const Placement& placement : kPlacements)
    for (const int groups : {1, 3}) {
      OpCase c(case_name(placement, DType::kBf16, 37, 40) + " in " + std::to_string(groups),
               "all_gather_rows", placement.tp);
      place(c, placement);
      const View x = c.arena("x", DType::kBf16, Symbol::kTokens, 40);
      c.in(x);
      c.out(x);
      c.attrs("{\"groups\": " + std::to_string(groups) + "}");
      c.steps[0].add_tokens(37, 64);
      c.tolerance = Tolerance::kExact;
      cases.push_back(std::move(c));
    }
  OpCase refused = overlapped_case("matmul_all_reduce", kPlacements[4], DType::kBf16, DType::kF32,
                                   9, 2, ", \"form\": \"nccl\"");
  refused.nccl = refused.counts_known = true;
  refused.expects_error = "form nccl cannot be had here";
  cases.push_back(std::move(refused));
}

// Forms that cannot be had are refused by name.
void add_refusals(Cases& cases) {
  const auto refuse = [&](OpCase c, const char* error) {
    c.name += ", refused";
    c.expects_error = error;
    cases.push_back(std::move(c));
  };
  refuse(reduce_case("all_reduce", kPlacements[1], DType::kF32, 3, 16, "nccl"),
         "form nccl cannot be had here: the case has none");
  refuse(gather_case(kPlacements[1], DType::kF32, 3, 16, "multicast"),
         "form multicast cannot be had here: the ranks have no multicast heap");
  OpCase scatter = reduce_case("reduce_scatter", kPlacements[1], DType::kF32, 3, 16, "nccl");
  scatter.nccl = true;
  refuse(std::move(scatter), "no size that NCCL could be told");
  for (const char* form : {"nccl", "multicast"}) {
    OpCase c = fused_case(kPlacements[2], DType::kBf16, 9, 16, form, false);
    c.nccl = c.multicast = c.deterministic = true;
    refuse(std::move(c), "not deterministic");
  }
}

}  // namespace

void add_collective_cases(Cases& cases) {
  add_nccl(cases);
  add_refusals(cases);
  add_narrow(cases);
  for (const Placement& placement : kPlacements)
    for (const DType dtype : kDTypes) {
      cases.push_back(reduce_case("all_reduce", placement, dtype, 1, 8));
      cases.push_back(reduce_case("all_reduce", placement, dtype, 7, 520));
      cases.push_back(reduce_case("reduce_scatter", placement, dtype, 2, 8));
      cases.push_back(reduce_case("reduce_scatter", placement, dtype, 13, 264));
      cases.push_back(gather_case(placement, dtype, 1, 16));
      cases.push_back(gather_case(placement, dtype, 5, 264));
      cases.push_back(fused_case(placement, dtype, 1, 8, "auto", false));
      cases.push_back(fused_case(placement, dtype, 7, 2056, "auto", true));
      cases.push_back(fused_case(placement, dtype, 37, 136, "auto", false));
      cases.push_back(fused_case(placement, dtype, 5, 64, "two_shot", true));
      cases.push_back(fused_case(placement, dtype, 40, 64, "one_shot", false));
    }
  // Beyond the limit of one shot for four ranks.
  cases.push_back(reduce_case("all_reduce", kPlacements[2], DType::kF32, 101, 1024));
  cases.push_back(reduce_case("all_reduce", kPlacements[5], DType::kBf16, 201, 1024));
  // Many collectives on one pad, across the wrap of the epochs.
  OpCase wrap = fused_case(kPlacements[2], DType::kF32, 37, 64, "auto", false);
  wrap.name += ", epochs wrap";
  wrap.first_epoch = 0xfffffffbu;
  wrap.repeats = 5;
  cases.push_back(std::move(wrap));
  for (const Placement& placement : {Placement{"2 devices", 2, {0, 1}, {0, 2}},
                                     Placement{"4 devices", 4, {0, 1, 2, 3}, {3, 0, 9, 0}},
                                     Placement{"2 devices of 2", 4, {0, 1, 0, 1}, {1, 0}}}) {
    add_pipelines(cases, placement, 3, 136);    // one shot
    add_pipelines(cases, placement, 70, 3072);  // two shots
  }
  add_parts_and_groups(cases);
  add_multicast(cases);
  add_overlapped(cases);
  add_faults(cases);
}

}  // namespace nanoweave::check
