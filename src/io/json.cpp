#include "io/json.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>

namespace mixlane {

std::string read_text_file(const std::filesystem::path& file, int64_t max_bytes) {
  std::error_code error;
  const auto size = std::filesystem::file_size(file, error);
  if (error) fail(ErrorCode::io_error, "{}: {}", file.string(), error.message());
  if (size > static_cast<uint64_t>(max_bytes))
    fail(ErrorCode::bad_format, "{}: {} bytes; a file of this kind has at most {}", file.string(), size, max_bytes);
  std::ifstream stream(file, std::ios::binary);
  std::string text(size, '\0');
  if (!stream.read(text.data(), static_cast<std::streamsize>(size)))
    fail(ErrorCode::io_error, "{}: can't be read to its end", file.string());
  return text;
}

Json parse_json(std::string_view text, std::string_view file_name, int max_depth) {
  std::vector<std::set<std::string>> open_objects;
  const auto check = [&](int depth, Json::parse_event_t event, const Json& parsed) {
    if (depth > max_depth) fail(ErrorCode::bad_format, "{}: nested deeper than {} levels", file_name, max_depth);
    if (event == Json::parse_event_t::object_start) open_objects.emplace_back();
    if (event == Json::parse_event_t::object_end) open_objects.pop_back();
    if (event == Json::parse_event_t::key && !open_objects.back().insert(parsed.get<std::string>()).second)
      fail(ErrorCode::bad_format, "{}: the name {} occurs twice in one object; keep one", file_name, shown(parsed));
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), check);
  } catch (const Json::exception& error) {
    fail(ErrorCode::bad_format, "{}: not valid JSON: {}", file_name, error.what());
  }
}

std::string shown(const Json& value) {
  constexpr size_t kMaxShown = 80;
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > kMaxShown) text = text.substr(0, kMaxShown) + "...";
  return text;
}

JsonFields::JsonFields(const Json& object, std::string_view file_name, std::string_view path)
    : object_(object), file_name_(file_name), path_(path) {
  if (!object.is_object())
    fail(ErrorCode::bad_format, "{}: {} is {}; it must be an object", file_name, path.empty() ? "the file" : path,
         shown(object));
}

std::string JsonFields::dotted(std::string_view name) const {
  return path_.empty() ? std::string(name) : fmt::format("{}.{}", path_, name);
}

void JsonFields::refuse(std::string_view name, std::string_view allowed) const {
  const auto found = object_.find(name);
  if (found == object_.end()) fail(ErrorCode::bad_format, "{}: {} is missing: {}", file_name_, dotted(name), allowed);
  fail(ErrorCode::bad_format, "{}: {} is {}; it must be {}", file_name_, dotted(name), shown(*found), allowed);
}

void JsonFields::refuse_unknown() const {
  for (const auto& [name, value] : object_.items()) {
    if (names_.contains(name)) continue;
    fail(ErrorCode::bad_format, "{}: unknown field '{}' (its value is {}); the fields here are {}", file_name_, dotted(name),
         shown(value), fmt::join(names_, ", "));
  }
}

const Json* JsonFields::find(std::string_view name, Presence presence, bool nullable) {
  names_.emplace(name);
  known_.push_back(dotted(name));
  const auto found = object_.find(name);
  if (found == object_.end()) {
    if (presence == Presence::required) refuse(name, "give it a value");
    return nullptr;
  }
  if (found->is_null() && nullable) {
    missing_.push_back(dotted(name));
    return nullptr;
  }
  return &*found;
}

void JsonFields::integer(std::string_view name, Presence presence, int low, int high, int& into) {
  const Json* value = find(name, presence, true);
  if (!value) return;
  const bool fits =
      value->is_number_unsigned() ? value->get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX) : value->is_number_integer();
  if (!fits || value->get<int64_t>() < low || value->get<int64_t>() > high)
    refuse(name, fmt::format("a whole number from {} to {}", low, high));
  into = value->get<int>();
}

void JsonFields::number(std::string_view name, Presence presence, double low, double high, bool low_included, float& into) {
  const Json* value = find(name, presence, true);
  if (!value) return;
  const double number = value->is_number() ? value->get<double>() : NAN;
  if (!(low_included ? number >= low : number > low) || !(number <= high))
    refuse(name, fmt::format("a number {} {}, at most {}", low_included ? "from" : "above", low, high));
  into = static_cast<float>(number);
}

void JsonFields::flag(std::string_view name, Presence presence, bool& into) {
  const Json* value = find(name, presence, true);
  if (!value) return;
  if (!value->is_boolean()) refuse(name, "true or false");
  into = value->get<bool>();
}

int JsonFields::pick(std::string_view name, Presence presence, const std::vector<std::string_view>& valid) {
  const Json* value = find(name, presence, true);
  if (!value) return -1;
  const auto found =
      value->is_string() ? std::find(valid.begin(), valid.end(), value->get_ref<const std::string&>()) : valid.end();
  if (found == valid.end()) refuse(name, fmt::format("one of {}", fmt::join(valid, ", ")));
  return static_cast<int>(found - valid.begin());
}

void JsonFields::text(std::string_view name, Presence presence, std::string& into) {
  const Json* value = find(name, presence, false);
  if (!value) return;
  if (!value->is_string() || value->get_ref<const std::string&>().empty()) refuse(name, "a text");
  into = value->get<std::string>();
}

void JsonFields::texts(std::string_view name, Presence presence, std::vector<std::string>& into) {
  const Json* value = find(name, presence, false);
  if (!value) return;
  const bool fits =
      value->is_array() && std::all_of(value->begin(), value->end(), [](const Json& v) { return v.is_string(); });
  if (!fits) refuse(name, "a list of texts");
  into = value->get<std::vector<std::string>>();
}

JsonFields JsonFields::object(std::string_view name) {
  const Json* value = find(name, Presence::required, false);
  known_.pop_back();  // a group of fields, not a field
  return JsonFields(*value, file_name_, dotted(name));
}

}  // namespace mixlane
