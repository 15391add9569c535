// Reading JSON files that people write: every error names the file, the field, its value and what is allowed.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.hpp"

namespace mixlane {

using Json = nlohmann::json;

// The whole file. Throws io_error, or bad_format beyond `max_bytes`.
std::string read_text_file(const std::filesystem::path& file, int64_t max_bytes);

// Throws bad_format naming `file_name` for syntax errors, a name that occurs twice in an object (most parsers would
// silently take one of them) and nesting deeper than `max_depth`.
Json parse_json(std::string_view text, std::string_view file_name, int max_depth = 16);

// A value for a message: as JSON, cut to a readable length.
std::string shown(const Json& value);

enum class Presence : uint8_t { required, optional };

template <class Enum>
struct EnumName {
  Enum value;
  std::string_view name;
};

// The fields of one JSON object, each read into a variable that holds its default. refuse_unknown() ends the reading.
class JsonFields {
 public:
  JsonFields(const Json& object, std::string_view file_name, std::string_view path = "");

  // A field that is null is noted in missing() and leaves its variable alone.
  void integer(std::string_view name, Presence presence, int low, int high, int& into);
  // low < value <= high, or low <= value if `low_included`.
  void number(std::string_view name, Presence presence, double low, double high, bool low_included, float& into);
  void flag(std::string_view name, Presence presence, bool& into);
  template <class Enum>
  void choice(std::string_view name, Presence presence, std::span<const EnumName<Enum>> names, Enum& into) {
    std::vector<std::string_view> valid;
    for (const EnumName<Enum>& candidate : names) valid.push_back(candidate.name);
    const int picked = pick(name, presence, valid);
    if (picked >= 0) into = names[static_cast<size_t>(picked)].value;
  }
  // These can't be null.
  void text(std::string_view name, Presence presence, std::string& into);
  void texts(std::string_view name, Presence presence, std::vector<std::string>& into);
  JsonFields object(std::string_view name);

  bool has(std::string_view name) const { return object_.contains(name); }
  [[noreturn]] void refuse(std::string_view name, std::string_view allowed) const;
  void refuse_unknown() const;

  // Dotted names: "routing.num_experts".
  const std::vector<std::string>& known() const { return known_; }
  const std::vector<std::string>& missing() const { return missing_; }

 private:
  // nullptr if the field is absent (and optional), or null (and `nullable`).
  const Json* find(std::string_view name, Presence presence, bool nullable);
  int pick(std::string_view name, Presence presence, const std::vector<std::string_view>& valid);
  std::string dotted(std::string_view name) const;

  const Json& object_;
  std::string file_name_;
  std::string path_;
  std::set<std::string, std::less<>> names_;
  std::vector<std::string> known_;
  std::vector<std::string> missing_;
};

}  // namespace mixlane
