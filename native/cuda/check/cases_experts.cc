// Cases of the ops of routed experts: routings that are random, empty, skewed and wrong, over the
// layouts of ranks, groups and slices; late and dead devices; epochs that wrap.
#include <algorithm>
#include <numeric>

#include "cuda/check/op_case.h"

namespace nanoweave::check {

namespace {

constexpr DType kDTypes[] = {DType::kF32, DType::kBf16, DType::kF16};

// ---- Routing ------------------------------------------------------------------------------------

struct RouteShape {
  const char* name;
  int64_t rows, experts, choices;
  const char* attrs;
  bool bias = false;
  bool odd = false;  // logits that are NaN, infinite and equal
};

const RouteShape kRoutes[] = {
    {"softmax", 7, 8, 2, R"({"score": "softmax", "normalise": true})"},
    {"softmax, one", 1, 1, 1, R"({"score": "softmax"})"},
    {"softmax, wide", 5, 131, 8, R"({"score": "softmax"})"},
    {"softmax, all", 3, 32, 32, R"({"score": "softmax", "normalise": true, "scale": 2.5})"},
    {"softmax, groups", 9, 16, 4, R"({"score": "softmax", "groups": 4, "top_groups": 2})"},
    {"sigmoid", 6, 48, 6, R"({"score": "sigmoid", "normalise": true, "scale": 2.5})", true},
    {"sigmoid, groups", 11, 64, 8,
     R"({"score": "sigmoid", "normalise": true, "groups": 8, "top_groups": 4,
         "group_score": "top2"})",
     true},
    {"chosen", 13, 33, 4, R"({"score": "softmax_chosen"})", true},
    {"widest", 2, 1024, 32, R"({"score": "sigmoid"})"},
    {"softmax, odd", 40, 11, 5, R"({"score": "softmax", "normalise": true})", false, true},
    {"sigmoid, odd", 40, 24, 6,
     R"({"score": "sigmoid", "groups": 6, "top_groups": 2, "group_score": "top2"})", false, true},
    {"chosen, odd", 40, 7, 7, R"({"score": "softmax_chosen"})", false, true},
};

void fill_odd_logits(std::byte* to, int64_t count, int, std::mt19937_64& random) {
  auto* values = reinterpret_cast<float*>(to);
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t kind = random() % 12;
    values[i] = kind == 0   ? NAN
                : kind == 1 ? -INFINITY
                : kind == 2 ? INFINITY
                            : static_cast<float>(static_cast<int64_t>(random() % 7) - 3);
  }
}

OpCase route_case(const RouteShape& shape) {
  OpCase c(std::string(shape.name) + " " + std::to_string(shape.rows) + "x" +
               std::to_string(shape.experts) + " top " + std::to_string(shape.choices),
           "moe_route");
  c.in(c.arena("logits", DType::kF32, Symbol::kTokens, shape.experts, Fill::kRandom, 4));
  if (shape.odd) c.buffers.back().values = fill_odd_logits;
  if (shape.bias)
    c.in(c.vector_weight("bias", shape.experts, 0.2f));
  else
    c.absent();
  c.out(c.arena("ids", DType::kI32, Symbol::kTokens, shape.choices, Fill::kPoison));
  c.out(c.arena("weights", DType::kF32, Symbol::kTokens, shape.choices, Fill::kPoison));
  c.attrs(shape.attrs);
  c.steps[0].add_tokens(shape.rows, 64);
  return c;
}

