// mixlane_onednn.so: Matmul through oneDNN 2.x or 3.x. Links nothing of Mixlane.
#include <omp.h>

#include <dnnl.hpp>
#include <map>
#include <string>
#include <tuple>

#include "ops/experts/cpu/matmul.hpp"

namespace mixlane {
namespace {

using dnnl::memory;

// The one difference between the versions that matters here.
dnnl::matmul::primitive_desc describe(const dnnl::engine& engine, const memory::desc& a, const memory::desc& b,
                                      const memory::desc& c) {
#if DNNL_VERSION_MAJOR < 3
  return {dnnl::matmul::desc(a, b, c), engine};
#else
  return {engine, a, b, c};
#endif
}

// oneDNN sizes its work for the threads that OpenMP would give the caller.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }

 private:
  int before_;
};

class OnednnMatmul final : public Matmul {
 public:
  OnednnMatmul() : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {}

  const char* run(const MatmulArgs& args) noexcept override {
    try {
      const OneThread one_thread;
      Prepared& prepared = prepare(args);
      prepared.a.set_data_handle(const_cast<uint16_t*>(args.a));
      prepared.b.set_data_handle(const_cast<uint16_t*>(args.b));
      prepared.c.set_data_handle(args.c);
      prepared.product.execute(stream_,
                               {{DNNL_ARG_SRC, prepared.a}, {DNNL_ARG_WEIGHTS, prepared.b}, {DNNL_ARG_DST, prepared.c}});
      stream_.wait();
      return nullptr;
    } catch (const std::exception& error) {
      error_ = error.what();
      return error_.c_str();
    }
  }

 private:
  struct Prepared {
    dnnl::matmul product;
    memory a, b, c;
  };
  using Shape = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;

  Prepared& prepare(const MatmulArgs& args) {
    const Shape shape{args.m, args.n, args.k, args.lda, args.ldb, args.ldc};
    if (const auto found = prepared_.find(shape); found != prepared_.end()) return found->second;
    using Type = memory::data_type;
    const memory::desc a({args.m, args.k}, Type::bf16, memory::dims{args.lda, 1});
    const memory::desc b({args.k, args.n}, Type::bf16, memory::dims{1, args.ldb});
    const memory::desc c({args.m, args.n}, Type::f32, memory::dims{args.ldc, 1});
    Prepared prepared{dnnl::matmul(describe(engine_, a, b, c)), memory(a, engine_, nullptr), memory(b, engine_, nullptr),
                      memory(c, engine_, nullptr)};
    return prepared_.emplace(shape, std::move(prepared)).first->second;
  }

  dnnl::engine engine_;
  dnnl::stream stream_;
  std::map<Shape, Prepared> prepared_;
  std::string error_;
};

}  // namespace
}  // namespace mixlane

extern "C" __attribute__((visibility("default"))) mixlane::Matmul* mixlane_make_matmul(const char** error) {
  try {
    auto* matmul = new mixlane::OnednnMatmul;
    uint16_t zeros[16 * 16] = {};
    float result[16 * 16];
    if (!matmul->run({zeros, zeros, result, 16, 16, 16, 16, 16, 16})) return matmul;
    delete matmul;
    *error = "oneDNN has no bf16 matrix product for this CPU";
  } catch (const std::exception&) {
    *error = "oneDNN can't make a CPU engine";
  }
  return nullptr;
}
