// Where model files lie, and finding one by name.
#include <algorithm>
#include <map>

#include "core/env.hpp"
#include "core/error.hpp"
#include "io/data_folder.hpp"
#include "mixlane/model.hpp"

namespace mixlane {
namespace {

// Every name and alias of one folder means one file.
void require_own_names(const std::vector<Model>& models) {
  std::map<std::string, const Model*> owners;
  for (const Model& model : models) {
    std::vector<std::string> names = model.aliases;
    names.push_back(model.name);
    for (const std::string& name : names) {
      const auto [owner, is_new] = owners.emplace(name, &model);
      if (!is_new)
        fail(ErrorCode::bad_format, "{}: the name '{}' is taken by {}; rename one", model.file.string(), name,
             owner->second->file.string());
    }
  }
}

bool is_file_argument(const std::string& text) { return text.find('/') != std::string::npos || text.ends_with(".json"); }

Model find_named(const Env& env, const std::string& wanted) {
  const std::vector<Model> models = load_catalogue(env);
  const auto named = std::find_if(models.begin(), models.end(), [&](const Model& m) { return m.name == wanted; });
  if (named != models.end()) return *named;
  const auto aliased = std::find_if(models.begin(), models.end(), [&](const Model& m) {
    return std::find(m.aliases.begin(), m.aliases.end(), wanted) != m.aliases.end();
  });
  if (aliased != models.end()) return *aliased;
  std::string names;
  for (const Model& model : models) {
    names += fmt::format("{}{}", names.empty() ? "" : ", ", model.name);
    if (!model.aliases.empty()) names += fmt::format(" ({})", fmt::join(model.aliases, ", "));
  }
  fail(ErrorCode::invalid_argument, "unknown model '{}'; give a .json file or one of {}", wanted, names);
}

}  // namespace

std::vector<std::filesystem::path> catalogue_folders(const Env& env) {
  return search_folders(env.models, data_folder("models"));
}

std::vector<Model> load_catalogue(const Env& env) {
  std::map<std::string, Model> by_name;
  for (const auto& folder : catalogue_folders(env)) {
    std::vector<Model> models;
    for (const auto& file :
         json_files(folder, "model catalogue", "set MIXLANE_MODELS to a folder of model files or unset it"))
      models.push_back(load_model(file));
    require_own_names(models);
    for (Model& model : models) by_name.emplace(model.name, std::move(model));
  }
  std::vector<Model> sorted;
  for (auto& [name, model] : by_name) sorted.push_back(std::move(model));
  return sorted;
}

Model find_model(const Env& env, const std::string& name_or_file) {
  Model model = is_file_argument(name_or_file) ? load_model(name_or_file) : find_named(env, name_or_file);
  if (!model.missing.empty())
    fail(ErrorCode::invalid_argument,
         "model {} can't run: {} {} unknown (null); copy {}, fill in the values and give that file in place of the name",
         model.name, fmt::join(model.missing, ", "), model.missing.size() == 1 ? "is" : "are", model.file.string());
  return model;
}

}  // namespace mixlane