void add_routes(Cases& cases) {
  for (const RouteShape& shape : kRoutes) cases.push_back(route_case(shape));
  for (const int part : {0, 1, 2}) {  // part 1 is empty
    OpCase c = route_case(kRoutes[6]);
    c.name += ", part " + std::to_string(part);
    c.use_part(part, 3);
    c.steps[0].part_bounds = {0, 4, 4, 11};
    cases.push_back(std::move(c));
  }
  OpCase padding("padding rows", "moe_route");
  padding.program.limits.num_blocks = 13;
  padding.program.limits.block_size = 4;
  padding.program.limits.max_blocks_per_seq = 6;
  padding.in(padding.arena("logits", DType::kF32, Symbol::kTokens, 9));
  padding.absent();
  padding.out(padding.arena("ids", DType::kI32, Symbol::kTokens, 3, Fill::kPoison));
  padding.out(padding.arena("weights", DType::kF32, Symbol::kTokens, 3, Fill::kPoison));
  padding.attrs(R"({"score": "softmax"})");
  padding.steps[0].add_sequence(padding.program.limits, 5, 7, 3);
  cases.push_back(std::move(padding));
}

// ---- Rows by expert -----------------------------------------------------------------------------

// Rows of every expert, and room for more.
struct Counts {
  std::vector<int32_t> of;

  int64_t rows() const { return std::accumulate(of.begin(), of.end(), int64_t{0}); }
  std::string name() const {
    std::string text = "{ ";
    for (const int32_t count : of) text.append(std::to_string(count)).append(" ");
    return text.append("}");
  }
  // As the values of an offsets buffer.
  auto fill() const {
    return [of = of](std::byte* to, int64_t, int, std::mt19937_64&) {
      auto* offsets = reinterpret_cast<int32_t*>(to);
      offsets[0] = 0;
      std::partial_sum(of.begin(), of.end(), offsets + 1);
    };
  }
};

// `tokens` decides the bucket, and so the kernel.
OpCase matmul_case(const Counts& counts, int64_t k, int64_t n, DType dtype, DType weight, DType y,
                   int64_t tokens, bool bias) {
  std::string name = counts.name();
  name.append(" ").append(std::to_string(k)).append("->").append(std::to_string(n)).append(" ");
  name.append(dtype_name(dtype)).append("·").append(dtype_name(weight)).append(", ");
  name.append(std::to_string(tokens)).append(bias ? " tokens, bias" : " tokens");
  OpCase c(name, "grouped_matmul");
  const auto experts = static_cast<int64_t>(counts.of.size());
  const int64_t rows = counts.rows() + 2, padded = (n + 15) / 16 * 16;
  c.in(c.fixed("x", dtype, rows, k));
  c.in(c.offsets("offsets", experts));
  c.buffers.back().values = counts.fill();
  c.in(c.matrix_weight("weight", weight, experts * padded, k));
  if (bias)
    c.in(c.vector_weight("bias", experts * padded));
  else
    c.absent();
  c.out(c.fixed("y", y, rows, n, Fill::kPoison));
  c.steps[0].add_tokens(tokens, 64);
  return c;
}

void add_grouped_matmuls(Cases& cases) {
  const auto add = [&](OpCase c) { cases.push_back(std::move(c)); };
  for (const DType dtype : {DType::kBf16, DType::kF16})
    for (const int64_t tokens : {8, 16, 32, 40}) {
      add(matmul_case({{3, 0, 1, 8}}, 72, 50, dtype, dtype, dtype, tokens, true));
      add(matmul_case({{0, 0, 0}}, 64, 16, dtype, dtype, dtype, tokens, false));
      add(matmul_case({{35, 2}}, 200, 33, dtype, dtype, DType::kF32, tokens, false));
    }
  // Large tiles beside small ones; tiles that lie over the end.
  for (const DType dtype : {DType::kBf16, DType::kF16})
    add(matmul_case({{130, 5, 0, 70, 300}}, 96, 264, dtype, dtype, dtype, 64, true));
  OpCase same = matmul_case({{9, 20}}, 64, 40, DType::kBf16, DType::kBf16, DType::kBf16, 8, false);
  same.name += ", deterministic";
  same.deterministic = true;
  add(std::move(same));
  // One row, a prime, every dtype.
  for (const DType dtype : kDTypes)
    for (const DType weight : kDTypes) {
      add(matmul_case({{1, 0, 67}}, 29, 13, dtype, weight, dtype, 5, true));
      if (dtype != weight) add(matmul_case({{4, 3}}, 32, 16, dtype, weight, DType::kF32, 5, false));
    }
  std::vector<int32_t> many(700, 0);
  many[0] = many[350] = many[699] = 2;
  OpCase wide = matmul_case({many}, 16, 8, DType::kBf16, DType::kBf16, DType::kBf16, 64, false);
  wide.name = "700 experts, three of them with rows";
  add(std::move(wide));
}

