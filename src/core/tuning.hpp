// Tuned choices: what was measured to be best for a key on a kind of machine, and looking it up on the path of a call.
// docs/tuning.md.
#pragma once

#include <algorithm>
#include <array>
#include <limits>
#include <unordered_map>

#include "core/registry.hpp"
#include "core/tuned_table.hpp"

namespace mixlane {

struct Env;

// Of a GPU; throws unsupported in a build without a GPU backend.
TunedMachine gpu_machine(Device device);

// The tables of a context. A choice of an earlier layer goes before those of later ones; inside a layer tables agree.
struct TunedLayers {
  enum Layer { given, environment, installed, kNumLayers };
  std::array<std::vector<TunedTable>, kNumLayers> tables{};
  uint32_t version = 0;  // changes with the tables
};

// What a new context has: the tables of MIXLANE_TUNED and the installed ones. Defined by src/io.
TunedLayers load_tuned_layers(const Env& env);
// Those of `context`, loaded at the first use.
TunedLayers& tuned_layers(const Context& context);

// ---------------------------------------------------------------------------------------------------------------------
// Looking up

struct TuneField {
  std::string_view name;
  std::span<const std::string_view> words = {};  // what it can say; none: a whole number
};

// A key on the path of a call: numbers, and words as their index.
using PackedKey = std::array<int64_t, kMaxTuneFields>;
struct PackedKeyHash {
  size_t operator()(const PackedKey& key) const;
};

// How a stage keys its choices.
struct TuneSpace {
  std::string_view stage;
  std::span<const TuneField> fields;
  // What `mixlane tune --stage <stage>` needs beside that to measure a key: " --shapes 96x5"; nullptr: nothing.
  std::string (*options)(const PackedKey&) = nullptr;
  // The last field is a size of which only some are looked up, the ends of buckets: the one that a call with this key's
  // size asks for; nullptr: the size itself.
  int64_t (*bucket)(const PackedKey&) = nullptr;
  bool in_ranges = false;  // files join neighbouring buckets with one choice
};

std::string key_text(const TuneSpace& space, const PackedKey& key);

// An entry per bucket; times stay with a range's largest. Throws bad_format for ranges that are not of the stage's buckets.
TunedTable split_ranges(TunedTable table, const TuneSpace& space);
// Neighbouring buckets that one run measured and that have the same choice become a range, with the times of the largest.
TunedTable join_ranges(TunedTable table, const TuneSpace& space);

// The sizes whose keys are tuned, in pairs of a token and an expert: kernels change their ways at numbers of pairs. Every
// octave is cut into equal steps, a power of two of them: 1, 2, 3, 4, 6, 8, 12, 16 ... for two, 1 to 8, 10, 12, 14, 16, 20
// ... for four. The largest stands for all above as well.
struct TokenBuckets {
  int steps_per_octave = 2;
  int64_t most_pairs = int64_t{1} << 20;

  // The bucket of `num_tokens` by its end: the most tokens whose pairs, `pairs_per_token` of each, are no more than the next
  // of these sizes.
  int64_t end(int64_t num_tokens, int64_t pairs_per_token = 1) const;
};

// The choices of one stage for one machine, as indices into a list of names.
class TunedLookup {
 public:
  TunedLookup() = default;
  // Throws bad_format, naming the file, for keys and choices that the stage does not know, and for keys that no call asks
  // for.
  TunedLookup(const TunedLayers& layers, const TunedMachine& machine, const TuneSpace& space,
              std::span<const std::string_view> choices);
  int find(const PackedKey& key) const {
    const auto found = choices_.find(key);
    return found == choices_.end() ? -1 : found->second;
  }
  size_t size() const { return choices_.size(); }

 private:
  std::unordered_map<PackedKey, int, PackedKeyHash> choices_;
};

// One stage's choices in one context: resolved at the first call and after load_tuned().
class StageTuning {
 public:
  StageTuning(const Context& context, TunedMachine machine, const TuneSpace& space, std::vector<std::string_view> choices);

  const TunedMachine& machine() const { return machine_; }
  int find(const PackedKey& key);
  // Tells the context's user, once, that a model chose instead and which command measures.
  void note_absent(const Context& context, const PackedKey& key);

 private:
  TunedLayers& layers_;
  TunedMachine machine_;
  TuneSpace space_;
  std::vector<std::string_view> choices_;
  TunedLookup lookup_;
  uint32_t version_ = ~0u;
  bool noted_ = false;
};

// A variant that the model expects to take this many times what the best one takes is not worth measuring.
inline constexpr double kHopelessEstimate = 3;

// select() where "auto" is the tuned choice for `key` if there is one and it takes the arguments, else the variant whose
// estimate is lowest among those that take them. Every variant of `table` has an estimate; `table` is what `tuning` chooses
// from.
template <class Args>
const Variant<Args>& select_tuned(std::span<const Variant<Args>> table, std::string_view wanted, const Context& context,
                                  const Args& args, StageTuning& tuning, const PackedKey& key) {
  if (wanted != "auto") return select(table, wanted, context, args);
  const int tuned = tuning.find(key);
  if (tuned >= 0 && takes(table[tuned], context, args)) return table[tuned];
  const Variant<Args>* best = nullptr;
  double best_us = 0, second_us = std::numeric_limits<double>::infinity();
  for (const Variant<Args>& variant : table) {
    if (!takes(variant, context, args)) continue;
    const double us = variant.estimate_us(args, tuning.machine().num_multiprocessors);
    if (!best || us < best_us) {
      if (best) second_us = best_us;
      best = &variant;
      best_us = us;
    } else {
      second_us = std::min(second_us, us);
    }
  }
  if (!best) return select(table, wanted, context, args);  // throws with every variant's reason
  if (second_us <= kHopelessEstimate * best_us) tuning.note_absent(context, key);
  return *best;
}

}  // namespace mixlane
