#include "ops/routing.h"

#include "ops/experts.h"

namespace nanoweave {

namespace {

Routing read_attributes(const OpInstance& op) {
  const std::string score = op.string_or("score", "");
  op.require(score == "softmax" || score == "sigmoid" || score == "softmax_chosen",
             "score is '%s', not 'softmax', 'sigmoid' or 'softmax_chosen'", score.c_str());
  const std::string group_score = op.string_or("group_score", "max");
  op.require(group_score == "max" || group_score == "top2",
             "group_score is '%s', not 'max' or 'top2'", group_score.c_str());
  const int64_t groups = op.integer_or("groups", 1);
  return {.score = score == "softmax"   ? Score::kSoftmax
                   : score == "sigmoid" ? Score::kSigmoid
                                        : Score::kSoftmaxChosen,
          .normalise = op.boolean_or("normalise", false),
          .top2 = group_score == "top2",
          .scale = static_cast<float>(op.number_or("scale", 1)),
          .experts = op.input(0)->cols(),
          .choices = require_choices(op, op.output(0), DType::kI32),
          .groups = groups,
          .top_groups = op.integer_or("top_groups", groups)};
}

}  // namespace

Routing read_routing(const OpInstance& op) {
  const BufferDesc& logits = *op.input(0);
  op.require_activation(logits, -1);
  op.require(logits.dtype == DType::kF32 && logits.shape[0].symbol == Symbol::kTokens,
             "buffer %s must be [T, experts] f32", logits.name.c_str());
  op.require(logits.cols() <= kMaxExperts, "more than %lld experts",
             static_cast<long long>(kMaxExperts));
  op.require_weight_vector(op.input(1), logits.cols());
  op.require_same_part();
  const Routing routing = read_attributes(op);
  op.require(require_choices(op, op.output(1), DType::kF32) == routing.choices,
             "ids and weights differ in choices");
  op.require(routing.choices <= routing.experts, "more choices than experts");
  op.require(routing.groups > 0 && routing.experts % routing.groups == 0,
             "groups must divide the experts");
  op.require(routing.top_groups > 0 && routing.top_groups <= routing.groups,
             "top_groups must be within 1..groups");
  op.require(routing.choices <= routing.top_groups * routing.group_size(),
             "more choices than top_groups have experts");
  op.require(!routing.top2 || routing.group_size() >= 2, "groups have fewer than two experts");
  return routing;
}

}  // namespace nanoweave