void add_grouped_glus(Cases& cases) {
  for (const char* activation : {"silu", "gelu_tanh", "clamped_silu"})
    for (const DType dtype : kDTypes)
      for (const int64_t width : {13, 64}) {
        const Counts counts{{2, 0, 31, 1}};
        OpCase c(std::string(activation) + " " + dtype_name(dtype) + " " + std::to_string(width),
                 "grouped_glu");
        c.in(c.fixed("gate_up", dtype, counts.rows() + 2, 2 * width, Fill::kRandom, 3));
        c.in(c.offsets("offsets", 4));
        c.buffers.back().values = counts.fill();
        c.out(c.fixed("y", dtype, counts.rows() + 2, width, Fill::kPoison));
        c.attrs(std::string(R"({"activation": ")") + activation +
                R"(", "alpha": 1.702, "limit": 1.5})");
        c.steps[0].add_tokens(3, 64);
        cases.push_back(std::move(c));
      }
}

// ---- Layouts and routings -----------------------------------------------------------------------

struct Layout {
  const char* name;
  int tp, world, ep;
  std::vector<int> devices;
  std::vector<double> late_us;
};

const Layout kLayouts[] = {
    {"1 rank", 1, 1, 1, {}, {}},
    {"2 groups", 1, 2, 2, {}, {}},
    {"tp 2 ep 2", 2, 2, 2, {}, {}},
    {"4 groups", 1, 4, 4, {0, 1, 0, 1}, {}},
    {"2 groups of 2", 2, 4, 4, {0, 1, 2, 3}, {0, 35, 0, 0}},
    {"2 groups of 2, slices", 2, 4, 2, {0, 0, 1, 1}, {20, 0}},
    {"tp 4 ep 1", 4, 4, 1, {0, 1, 1, 1}, {}},
    {"4 groups, slices", 1, 4, 2, {}, {}},
};

enum class Routes { kDistinct, kAnything, kOneExpert, kOneRank, kNone };
const char* const kRouteNames[] = {"distinct", "anything", "one expert", "one rank", "none"};

// ids [T, k] of a group.
auto fill_ids(Routes routes, int64_t experts, int64_t k, int64_t per_position) {
  return [=](std::byte* to, int64_t count, int, std::mt19937_64& random) {
    auto* ids = reinterpret_cast<int32_t*>(to);
    std::vector<int32_t> all(experts);
    std::iota(all.begin(), all.end(), 0);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t j = i % k;
      if (j == 0) std::shuffle(all.begin(), all.end(), random);
      const auto expert = static_cast<int32_t>(random() % experts);
      switch (routes) {
        case Routes::kDistinct:
          ids[i] = j < experts && random() % 9 != 0 ? all[j] : -1;
          break;
        case Routes::kAnything:  // duplicates, and numbers of no expert
          ids[i] = random() % 5 == 0 ? expert + static_cast<int32_t>(experts) : expert - 1;
          break;
        case Routes::kOneExpert:
          ids[i] = static_cast<int32_t>(experts) - 1;
          break;
        case Routes::kOneRank:
          ids[i] = static_cast<int32_t>(random() % per_position);
          break;
        case Routes::kNone:
          ids[i] = -1;
          break;
      }
    }
  };
}

// ---- Placement ----------------------------------------------------------------------------------

