// What stages keep between calls of one context: loaded modules, prepared products.
#pragma once

#include <map>
#include <memory>
#include <typeindex>

namespace mixlane {

// One object per type, made at its first use and gone with the context.
class StageStates {
 public:
  template <class State, class Make>
  State& get(Make&& make) {
    std::shared_ptr<void>& slot = states_[typeid(State)];
    if (!slot) slot = std::shared_ptr<State>(make());
    return *static_cast<State*>(slot.get());
  }

 private:
  std::map<std::type_index, std::shared_ptr<void>> states_;
};

}  // namespace mixlane
