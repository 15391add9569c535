#include <algorithm>
#include <cctype>
#include <cmath>
#include <nlohmann/json.hpp>

#include "results/fields.hpp"
#include "results/files.hpp"

namespace mixlane::bench {
namespace {

using Json = nlohmann::ordered_json;

struct Writer {
  Json out = Json::object();

  template <class T>
  void operator()(const char* key, const T& value) {
    out[key] = to_value(value);
  }
  template <class T>
  void since(int, const char* key, const T& value) {
    (*this)(key, value);
  }
  void maybe_nan(const char* key, double value) { out[key] = std::isfinite(value) ? Json(value) : Json(nullptr); }

 private:
  template <class T>
  static Json to_value(const T& value) {
    if constexpr (requires(Writer & writer) { visit_fields(writer, value); }) {
      Writer nested;
      visit_fields(nested, value);
      return std::move(nested.out);
    } else if constexpr (requires(Writer & writer) { visit_fields(writer, value.front()); }) {
      Json list = Json::array();
      for (const auto& element : value) list.push_back(to_value(element));
      return list;
    } else {
      return value;
    }
  }
};

template <class T>
Json written(const T& value) {
  Writer writer;
  visit_fields(writer, value);
  return std::move(writer.out);
}

// Lists of plain values stay on one line: a file with thousands of samples remains readable.
void append_pretty(const Json& json, size_t indent, std::string& out) {
  const bool plain = std::none_of(json.begin(), json.end(), [](const Json& element) { return element.is_structured(); });
  if (!json.is_structured() || json.empty() || (json.is_array() && plain)) {
    out += json.dump(-1, ' ', false, Json::error_handler_t::replace);
    return;
  }
  out += json.is_array() ? '[' : '{';
  bool first = true;
  for (const auto& [key, value] : json.items()) {
    out += first ? "\n" : ",\n";
    first = false;
    out.append(indent + 1, ' ');
    if (json.is_object()) out += Json(key).dump(-1, ' ', false, Json::error_handler_t::replace) + ": ";
    append_pretty(value, indent + 1, out);
  }
  out += '\n';
  out.append(indent, ' ');
  out += json.is_array() ? ']' : '}';
}

// A name as part of a file name: what a user's own model file is called may hold anything.
std::string file_part(const std::string& text) {
  std::string part = text;
  for (char& c : part)
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '-' && c != '.' && c != '_') c = '_';
  return part;
}

}  // namespace

nlohmann::ordered_json to_json(const ResultFile& file) { return written(file); }
nlohmann::ordered_json to_json(const Peaks& peaks) { return written(peaks); }

std::string to_text(const ResultFile& file) {
  std::string text;
  append_pretty(to_json(file), 0, text);
  text += '\n';
  return text;
}

void write_result_file(const ResultFile& file, const std::filesystem::path& path) { write_text_file(path, to_text(file)); }

std::filesystem::path result_path(const std::filesystem::path& runs, const ResultFile& file) {
  return runs / ("results_" + file_part(file.stamp)) / (file_part(file.model) + "__q" + file_part(file.quant) + ".json");
}

}  // namespace mixlane::bench
