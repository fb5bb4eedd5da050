// Whether two function types are called alike: as many parameters, each of the same size and kind.
#pragma once

#include <cstddef>
#include <type_traits>

namespace nanoweave {

template <typename Ours, typename Theirs>
constexpr bool same_parameter() {
  return sizeof(Ours) == sizeof(Theirs) && std::is_class_v<Ours> == std::is_class_v<Theirs> &&
         std::is_pointer_v<Ours> == std::is_pointer_v<Theirs> &&
         std::is_floating_point_v<Ours> == std::is_floating_point_v<Theirs>;
}

template <typename Ours, typename Theirs>
struct SameAbi : std::false_type {};

template <typename R, typename... A, typename S, typename... B>
  requires(sizeof...(A) == sizeof...(B))
struct SameAbi<R(A...), S(B...)>
    : std::bool_constant<same_parameter<R, S>() && (same_parameter<A, B>() && ...)> {};

}  // namespace nanoweave