OpCase place_case(const Layout& layout, std::vector<int64_t> tokens, int64_t experts, int64_t k,
                  Routes routes) {
  const int64_t per_position = (experts + layout.ep - 1) / layout.ep + 1;  // one to spare
  OpCase c(std::string(layout.name) + ", " + std::to_string(k) + " of " + std::to_string(experts) +
               ", " + kRouteNames[static_cast<int>(routes)],
           "moe_place", layout.tp, layout.world);
  c.program.limits.experts = {.tables = 3,
                              .count = experts,
                              .slots = layout.ep * per_position,
                              .positions = layout.ep,
                              .choices = k};
  for (int64_t group = 0; group < layout.world / layout.tp; ++group)
    c.steps[group].add_tokens(tokens[group % tokens.size()], 64);
  c.devices = layout.devices;
  c.late_us = layout.late_us;
  c.in(c.arena("ids", DType::kI32, Symbol::kTokens, k));
  c.buffers.back().same_in_group = true;
  c.buffers.back().values = fill_ids(routes, experts, k, per_position);
  c.in(c.matrix_weight("gate_up", DType::kF32, per_position * 32, 16));
  c.in(c.matrix_weight("down", DType::kF32, per_position * 16, 16));
  c.absent();
  c.absent();
  c.out(c.arena("slots", DType::kI32, Symbol::kTokens, k, Fill::kPoison));
  c.attrs(R"({"table": 1})");
  c.repeats = 2;  // counts add up
  c.tolerance = Tolerance::kExact;
  return c;
}

void add_placements(Cases& cases) {
  for (const Layout& layout : kLayouts)
    for (const Routes routes : {Routes::kDistinct, Routes::kAnything, Routes::kNone})
      cases.push_back(place_case(layout, {7, 0, 3, 13}, 5, 4, routes));
  // More choices than a block has threads, more experts too, and all of them for one.
  cases.push_back(place_case(kLayouts[1], {301, 77}, 37, 8, Routes::kAnything));
  cases.push_back(place_case(kLayouts[4], {1, 67}, 601, 32, Routes::kDistinct));
  cases.push_back(place_case(kLayouts[2], {523}, 64, 1, Routes::kOneExpert));
  for (const int part : {0, 1, 2}) {  // part 1 is empty in every group
    OpCase c = place_case(kLayouts[1], {9, 6}, 8, 2, Routes::kDistinct);
    c.name += ", part " + std::to_string(part);
    c.use_part(part, 3);
    c.steps[0].part_bounds = {0, 4, 4, 9};
    c.steps[1].part_bounds = {0, 0, 0, 6};
    cases.push_back(std::move(c));
  }
}

// ---- Dispatch and combine -----------------------------------------------------------------------

struct MoeShape {
  Layout layout;
  DType dtype;
  std::vector<int64_t> tokens;  // by group, in turn
  int64_t hidden, experts, choices;
  Routes routes;
};

// Buffers that dispatch leaves for the ops behind it.
struct Dispatched {
  View ids, rows, grouped, offsets;
  int64_t received, local;
  std::string attrs;
};

Dispatched add_dispatch(OpCase& c, const MoeShape& shape) {
  const Layout& layout = shape.layout;
  const int64_t k = shape.choices, groups = layout.world / layout.tp;
  const int64_t most = *std::max_element(shape.tokens.begin(), shape.tokens.end());
  c.program.limits.max_tokens = most + 3;
  for (int64_t group = 0; group < groups; ++group)
    c.steps[group].add_tokens(shape.tokens[group % shape.tokens.size()], 64);
  c.devices = layout.devices;
  c.late_us = layout.late_us;
  c.device.sm_count = c.sm_budget = 12;
  const int64_t received = groups * c.program.limits.max_tokens;
  const int64_t local = (shape.experts + layout.ep - 1) / layout.ep;
  const std::string attrs = "{\"experts\": " + std::to_string(shape.experts) +
                            ", \"ep\": " + std::to_string(layout.ep) + "}";
  c.in(c.arena("x", shape.dtype, Symbol::kTokens, shape.hidden));
  c.buffers.back().same_in_group = true;
  const View ids = c.arena("ids", DType::kI32, Symbol::kTokens, k);
  c.buffers.back().same_in_group = true;
  c.buffers.back().values = fill_ids(shape.routes, shape.experts, k, local);
  c.in(ids);
  c.out(c.fixed("hidden", shape.dtype, received, shape.hidden, Fill::kPoison));
  c.out(c.fixed("rx_ids", DType::kI32, received, k, Fill::kPoison));
  c.out(c.fixed("counts", DType::kI32, 1, groups, Fill::kPoison));
  const View rows = c.fixed("rows", DType::kI32, received, k, Fill::kPoison);
  const View grouped = c.fixed("grouped", shape.dtype, received * k, shape.hidden, Fill::kPoison);
  const View offsets = c.offsets("offsets", local);
  for (const View& view : {rows, grouped, offsets}) c.out(view);
  c.attrs(attrs);
  return {ids, rows, grouped, offsets, received, local, attrs};
}

