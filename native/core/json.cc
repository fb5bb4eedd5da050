// The parser is recursive descent over a bounded depth; numbers are checked against the grammar
// and then converted by from_chars, so "01", "+1", "NaN" and "1." are refused.
#include "core/json.h"

#include <charconv>
#include <cmath>
#include <unordered_set>

#include "core/error.h"

namespace nanoweave {

namespace {

constexpr int kMaxDepth = 64;
constexpr size_t kMaxTextBytes = size_t{256} << 20;
constexpr int64_t kMaxValues = 16'000'000;
constexpr double kMaxExactInteger = 9007199254740992.0;  // 2^53

const char* kind_name(Json::Kind kind) {
  constexpr const char* kNames[] = {"null", "a boolean", "a number",
                                    "text", "an array",  "an object"};
  return kNames[static_cast<int>(kind)];
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

}  // namespace

class JsonParser {
 public:
  explicit JsonParser(std::string_view text) : text_(text) {}

  Json parse() {
    if (text_.size() > kMaxTextBytes) refuse("the text is larger than 256 MiB");
    Json value = parse_value(0);
    skip_space();
    if (position_ != text_.size()) refuse("text after the end of the value");
    return value;
  }

 private:
  [[noreturn]] void refuse(const char* why) const {
    fail(ErrorCode::kProgram, "malformed JSON at byte %zu: %s", position_, why);
  }

  char peek() const { return position_ < text_.size() ? text_[position_] : '\0'; }

  void skip_space() {
    while (position_ < text_.size()) {
      const char c = text_[position_];
      if (c != ' ' && c != '\n' && c != '\t' && c != '\r') return;
      ++position_;
    }
  }

  void expect_word(std::string_view word) {
    if (text_.substr(position_, word.size()) != word) refuse("unknown word");
    position_ += word.size();
  }

  Json parse_value(int depth) {
    if (depth > kMaxDepth) refuse("nested deeper than 64 levels");
    if (++values_ > kMaxValues) refuse("more than 16 million values");
    skip_space();
    Json json;
    json.offset_ = static_cast<int64_t>(position_);
    if (position_ == text_.size()) refuse("the text ends where a value should begin");
    switch (text_[position_]) {
      case '{':
        parse_object(json.value_.emplace<std::vector<Json::Member>>(), depth);
        break;
      case '[':
        parse_array(json.value_.emplace<std::vector<Json>>(), depth);
        break;
      case '"':
        parse_string(json.value_.emplace<std::string>());
        break;
      case 't':
        expect_word("true");
        json.value_ = true;
        break;
      case 'f':
        expect_word("false");
        json.value_ = false;
        break;
      case 'n':
        expect_word("null");
        break;
      default:
        json.value_ = parse_number();
    }
    return json;
  }

  void parse_object(std::vector<Json::Member>& members, int depth) {
    ++position_;  // {
    skip_space();
    if (peek() == '}') {
      ++position_;
      return;
    }
    for (;;) {
      skip_space();
      if (peek() != '"') refuse("a member's name must be a string");
      std::string key;
      parse_string(key);
      skip_space();
      if (peek() != ':') refuse("expected ':' after a member's name");
      ++position_;
      Json value = parse_value(depth + 1);
      members.emplace_back(std::move(key), std::move(value));
      skip_space();
      const char c = peek();
      if (c != ',' && c != '}') refuse("expected ',' or '}' in an object");
      ++position_;
      if (c == '}') break;
    }
    refuse_duplicates(members);
  }

  void refuse_duplicates(const std::vector<Json::Member>& members) const {
    if (members.size() <= 16) {
      for (size_t i = 0; i < members.size(); ++i)
        for (size_t j = 0; j < i; ++j)
          if (members[i].first == members[j].first) refuse("an object repeats a member");
      return;
    }
    std::unordered_set<std::string_view> seen;
    for (const auto& [key, value] : members)
      if (!seen.insert(key).second) refuse("an object repeats a member");
  }

  void parse_array(std::vector<Json>& items, int depth) {
    ++position_;  // [
    skip_space();
    if (peek() == ']') {
      ++position_;
      return;
    }
    for (;;) {
      items.push_back(parse_value(depth + 1));
      skip_space();
      const char c = peek();
      if (c != ',' && c != ']') refuse("expected ',' or ']' in an array");
      ++position_;
      if (c == ']') return;
    }
  }

  void parse_string(std::string& out) {
    ++position_;  // opening quote
    for (;;) {
      const size_t begin = position_;
      while (position_ < text_.size() && is_plain(text_[position_])) ++position_;
      out.append(text_, begin, position_ - begin);
      if (position_ == text_.size()) refuse("unterminated string");
      const auto c = static_cast<unsigned char>(text_[position_]);
      if (c == '"') {
        ++position_;
        return;
      }
      if (c < 0x20) refuse("control character in a string");
      if (c == '\\')
        parse_escape(out);
      else
        parse_utf8(out);
    }
  }

  static bool is_plain(char c) {
    return c != '"' && c != '\\' && static_cast<unsigned char>(c) >= 0x20 &&
           static_cast<unsigned char>(c) < 0x80;
  }

