// Which tuned tables a context has.
#include "core/env.hpp"
#include "core/tuning.hpp"
#include "io/data_folder.hpp"
#include "io/tuned.hpp"
#include "mixlane/tuning.hpp"

namespace mixlane {

std::vector<TunedTable> read_tuned_folder(const std::filesystem::path& folder) {
  std::vector<TunedTable> tables;
  for (const auto& file : json_files(folder, "tuned tables", "name a folder of tables that `mixlane tune` wrote"))
    tables.push_back(read_tuned(file));
  require_agreement(tables);
  return tables;
}

TunedLayers load_tuned_layers(const Env& env) {
  TunedLayers layers;
  if (!env.tuned.empty()) layers.tables[TunedLayers::environment] = read_tuned_folder(env.tuned);
  std::error_code error;
  const std::filesystem::path installed = data_folder("tuned");
  if (std::filesystem::is_directory(installed, error)) layers.tables[TunedLayers::installed] = read_tuned_folder(installed);
  return layers;
}

void load_tuned(Context& context, const std::string& file_or_folder) {
  TunedLayers& layers = tuned_layers(context);
  std::vector<TunedTable> given = layers.tables[TunedLayers::given];
  std::error_code error;
  if (std::filesystem::is_directory(file_or_folder, error)) {
    for (TunedTable& table : read_tuned_folder(file_or_folder)) given.push_back(std::move(table));
  } else {
    given.push_back(read_tuned(file_or_folder));
  }
  require_agreement(given);
  layers.tables[TunedLayers::given] = std::move(given);
  ++layers.version;
}

}  // namespace mixlane