std::string moe_name(const MoeShape& shape) {
  return std::string(shape.layout.name) + ", " + dtype_name(shape.dtype) + " " +
         std::to_string(shape.hidden) + ", " + std::to_string(shape.choices) + " of " +
         std::to_string(shape.experts) + ", " + kRouteNames[static_cast<int>(shape.routes)];
}

OpCase dispatch_case(const MoeShape& shape) {
  OpCase c(moe_name(shape), "moe_dispatch", shape.layout.tp, shape.layout.world);
  add_dispatch(c, shape);
  c.tolerance = Tolerance::kExact;
  return c;
}

void add_combine(OpCase& c, const MoeShape& shape, const Dispatched& from, View expert_out,
                 bool shared, bool gate) {
  c.next_op("moe_combine");
  c.in(expert_out);
  c.in(from.rows);
  c.in(from.ids);
  c.in(c.arena("weights", DType::kF32, Symbol::kTokens, shape.choices));
  c.buffers.back().same_in_group = true;
  if (shared)
    c.in(c.arena("shared", shape.dtype, Symbol::kTokens, shape.hidden));
  else
    c.absent();
  if (gate) {
    c.in(c.arena("shared_gate", DType::kF32, Symbol::kTokens, 1));
    c.buffers.back().same_in_group = true;
  } else {
    c.absent();
  }
  c.out(c.arena("y", shape.dtype, Symbol::kTokens, shape.hidden, Fill::kPoison));
  c.attrs(from.attrs);
}

// Experts that return what they get: the sums alone.
OpCase combine_case(const MoeShape& shape, bool shared, bool gate) {
  OpCase c(moe_name(shape) + (shared ? ", shared" : "") + (gate ? ", gate" : ""), "moe_dispatch",
           shape.layout.tp, shape.layout.world);
  const Dispatched from = add_dispatch(c, shape);
  add_combine(c, shape, from, from.grouped, shared, gate);
  return c;
}

// The whole block of experts.
OpCase layer_case(const MoeShape& shape, int64_t width) {
  OpCase c("layer, " + moe_name(shape), "moe_dispatch", shape.layout.tp, shape.layout.world);
  const Dispatched from = add_dispatch(c, shape);
  const int64_t rows = from.received * shape.choices;
  const View gate_up = c.fixed("gate_up", shape.dtype, rows, 2 * width, Fill::kPoison);
  const View act = c.fixed("act", shape.dtype, rows, width, Fill::kPoison);
  const View down = c.fixed("down", shape.dtype, rows, shape.hidden, Fill::kPoison);
  const auto matmul = [&](const char* weight, View x, View y, int64_t n, int64_t k) {
    c.next_op("grouped_matmul");
    c.in(x);
    c.in(from.offsets);
    c.in(c.matrix_weight(weight, shape.dtype, from.local * ((n + 15) / 16 * 16), k, 0.3f));
    c.absent();
    c.out(y);
  };
  matmul("gate_up_weight", from.grouped, gate_up, 2 * width, shape.hidden);
  c.next_op("grouped_glu");
  c.in(gate_up);
  c.in(from.offsets);
  c.out(act);
  c.attrs(R"({"activation": "silu"})");
  matmul("down_weight", act, down, shape.hidden, width);
  add_combine(c, shape, from, down, true, true);
  return c;
}

