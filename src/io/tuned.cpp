#include "io/tuned.hpp"

#include <algorithm>
#include <cmath>

#include "io/json.hpp"

namespace mixlane {
namespace {

constexpr int64_t kMaxFileBytes = 32 << 20;
constexpr std::string_view kFormat = "mixlane.tuned.1";
constexpr int kMaxNumber = 1 << 30;
constexpr Presence kRequired = Presence::required;

// Names end up in messages, file names and command lines.
bool is_name(std::string_view text) {
  return !text.empty() && text.size() <= 64 && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '-';
  });
}

void read_name(JsonFields& fields, std::string_view name, std::string& into) {
  fields.text(name, kRequired, into);
  if (!is_name(into)) fields.refuse(name, "made of letters, digits, '_', '.' and '-', 64 at most");
}

const Json& list_in(const Json& object, std::string_view name, std::string_view where) {
  const auto found = object.find(name);
  if (found == object.end() || !found->is_array())
    fail(ErrorCode::bad_format, "{}: {} is {}; it must be a list", where, name,
         found == object.end() ? "missing" : shown(*found));
  return *found;
}

TuningRun read_run(const Json& json, std::string_view file_name, const std::string& path) {
  JsonFields fields(json, file_name, path);
  TuningRun run;
  fields.text("date", kRequired, run.date);
  fields.text("gpu", kRequired, run.gpu);
  fields.text("driver", kRequired, run.driver);
  fields.text("commit", kRequired, run.commit);
  fields.text("command", kRequired, run.command);
  fields.refuse_unknown();
  return run;
}

TuneValue read_value(const Json& json, const std::string& where) {
  if (json.is_string() && is_name(json.get_ref<const std::string&>())) return json.get<std::string>();
  const bool fits = json.is_number_integer() && json.get<int64_t>() >= 0 && json.get<int64_t>() <= kMaxNumber;
  if (!fits)
    fail(ErrorCode::bad_format, "{} is {}; it must be a name or a whole number from 0 to {}", where, shown(json),
         kMaxNumber);
  return json.get<int64_t>();
}

std::vector<std::pair<std::string, double>> read_times(const Json& entry, const std::string& where) {
  const auto found = entry.find("us");
  if (found == entry.end() || !found->is_object())
    fail(ErrorCode::bad_format, "{}.us: it must be an object of times by name", where);
  std::vector<std::pair<std::string, double>> times;
  for (const auto& [name, value] : found->items()) {
    const double us = value.is_number() ? value.get<double>() : NAN;
    if (!is_name(name) || !(us > 0) || !(us < 1e9))
      fail(ErrorCode::bad_format, "{}.us: '{}' took {}; it must be a name and a time above 0, in us", where, name,
           shown(value));
    times.emplace_back(name, us);
  }
  return times;
}

// Of a range: the first size, the key's last value is the largest.
void read_from(JsonFields& fields, TunedEntry& entry) {
  const auto* largest = std::get_if<int64_t>(&entry.key.back());
  if (!largest || *largest < 2) fields.refuse("from", "left out: the key's last value is no size above 1");
  int from = 0;
  fields.integer("from", kRequired, 1, static_cast<int>(*largest - 1), from);
  if (from == 0) fields.refuse("from", "a whole number");
  entry.from = from;
}

TunedEntry read_entry(const Json& json, const TunedTable& table, const std::string& path) {
  const std::string where = fmt::format("{}: {}", table.file, path);
  JsonFields fields(json, table.file, path);
  TunedEntry entry;
  for (const Json& value : list_in(json, "key", where)) entry.key.push_back(read_value(value, where + ".key"));
  if (entry.key.size() != table.fields.size())
    fail(ErrorCode::bad_format, "{}.key has {} values; the fields are {}", where, entry.key.size(),
         fmt::join(table.fields, ", "));
  if (fields.has("from")) read_from(fields, entry);
  read_name(fields, "choice", entry.choice);
  fields.integer("run", kRequired, 0, static_cast<int>(table.runs.size()) - 1, entry.run);
  if (!fields.missing().empty()) fields.refuse("run", "the index of one of the runs");
  entry.measured_us = read_times(json, where);
  for (const auto& [name, value] : json.items())
    if (name != "key" && name != "from" && name != "choice" && name != "run" && name != "us")
      fail(ErrorCode::bad_format, "{}: unknown field '{}'; the fields here are key, from, choice, run, us", where, name);
  return entry;
}

void read_fields(const Json& root, TunedTable& table) {
  for (const Json& field : list_in(root, "fields", table.file)) {
    const bool fits = field.is_string() && is_name(field.get_ref<const std::string&>()) &&
                      std::find(table.fields.begin(), table.fields.end(), field.get<std::string>()) == table.fields.end();
    if (!fits)
      fail(ErrorCode::bad_format, "{}: fields holds {}; it must list the names of a key's values, each once", table.file,
           shown(field));
    table.fields.push_back(field.get<std::string>());
  }
  if (table.fields.empty() || table.fields.size() > kMaxTuneFields)
    fail(ErrorCode::bad_format, "{}: {} fields; a key has 1 to {}", table.file, table.fields.size(), kMaxTuneFields);
}

nlohmann::ordered_json to_json(const TuneValue& value) {
  if (const auto* number = std::get_if<int64_t>(&value)) return *number;
  return std::get<std::string>(value);
}

