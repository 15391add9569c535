// The shape catalogue: what a model's MoE layer looks like.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "mixlane/experts.hpp"
#include "mixlane/routing.hpp"

namespace mixlane {

// One file of models/, or a user's own. Fields and defaults: docs/models.md.
struct Model {
  std::string name;                  // as on the command line: "qwen3-30b-a3b"
  std::string title;                 // as people write it: "Qwen3-30B-A3B"
  std::vector<std::string> aliases;  // other names of models with the same layer: "deepseek-r1"
  int hidden = 0;
  int intermediate = 0;  // of one routed expert
  RoutingConfig routing;
  bool correction_bias = false;  // the router has one
  bool router_bias = false;      // the router's logits have one (gpt-oss); part of the logits here
  int hash_layers = 0;           // first layers that use hash routing
  Activation activation;
  bool expert_bias = false;  // gate_up and down have biases (gpt-oss)
  int num_shared_experts = 0;
  int shared_intermediate = 0;          // of all shared experts together; 0 = none
  bool shared_gate = false;             // the shared output is scaled by sigmoid(hidden . gate) (Qwen3-Next)
  std::string source;                   // where the values come from
  std::vector<std::string> unverified;  // fields whose values nobody has checked; "*" = all
  std::vector<std::string> missing;     // fields that the file holds as null, because nobody knows them: the model can't run
  std::filesystem::path file;           // where it was read from
};

// Throws io_error or bad_format, naming file, field, value and what is allowed. A model with missing fields is returned.
Model load_model(const std::filesystem::path& file);
Model parse_model(std::string_view json, std::string_view file_name);

// The catalogue folders in search order: MIXLANE_MODELS, the source tree's or the installation's models/.
std::vector<std::filesystem::path> catalogue_folders(const Env& env);
// Every model of the catalogue, by name; the first folder that has a name wins. Models with missing fields are there too.
std::vector<Model> load_catalogue(const Env& env);
// `name_or_file`: a catalogue name, an alias, or a path to a JSON file (it ends in .json or holds a '/'). Throws
// invalid_argument listing the names, or the missing fields and how to give them.
Model find_model(const Env& env, const std::string& name_or_file);

}  // namespace mixlane
