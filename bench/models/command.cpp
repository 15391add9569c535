#include "command.hpp"

#include <nlohmann/json.hpp>

#include "core/env.hpp"
#include "core/format.hpp"
#include "models/models.hpp"
#include "results/files.hpp"

namespace mixlane::bench {

void add_models(CLI::App& app, Action& action) {
  auto json = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("models", "The shape catalogue");
  command->add_option("--json", *json, "Write the catalogue as JSON to this file; - is standard output");
  command->footer("A JSON file of your own works in place of a name; docs/models.md describes the fields.");
  command->callback([json, &action] {
    action = [json] {
      const std::vector<Model> models = load_catalogue(Env::read());
      if (!json->empty()) write_output(*json, models_json(models).dump(1) + "\n");
      if (*json != "-") fmt::print("{}", models_table(models));
      return kExitOk;
    };
  });
}

}  // namespace mixlane::bench
