#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>

#include "core/error.hpp"
#include "results/cells.hpp"
#include "results/fields.hpp"
#include "results/files.hpp"

namespace mixlane::bench {
namespace {

using Json = nlohmann::json;

// Where in which file we are, for messages: "a.json: records[2].stages[0].time.n".
struct Place {
  const std::string& file;
  int schema;
  std::string path;

  Place field(const std::string& key) const { return {file, schema, path.empty() ? key : path + "." + key}; }
  Place element(size_t index) const { return {file, schema, fmt::format("{}[{}]", path, index)}; }

  [[noreturn]] void bad(const std::string& problem) const {
    fail(ErrorCode::bad_format, "{}: {} {}", file, path.empty() ? "the file" : path, problem);
  }
  [[noreturn]] void bad(const char* expected, const Json& got) const {
    std::string text = got.dump(-1, ' ', false, Json::error_handler_t::replace);
    if (text.size() > 40) text = text.substr(0, 40) + "...";
    bad(fmt::format("must be {}, not {}", expected, text));
  }
};

void read_value(const Json& json, const Place& place, bool& value) {
  if (!json.is_boolean()) place.bad("true or false", json);
  value = json.get<bool>();
}

void read_value(const Json& json, const Place& place, std::string& value) {
  if (!json.is_string()) place.bad("a text", json);
  value = json.get<std::string>();
}

// No stored number is ever negative.
void read_value(const Json& json, const Place& place, double& value) {
  if (!json.is_number() || !std::isfinite(json.get<double>()) || json.get<double>() < 0)
    place.bad("a number from 0 up", json);
  value = json.get<double>();
}

template <std::integral T>
void read_value(const Json& json, const Place& place, T& value) {
  const bool negative = !json.is_number_unsigned() && json.is_number_integer() && json.get<int64_t>() < 0;
  if (!json.is_number_integer() || negative || json.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<T>::max()))
    place.bad(fmt::format("must be a whole number from 0 to {}, not {}", std::numeric_limits<T>::max(), json.dump()));
  value = static_cast<T>(json.get<uint64_t>());
}

void read_value(const Json& json, const Place& place, std::map<std::string, std::string>& value) {
  if (!json.is_object()) place.bad("an object of texts", json);
  for (const auto& [key, element] : json.items()) read_value(element, place.field(key), value[key]);
}

struct Reader;

template <class T>
void read_value(const Json& json, const Place& place, std::vector<T>& value) {
  if (!json.is_array()) place.bad("a list", json);
  value.resize(json.size());
  for (size_t i = 0; i < json.size(); ++i) read_value(json[i], place.element(i), value[i]);
}

template <class T>
requires requires(Reader& reader, T& value) { visit_fields(reader, value); }
void read_value(const Json& json, const Place& place, T& value);

struct Reader {
  const Json& json;
  Place place;

  template <class T>
  void operator()(const char* key, T& value) {
    read_value(member(key), place.field(key), value);
  }
  template <class T>
  void since(int schema, const char* key, T& value) {
    if (place.schema >= schema) (*this)(key, value);
  }
  void maybe_nan(const char* key, double& value) {
    const Json& found = member(key);
    if (found.is_null()) {
      value = std::numeric_limits<double>::quiet_NaN();
    } else {
      read_value(found, place.field(key), value);
    }
  }

 private:
  const Json& member(const char* key) const {
    const auto found = json.find(key);
    if (found == json.end()) place.field(key).bad("is missing");
    return *found;
  }
};

template <class T>
requires requires(Reader& reader, T& value) { visit_fields(reader, value); }
void read_value(const Json& json, const Place& place, T& value) {
  if (!json.is_object()) place.bad("an object", json);
  Reader reader{json, place};
  visit_fields(reader, value);
}

template <class T>
void require_per_rank(const std::vector<T>& values, int ranks, const Place& place) {
  if (!values.empty() && values.size() != static_cast<size_t>(ranks))
    place.bad(fmt::format("has {} entries for {} ranks", values.size(), ranks));
}

void require_consistent(const Record& record, int ranks, const Place& place) {
  require_per_rank(record.rank_tokens, ranks, place.field("rank_tokens"));
  require_per_rank(record.rank_rows, ranks, place.field("rank_rows"));
  std::set<std::string> stages, rows;
  for (size_t i = 0; i < record.stages.size(); ++i) {
    const Place at = place.field("stages").element(i);
    const StageRecord& stage = record.stages[i];
    require_per_rank(stage.rank_median_us, ranks, at.field("rank_median_us"));
    const bool repeats = !rows.insert(fmt::format("{}\n{}\n{}", stage.stage, stage.variant, stage.options)).second;
    // A layer has each stage once, whatever its variant.
    if (repeats || (!stages.insert(stage.stage).second && !has_stages_alone(record)))
      at.bad(fmt::format("repeats the stage '{}'", stage.stage));
  }
}

// What the types alone don't say and every user of a file relies on.
void require_consistent(const ResultFile& file, const Place& place) {
  if (file.model.empty()) place.field("model").bad("is empty");
  if (file.quant.empty()) place.field("quant").bad("is empty");
  if (file.ranks < 1) place.field("ranks").bad("is 0");
  std::set<std::tuple<int, std::string, std::string, std::string>> cells;
  for (size_t i = 0; i < file.records.size(); ++i) {
    const Place at = place.field("records").element(i);
    const Record& record = file.records[i];
    require_consistent(record, file.ranks, at);
    if (!cells.insert({record.tokens, record.workload, record.mode, record.cache}).second)
      at.bad(fmt::format("repeats tokens={} workload={} mode={} cache={}", record.tokens, record.workload, record.mode,
                         record.cache));
  }
}

int known_schema(const Json& json, const Place& place) {
  int schema = 0;
  const Place at = place.field("schema");
  const auto found = json.find("schema");
  if (found == json.end()) at.bad("is missing; is this a result of mixlane bench?");
  read_value(*found, at, schema);
  if (schema < 1 || schema > kSchemaVersion)
    at.bad(fmt::format("is {}, this program reads 1 to {}; use the mixlane that wrote it or a newer one", schema,
                       kSchemaVersion));
  return schema;
}

// Until schema 1 all records of a file had one mode and cache, which were the file's.
void read_common_conditions(const Json& json, const Place& place, ResultFile& file) {
  std::string mode, cache;
  Reader reader{json, place};
  reader("mode", mode);
  reader("cache", cache);
  for (Record& record : file.records) {
    record.mode = mode;
    record.cache = cache;
  }
}

}  // namespace

ResultFile result_file_from_json(const nlohmann::json& json, const std::string& file_name) {
  Place place{file_name, kSchemaVersion, ""};
  if (!json.is_object()) place.bad("an object", json);
  place.schema = known_schema(json, place);
  ResultFile file;
  read_value(json, place, file);
  if (place.schema == 1) read_common_conditions(json, place, file);
  require_consistent(file, place);
  file.schema = kSchemaVersion;  // of what it holds now, should it be written again
  return file;
}

ResultFile result_file_from_text(std::string_view text, const std::string& file_name) {
  Json json;
  try {
    json = Json::parse(text);
  } catch (const Json::exception& error) {
    fail(ErrorCode::bad_format, "{}: not JSON: {}", file_name, error.what());
  }
  return result_file_from_json(json, file_name);
}

ResultFile read_result_file(const std::filesystem::path& path) {
  return result_file_from_text(read_text_file(path), path.string());
}

}  // namespace mixlane::bench
