// Finds, loads and keeps mixlane_onednn.so for a context.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/env.hpp"
#include "ops/experts/cpu/matmul.hpp"

namespace mixlane {

// One Matmul per thread of the context, from a module that stays loaded.
class MatmulLibrary {
 public:
  // Never throws: `missing` tells. `module` is loaded from env.modules, by default from beside libmixlane.so.
  explicit MatmulLibrary(const Env& env);

  // What is missing and how to get it; empty if nothing is.
  const std::string& missing() const { return missing_; }
  // Makes the Matmul of threads [0, num_threads) where they don't exist yet.
  void prepare(int num_threads);
  Matmul& of_thread(int thread) { return *threads_[static_cast<size_t>(thread)]; }

 private:
  std::string missing_;
  MakeMatmul* make_ = nullptr;
  std::vector<std::unique_ptr<Matmul>> threads_;
};

}  // namespace mixlane
