#include "core/tuning.hpp"

#include <algorithm>
#include <bit>

#include "core/notices.hpp"
#include "core/stage_states.hpp"

namespace mixlane {
namespace {

constexpr int64_t kMostPairs = int64_t{1} << 20;

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

int64_t token_bucket(int64_t num_tokens, int64_t pairs_per_token) {
  const int64_t pairs = std::max<int64_t>(num_tokens, 1) * pairs_per_token;
  if (pairs >= kMostPairs) return std::max<int64_t>(kMostPairs / pairs_per_token, 1);
  const auto power = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(pairs)));
  // 3 is between 2 and 4; there is nothing between 1 and 2.
  const int64_t bucket = power >= 4 && pairs <= power / 4 * 3 ? power / 4 * 3 : power;
  return bucket / pairs_per_token;
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
        PackedKey key{};
        for (size_t i = 0; i < columns.size(); ++i) key[i] = packed(table, space.fields[i], entry.key[columns[i]]);
        const int choice = index_of(entry.choice, choices);
        if (choice < 0)
          fail(ErrorCode::bad_format, "{}: {} chooses '{}', which this build does not have ({}): tune it again", table.file,
               key_text(table, entry), entry.choice, fmt::join(choices, ", "));
        choices_.emplace(key, choice);  // earlier layers go first
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
