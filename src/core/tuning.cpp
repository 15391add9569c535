#include "core/tuning.hpp"

#include <algorithm>
#include <bit>
#include <utility>

#include "core/notices.hpp"
#include "core/stage_states.hpp"

namespace mixlane {
namespace {

int index_of(std::string_view name, std::span<const std::string_view> names) {
  const auto found = std::find(names.begin(), names.end(), name);
  return found == names.end() ? -1 : static_cast<int>(found - names.begin());
}

std::string field_names(const TuneSpace& space) {
  std::string names;
  for (const TuneField& field : space.fields) names += fmt::format("{}{}", names.empty() ? "" : ", ", field.name);
  return names;
}

// Column of the table for each field of the stage.
std::vector<size_t> columns_of(const TunedTable& table, const TuneSpace& space) {
  std::vector<size_t> columns;
  for (const TuneField& field : space.fields) {
    const auto found = std::find(table.fields.begin(), table.fields.end(), field.name);
    if (found != table.fields.end()) columns.push_back(static_cast<size_t>(found - table.fields.begin()));
  }
  if (columns.size() != space.fields.size() || table.fields.size() != space.fields.size())
    fail(ErrorCode::bad_format, "{}: its keys are {}; those of {} are {}: tune it again", table.file,
         fmt::join(table.fields, ", "), space.stage, field_names(space));
  return columns;
}

int64_t packed(const TunedTable& table, const TuneField& field, const TuneValue& value) {
  const bool wants_word = !field.words.empty();
  if (!wants_word && std::holds_alternative<int64_t>(value)) return std::get<int64_t>(value);
  const int index =
      wants_word && std::holds_alternative<std::string>(value) ? index_of(std::get<std::string>(value), field.words) : -1;
  if (index < 0)
    fail(ErrorCode::bad_format, "{}: {} is {}; it must be {}", table.file, field.name, to_string(value),
         wants_word ? fmt::format("one of {}", fmt::join(field.words, ", ")) : "a whole number");
  return index;
}

// Buckets may be cut otherwise in another version: what was measured for others would never be found, and nobody told.
void require_asked_for(const TunedTable& table, const TunedEntry& entry, const TuneSpace& space, const PackedKey& key) {
  if (!space.bucket) return;
  const size_t last = space.fields.size() - 1;
  const int64_t asked = space.bucket(key);
  if (asked != key[last])
    fail(ErrorCode::bad_format, "{}: no call asks for {}, those of that size ask for {}={}: tune it again", table.file,
         key_text(table, entry), space.fields[last].name, asked);
}

PackedKey packed(const TunedTable& table, const TunedEntry& entry, const TuneSpace& space,
                 const std::vector<size_t>& columns) {
  PackedKey key{};
  for (size_t i = 0; i < columns.size(); ++i) key[i] = packed(table, space.fields[i], entry.key[columns[i]]);
  return key;
}

// The keys that an entry holds for: its own, or one for each bucket of its range.
std::vector<PackedKey> keys_of(const TunedTable& table, const TunedEntry& entry, const TuneSpace& space, PackedKey key) {
  require_asked_for(table, entry, space, key);
  if (entry.from == 0) return {key};
  const size_t last = space.fields.size() - 1;
  if (!space.bucket || table.fields.back() != space.fields[last].name)
    fail(ErrorCode::bad_format, "{}: {}: a range must be of the last field, {}, and of sizes of {} that are tuned",
         table.file, key_text(table, entry), space.fields[last].name, space.stage);
  const int64_t largest = std::exchange(key[last], entry.from);
  require_asked_for(table, entry, space, key);
  std::vector<PackedKey> keys;
  for (; key[last] < largest; key[last] = space.bucket(key)) {
    keys.push_back(key);
    ++key[last];
  }
  keys.push_back(key);
  return keys;
}

}  // namespace

TunedLayers& tuned_layers(const Context& context) {
  return context.states().get<TunedLayers>([&] { return new TunedLayers(load_tuned_layers(context.env())); });
}

size_t PackedKeyHash::operator()(const PackedKey& key) const {
  uint64_t hash = 0;
  for (const int64_t value : key) {
    hash = (hash ^ static_cast<uint64_t>(value)) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 29;
  }
  return hash;
}

std::string key_text(const TuneSpace& space, const PackedKey& key) {
  std::string text;
  for (size_t i = 0; i < space.fields.size(); ++i) {
    const TuneField& field = space.fields[i];
    text += fmt::format("{}{}=", i == 0 ? "" : " ", field.name);
    text += field.words.empty() ? std::to_string(key[i]) : std::string(field.words[static_cast<size_t>(key[i])]);
  }
  return text;
}

TunedTable split_ranges(TunedTable table, const TuneSpace& space) {
  const std::vector<size_t> columns = columns_of(table, space);
  std::vector<TunedEntry> entries;
  for (TunedEntry& entry : table.entries) {
    for (const PackedKey& key : keys_of(table, entry, space, packed(table, entry, space, columns))) {
      if (entry.from == 0) continue;
      TunedEntry& one = entries.emplace_back(entry);
      one.from = 0;
      one.key.back() = key[space.fields.size() - 1];
      if (one.key != entry.key) one.measured_us.clear();
    }
    if (entry.from == 0) entries.push_back(std::move(entry));
  }
  table.entries = std::move(entries);
  return table;
}

TunedTable join_ranges(TunedTable table, const TuneSpace& space) {
  const std::vector<size_t> columns = columns_of(table, space);
  const size_t last = space.fields.size() - 1;
  std::sort(table.entries.begin(), table.entries.end(),
            [](const TunedEntry& a, const TunedEntry& b) { return a.key < b.key; });
  const auto continues = [&](const TunedEntry& range, const TunedEntry& entry) {
    if (range.choice != entry.choice || range.run != entry.run) return false;
    PackedKey next = packed(table, range, space, columns);
    ++next[last];
    next[last] = space.bucket(next);
    return next == packed(table, entry, space, columns);
  };
  std::vector<TunedEntry> joined;
  for (TunedEntry& entry : table.entries) {
    if (joined.empty() || !continues(joined.back(), entry)) {
      joined.push_back(std::move(entry));
      continue;
    }
    TunedEntry& range = joined.back();
    if (range.from == 0) range.from = std::get<int64_t>(range.key.back());
    range.key = std::move(entry.key);
    range.measured_us = std::move(entry.measured_us);
  }
  table.entries = std::move(joined);
  return table;
}

int64_t TokenBuckets::end(int64_t num_tokens, int64_t pairs_per_token) const {
  const int64_t pairs = std::clamp<int64_t>(num_tokens * pairs_per_token, 1, most_pairs);
  // The octave above 2^n, 2^n itself not among it, has steps of 2^n / steps_per_octave, but no fractions.
  const auto octave = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(std::max<int64_t>(pairs - 1, 1))));
  const int64_t step = std::max<int64_t>(octave / steps_per_octave, 1);
  return std::max<int64_t>((pairs + step - 1) / step * step / pairs_per_token, 1);
}

