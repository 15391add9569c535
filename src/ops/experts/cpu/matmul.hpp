// Matrix products of a library that is loaded on demand: the whole interface of the module mixlane_onednn.so.
#pragma once

#include <cstdint>

namespace mixlane {

// c[m, n] = sum over k of a[m, k] * b[n, k]: bf16 operands, products accumulated in f32. Row major, k dense; lda, ldb and
// ldc are the distances of rows in values.
struct MatmulArgs {
  const uint16_t* a = nullptr;
  const uint16_t* b = nullptr;
  float* c = nullptr;
  int64_t m = 0, n = 0, k = 0;
  int64_t lda = 0, ldb = 0, ldc = 0;
};

// Used by one thread at a time, and uses no other: a result depends on the arguments alone. Keeps what it prepared for
// every shape it has seen, so callers use few shapes.
class Matmul {
 public:
  virtual ~Matmul() = default;
  // nullptr, or what went wrong. Nothing is thrown across libraries that may hold different C++ runtimes.
  virtual const char* run(const MatmulArgs& args) noexcept = 0;
};

// The module's one symbol, "mixlane_make_matmul". nullptr and a reason in `error` if this CPU has no bf16 products.
extern "C" using MakeMatmul = Matmul * (const char** error);

}  // namespace mixlane
