// Json: a small immutable value and a strict parser (RFC 8259) with limits on depth (64), text
// (256 MiB) and number of values; programs and manifests arrive as JSON text so that the native
// driver can load what Node recorded. Errors are ERR_PROGRAM with the byte offset in the text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace nanoweave {

class Json {
 public:
  enum class Kind { kNull, kBool, kNumber, kString, kArray, kObject };
  using Member = std::pair<std::string, Json>;

  static Json parse(std::string_view text);

  Kind kind() const { return static_cast<Kind>(value_.index()); }
  bool is_null() const { return kind() == Kind::kNull; }

  // Typed access; ERR_PROGRAM naming the value's place in the text when it is of another kind.
  bool as_bool() const;
  double as_number() const;
  int64_t as_int() const;  // an integral number within ±2^53
  const std::string& as_string() const;
  const std::vector<Json>& items() const;      // array
  const std::vector<Member>& members() const;  // object, in file order

  const Json* find(std::string_view key) const;  // object member or null
  const Json& at(std::string_view key) const;    // ERR_PROGRAM when absent

 private:
  friend class JsonParser;
  [[noreturn]] void wrong_kind(const char* wanted) const;

  // In the order of Kind.
  std::variant<std::monostate, bool, double, std::string, std::vector<Json>, std::vector<Member>>
      value_;
  int64_t offset_ = 0;  // byte of the text where the value begins
};

}  // namespace nanoweave
