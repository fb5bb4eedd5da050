// Json: a small immutable value and a strict parser (RFC 8259) with a depth limit of 64 and a
// size limit; programs and manifests arrive as JSON text so that the native driver can load what
// Node recorded. Parse errors are ERR_PROGRAM with the byte offset.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nanoweave {

class Json {
 public:
  enum class Kind { kNull, kBool, kNumber, kString, kArray, kObject };

  static Json parse(std::string_view text);

  Kind kind() const { return kind_; }
  bool is_null() const { return kind_ == Kind::kNull; }

  // Typed access; ERR_PROGRAM naming the path of the value when it is of another kind.
  bool as_bool() const;
  double as_number() const;
  int64_t as_int() const;  // an integral number within ±2^53
  const std::string& as_string() const;
  const std::vector<Json>& items() const;                            // array
  const std::vector<std::pair<std::string, Json>>& members() const;  // object, in file order

  const Json* find(std::string_view key) const;  // object member or null
  const Json& at(std::string_view key) const;    // ERR_PROGRAM when absent

 private:
  friend class JsonParser;
  Kind kind_ = Kind::kNull;
  bool bool_ = false;
  double number_ = 0;
  std::string string_;
  std::vector<Json> items_;
  std::vector<std::pair<std::string, Json>> members_;
};

}  // namespace nanoweave