void add_layouts(Cases& cases) {
  const Routes routes[] = {Routes::kDistinct, Routes::kAnything, Routes::kOneExpert,
                           Routes::kOneRank, Routes::kNone};
  size_t turn = 0;
  for (const Layout& layout : kLayouts)
    for (const Routes route : routes) {
      const DType dtype = kDTypes[turn++ % 3];
      // Not divisible by the ranks, more choices than local experts.
      const MoeShape shape{layout, dtype, {7, 0, 3, 13}, 24, 5, 4, route};
      cases.push_back(dispatch_case(shape));
      if (route != Routes::kNone)
        cases.push_back(combine_case(shape, turn % 2 == 0, turn % 4 == 0));
    }
  for (const Layout& layout : kLayouts)
    cases.push_back(layer_case({layout, DType::kBf16, {9, 4}, 64, 8, 2, Routes::kDistinct}, 32));
  cases.push_back(
      layer_case({kLayouts[7], DType::kF32, {5, 1, 0, 2}, 40, 7, 3, Routes::kAnything}, 24));
}

// Several chunks of choices, more experts than threads of the scan, rows of several pieces.
void add_large(Cases& cases) {
  const MoeShape many{kLayouts[1], DType::kBf16, {301, 77}, 16, 37, 8, Routes::kAnything};
  cases.push_back(dispatch_case(many));
  cases.push_back(combine_case(many, true, false));
  cases.push_back(dispatch_case({kLayouts[0], DType::kF16, {95}, 8, 601, 32, Routes::kDistinct}));
  const MoeShape wide{kLayouts[3], DType::kF32, {3, 0, 1, 2}, 1096, 4, 2, Routes::kDistinct};
  cases.push_back(dispatch_case(wide));
  cases.push_back(combine_case(wide, false, false));
  // Nobody has tokens but the last group.
  cases.push_back(combine_case(
      {kLayouts[3], DType::kBf16, {0, 0, 0, 2}, 24, 8, 2, Routes::kDistinct}, true, false));
}

void add_protocol(Cases& cases) {
  const MoeShape shape{kLayouts[3], DType::kBf16, {7, 0, 3, 13}, 24, 5, 4, Routes::kDistinct};
  OpCase wrap = combine_case(shape, true, false);
  wrap.name += ", epochs wrap";
  wrap.first_epoch = 0xfffffffbu;
  wrap.repeats = 5;
  cases.push_back(std::move(wrap));
  for (const bool combines : {false, true}) {
    OpCase dead = combines ? combine_case(shape, false, false) : dispatch_case(shape);
    dead.name += ", one device dead";
    dead.dead = {false, true};
    dead.expects_fault = true;
    dead.timeout_ns = 300'000;
    cases.push_back(std::move(dead));
  }
  for (const int part : {0, 1, 2}) {  // part 1 is empty in every group
    OpCase c =
        combine_case({kLayouts[5], DType::kF16, {9, 6}, 16, 8, 2, Routes::kDistinct}, true, true);
    c.name += ", part " + std::to_string(part);
    c.use_part(part, 3);
    c.steps[0].part_bounds = {0, 4, 4, 9};
    c.steps[1].part_bounds = {0, 0, 0, 6};
    cases.push_back(std::move(c));
  }
}

}  // namespace

void add_expert_cases(Cases& cases) {
  add_routes(cases);
  add_grouped_matmuls(cases);
  add_grouped_glus(cases);
  add_placements(cases);
  add_layouts(cases);
  add_large(cases);
  add_protocol(cases);
}

}  // namespace nanoweave::check