  // One multi-byte code point: no overlong forms, no surrogates, none above U+10FFFF.
  void parse_utf8(std::string& out) {
    const auto lead = static_cast<unsigned char>(text_[position_]);
    const int length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4 || position_ + length > text_.size()) refuse("invalid UTF-8");
    uint32_t code = lead & (0x7fu >> length);
    for (int i = 1; i < length; ++i) {
      const auto c = static_cast<unsigned char>(text_[position_ + i]);
      if ((c & 0xc0) != 0x80) refuse("invalid UTF-8");
      code = code << 6 | (c & 0x3fu);
    }
    const bool overlong = (length == 3 && code < 0x800) || (length == 4 && code < 0x10000);
    if (overlong || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) refuse("invalid UTF-8");
    out.append(text_, position_, length);
    position_ += length;
  }

  uint32_t parse_hex4() {
    if (position_ + 4 > text_.size()) refuse("cut \\u escape");
    uint32_t code = 0;
    const char* begin = text_.data() + position_;
    const auto [end, error] = std::from_chars(begin, begin + 4, code, 16);
    if (error != std::errc{} || end != begin + 4) refuse("\\u needs four hex digits");
    position_ += 4;
    return code;
  }

  void parse_escape(std::string& out) {
    ++position_;  // backslash
    const char c = peek();
    constexpr std::string_view kNames = "\"\\/bfnrt";
    constexpr std::string_view kValues = "\"\\/\b\f\n\r\t";
    if (const size_t index = kNames.find(c); c != '\0' && index != std::string_view::npos) {
      out.push_back(kValues[index]);
      ++position_;
      return;
    }
    if (c != 'u') refuse("unknown escape");
    ++position_;
    uint32_t code = parse_hex4();
    if (code >= 0xd800 && code < 0xdc00) {
      if (text_.substr(position_, 2) != "\\u") refuse("lone surrogate");
      position_ += 2;
      const uint32_t low = parse_hex4();
      if (low < 0xdc00 || low >= 0xe000) refuse("lone surrogate");
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    } else if (code >= 0xdc00 && code < 0xe000) {
      refuse("lone surrogate");
    }
    append_utf8(out, code);
  }

  static void append_utf8(std::string& out, uint32_t code) {
    const auto push = [&](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
    if (code < 0x80) {
      push(code);
    } else if (code < 0x800) {
      push(0xc0 | code >> 6);
      push(0x80 | (code & 0x3f));
    } else if (code < 0x10000) {
      push(0xe0 | code >> 12);
      push(0x80 | (code >> 6 & 0x3f));
      push(0x80 | (code & 0x3f));
    } else {
      push(0xf0 | code >> 18);
      push(0x80 | (code >> 12 & 0x3f));
      push(0x80 | (code >> 6 & 0x3f));
      push(0x80 | (code & 0x3f));
    }
  }

  void skip_digits() {
    if (!is_digit(peek())) refuse("malformed number");
    while (is_digit(peek())) ++position_;
  }

  double parse_number() {
    const size_t begin = position_;
    if (peek() == '-') ++position_;
    if (peek() == '0')
      ++position_;
    else
      skip_digits();
    if (peek() == '.') {
      ++position_;
      skip_digits();
    }
    if (peek() == 'e' || peek() == 'E') {
      ++position_;
      if (peek() == '+' || peek() == '-') ++position_;
      skip_digits();
    }
    double number = 0;
    const auto [end, error] =
        std::from_chars(text_.data() + begin, text_.data() + position_, number);
    if (error != std::errc{} || !std::isfinite(number)) refuse("number out of range");
    return number;
  }

  std::string_view text_;
  size_t position_ = 0;
  int64_t values_ = 0;
};

Json Json::parse(std::string_view text) { return JsonParser(text).parse(); }

void Json::wrong_kind(const char* wanted) const {
  fail(ErrorCode::kProgram, "the JSON value at byte %lld is %s, expected %s",
       static_cast<long long>(offset_), kind_name(kind()), wanted);
}

bool Json::as_bool() const {
  if (const auto* value = std::get_if<bool>(&value_)) return *value;
  wrong_kind("a boolean");
}

double Json::as_number() const {
  if (const auto* value = std::get_if<double>(&value_)) return *value;
  wrong_kind("a number");
}

int64_t Json::as_int() const {
  const double value = as_number();
  if (std::abs(value) > kMaxExactInteger || value != std::trunc(value)) wrong_kind("an integer");
  return static_cast<int64_t>(value);
}

const std::string& Json::as_string() const {
  if (const auto* value = std::get_if<std::string>(&value_)) return *value;
  wrong_kind("text");
}

const std::vector<Json>& Json::items() const {
  if (const auto* value = std::get_if<std::vector<Json>>(&value_)) return *value;
  wrong_kind("an array");
}

const std::vector<Json::Member>& Json::members() const {
  if (const auto* value = std::get_if<std::vector<Member>>(&value_)) return *value;
  wrong_kind("an object");
}

const Json* Json::find(std::string_view key) const {
  for (const auto& [name, value] : members())
    if (name == key) return &value;
  return nullptr;
}

const Json& Json::at(std::string_view key) const {
  if (const Json* value = find(key)) return *value;
  fail(ErrorCode::kProgram, "the JSON object at byte %lld lacks member '%.*s'",
       static_cast<long long>(offset_), static_cast<int>(key.size()), key.data());
}

}  // namespace nanoweave