TunedLookup::TunedLookup(const TunedLayers& layers, const TunedMachine& machine, const TuneSpace& space,
                         std::span<const std::string_view> choices) {
  if (space.fields.size() > kMaxTuneFields)
    fail(ErrorCode::internal, "{} has {} key fields; at most {}", space.stage, space.fields.size(), kMaxTuneFields);
  for (const std::vector<TunedTable>& layer : layers.tables)
    for (const TunedTable& table : layer) {
      if (table.stage != space.stage || !(table.machine == machine)) continue;
      const std::vector<size_t> columns = columns_of(table, space);
      for (const TunedEntry& entry : table.entries) {
        const std::vector<PackedKey> keys = keys_of(table, entry, space, packed(table, entry, space, columns));
        const int choice = index_of(entry.choice, choices);
        if (choice < 0)
          fail(ErrorCode::bad_format, "{}: {} chooses '{}', which this build does not have ({}): tune it again", table.file,
               key_text(table, entry), entry.choice, fmt::join(choices, ", "));
        for (const PackedKey& key : keys) choices_.emplace(key, choice);  // earlier layers go first
      }
    }
}

StageTuning::StageTuning(const Context& context, TunedMachine machine, const TuneSpace& space,
                         std::vector<std::string_view> choices)
    : layers_(tuned_layers(context)), machine_(std::move(machine)), space_(space), choices_(std::move(choices)) {}

int StageTuning::find(const PackedKey& key) {
  if (version_ != layers_.version) {
    lookup_ = TunedLookup(layers_, machine_, space_, choices_);
    version_ = layers_.version;
  }
  return lookup_.find(key);
}

void StageTuning::note_absent(const Context& context, const PackedKey& key) {
  if (noted_) return;
  noted_ = true;
  notices_of(context).lines.push_back(fmt::format(
      "{}: not tuned for {} on {}, a model of the crossover chooses; `mixlane tune --stage {}{}` measures it", space_.stage,
      key_text(space_, key), to_string(machine_), space_.stage, space_.options ? space_.options(key) : ""));
}

}  // namespace mixlane