std::string entry_json(const TunedEntry& entry) {
  nlohmann::ordered_json json;
  for (const TuneValue& value : entry.key) json["key"] += to_json(value);
  if (entry.from > 0) json["from"] = entry.from;
  json["choice"] = entry.choice;
  json["run"] = entry.run;
  json["us"] = nlohmann::ordered_json::object();
  // By name, as readers get them; enough digits for what a clock of the device tells.
  auto times = entry.measured_us;
  std::sort(times.begin(), times.end());
  for (const auto& [name, us] : times) json["us"][name] = std::max(std::round(us * 1000), 1.0) / 1000;
  return json.dump();
}

}  // namespace

TunedTable parse_tuned(std::string_view json, std::string_view file_name) {
  const Json root = parse_json(json, file_name, 6);
  JsonFields fields(root, file_name);
  TunedTable table;
  table.file = file_name;
  std::string format;
  fields.text("format", kRequired, format);
  if (format != kFormat) fields.refuse("format", fmt::format("\"{}\"", kFormat));
  read_name(fields, "stage", table.stage);
  JsonFields machine = fields.object("machine");
  read_name(machine, "architecture", table.machine.architecture);
  machine.integer("num_multiprocessors", kRequired, 1, 1 << 20, table.machine.num_multiprocessors);
  if (!machine.missing().empty()) machine.refuse("num_multiprocessors", "a number");
  machine.refuse_unknown();
  read_fields(root, table);
  for (const Json& run : list_in(root, "runs", file_name))
    table.runs.push_back(read_run(run, file_name, fmt::format("runs[{}]", table.runs.size())));
  for (const Json& entry : list_in(root, "entries", file_name))
    table.entries.push_back(read_entry(entry, table, fmt::format("entries[{}]", table.entries.size())));
  for (const auto& [name, value] : root.items())
    if (name != "format" && name != "stage" && name != "machine" && name != "fields" && name != "runs" && name != "entries")
      fail(ErrorCode::bad_format, "{}: unknown field '{}'", file_name, name);
  require_agreement({&table, 1});
  return table;
}

TunedTable read_tuned(const std::filesystem::path& file) {
  return parse_tuned(read_text_file(file, kMaxFileBytes), file.string());
}

std::string tuned_json(const TunedTable& table) {
  nlohmann::ordered_json head;
  head["format"] = kFormat;
  head["stage"] = table.stage;
  head["machine"] = {{"architecture", table.machine.architecture},
                     {"num_multiprocessors", table.machine.num_multiprocessors}};
  head["fields"] = table.fields;
  head["runs"] = nlohmann::ordered_json::array();
  for (const TuningRun& run : table.runs)
    head["runs"].push_back(
        {{"date", run.date}, {"gpu", run.gpu}, {"driver", run.driver}, {"commit", run.commit}, {"command", run.command}});
  std::vector<const TunedEntry*> sorted;
  for (const TunedEntry& entry : table.entries) sorted.push_back(&entry);
  std::sort(sorted.begin(), sorted.end(), [](const TunedEntry* a, const TunedEntry* b) { return a->key < b->key; });
  std::string text = head.dump(1);
  text.resize(text.size() - 2);  // "\n}"
  text += ",\n \"entries\": [";
  for (const TunedEntry* entry : sorted) text += (entry == sorted.front() ? "\n  " : ",\n  ") + entry_json(*entry);
  return text + (sorted.empty() ? "]\n}\n" : "\n ]\n}\n");
}

std::string tuned_file_name(const TunedTable& table) {
  return fmt::format("{}.{}-{}.json", table.stage, table.machine.architecture, table.machine.num_multiprocessors);
}

TunedTable merge_tuned(TunedTable into, const TunedTable& fresh, bool replace) {
  if (into.stage != fresh.stage || !(into.machine == fresh.machine) || into.fields != fresh.fields)
    fail(ErrorCode::config_mismatch, "{} holds {} on {} by {}; these choices are {} on {} by {}: write them to another file",
         into.file, into.stage, to_string(into.machine), fmt::join(into.fields, ", "), fresh.stage, to_string(fresh.machine),
         fmt::join(fresh.fields, ", "));
  std::string conflicts;
  const int first_run = static_cast<int>(into.runs.size());
  into.runs.insert(into.runs.end(), fresh.runs.begin(), fresh.runs.end());
  for (TunedEntry entry : fresh.entries) {
    entry.run += first_run;
    const auto old =
        std::find_if(into.entries.begin(), into.entries.end(), [&](const TunedEntry& e) { return e.key == entry.key; });
    if (old == into.entries.end()) {
      into.entries.push_back(std::move(entry));
    } else if (replace) {
      *old = std::move(entry);
    } else if (old->choice != entry.choice) {
      conflicts += fmt::format("\n  {}: {} in the file, {} now", key_text(into, *old), old->choice, entry.choice);
    }
  }
  if (!conflicts.empty())
    fail(ErrorCode::config_mismatch, "{} chooses otherwise; --replace takes the new choices:{}", into.file, conflicts);
  // Runs that measured nothing that is still there are of no use.
  std::vector<int> index(into.runs.size(), -1);
  std::vector<TuningRun> used;
  for (TunedEntry& entry : into.entries) {
    int& at = index[static_cast<size_t>(entry.run)];
    if (at < 0) {
      at = static_cast<int>(used.size());
      used.push_back(into.runs[static_cast<size_t>(entry.run)]);
    }
    entry.run = at;
  }
  into.runs = std::move(used);
  return into;
}

}  // namespace mixlane
