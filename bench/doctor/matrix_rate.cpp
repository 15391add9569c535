#include "doctor/matrix_rate.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <random>

#include "core/format.hpp"
#include "core/numeric.hpp"
#include "core/parallel.hpp"
#include "doctor/best_rate.hpp"
#include "doctor/probes.hpp"
#include "ops/experts/cpu/matmul_library.hpp"

namespace mixlane::bench {
namespace {

constexpr int64_t kSize = 1024;                  // of the square matrices: three of them fit a core's share of the caches
constexpr double kMinRepetitionSeconds = 0.020;  // so that the ranks' staggered start does not count

// c = a * b^T or a * b, which for square matrices is the same work, by one thread.
class Product {
 public:
  virtual ~Product() = default;
  virtual const char* run(int thread) = 0;  // nullptr, or what went wrong

 protected:
  explicit Product(int num_threads) : results_(static_cast<size_t>(num_threads), std::vector<float>(kSize * kSize)) {}
  float* result(int thread) { return results_[static_cast<size_t>(thread)].data(); }

  // Random-normal values; they repeat, which no kernel notices.
  static std::vector<float> operand(unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> period(8191), values(kSize * kSize);
    for (float& value : period) value = normal(random);
    for (size_t i = 0; i < values.size(); ++i) values[i] = period[i % period.size()];
    return values;
  }

 private:
  std::vector<std::vector<float>> results_;
};

class Bf16Product : public Product {
 public:
  explicit Bf16Product(const Context& context) : Product(context.num_threads()), library_(context.env()) {
    if (!missing().empty()) return;
    library_.prepare(context.num_threads());
    for (const auto& [bits, seed] : {std::pair{&a_, 1u}, std::pair{&b_, 2u}})
      for (const float value : operand(seed)) bits->push_back(f32_to_bf16(value));
  }
  const std::string& missing() const { return library_.missing(); }
  const char* run(int thread) override {
    MatmulArgs args;
    args.a = a_.data();
    args.b = b_.data();
    args.c = result(thread);
    args.m = args.n = args.k = args.lda = args.ldb = args.ldc = kSize;
    return library_.of_thread(thread).run(args);
  }

 private:
  MatmulLibrary library_;
  std::vector<uint16_t> a_, b_;
};

// The experts never multiply in f32; oneDNN's C function tells what the processor could do.
class F32Product : public Product {
 public:
  explicit F32Product(const Context& context) : Product(context.num_threads()), a_(operand(1)), b_(operand(2)) {
    if (void* library = open_onednn().handle) multiply_ = reinterpret_cast<Sgemm*>(::dlsym(library, "dnnl_sgemm"));
  }
  std::string missing() const { return multiply_ ? "" : "oneDNN is not installed: apt-get install libdnnl-dev"; }
  const char* run(int thread) override {
    const int status =
        multiply_('N', 'N', kSize, kSize, kSize, 1, a_.data(), kSize, b_.data(), kSize, 0, result(thread), kSize);
    return status == 0 ? nullptr : "dnnl_sgemm failed";
  }

 private:
  using Sgemm = int(char, char, int64_t, int64_t, int64_t, float, const float*, int64_t, const float*, int64_t, float,
                    float*, int64_t);
  Sgemm* multiply_ = nullptr;
  std::vector<float> a_, b_;
};

std::unique_ptr<Product> make_product(const Context& context, DType dtype, std::string& problem) {
  const auto checked = [&](auto product) -> std::unique_ptr<Product> {
    problem = product->missing();
    return product;
  };
  if (dtype == DType::bf16) return checked(std::make_unique<Bf16Product>(context));
  return checked(std::make_unique<F32Product>(context));
}

// While it lives, teams that the calling thread's work starts on its own have one thread: oneDNN's, where it is called
// from no team.
class NoTeams {
 public:
  NoTeams() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~NoTeams() { omp_set_num_threads(before_); }
  NoTeams(const NoTeams&) = delete;
  NoTeams& operator=(const NoTeams&) = delete;

 private:
  int before_;
};

// `count` products on each thread.
std::string multiply(const Context& context, Product& product, int count) {
  const NoTeams alone;
  std::atomic<const char*> problem{nullptr};
  parallel_ranges(context.num_threads(), context.num_threads(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread)
      for (int i = 0; i < count; ++i)
        if (const char* text = product.run(static_cast<int>(thread))) problem = text;
  });
  const char* text = problem;
  return text ? text : "";
}

int64_t sum_over_ranks(Communicator& comm, int64_t value) {
  int64_t sum = 0;
  for (const std::string& text : comm.all_gather(std::to_string(value))) sum += std::stoll(text);
  return sum;
}

// Products per repetition: enough for kMinRepetitionSeconds on the average rank. Warms up as well.
int agreed_count(Communicator& comm, const Context& context, Product& product, std::string& problem) {
  problem = multiply(context, product, 1);
  const auto begin = std::chrono::steady_clock::now();
  if (problem.empty()) problem = multiply(context, product, 1);
  const auto elapsed =
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - begin).count();
  const double mean_seconds = static_cast<double>(sum_over_ranks(comm, elapsed)) / comm.num_ranks() * 1e-9;
  return static_cast<int>(std::clamp(std::ceil(kMinRepetitionSeconds / mean_seconds), 1.0, 256.0));
}

}  // namespace

MatrixRate matrix_rate(Communicator& comm, Context& context, DType dtype, double seconds) {
  std::string problem;
  const std::unique_ptr<Product> product = make_product(context, dtype, problem);
  problem = first_problem(comm, problem);
  if (!problem.empty()) return {0, problem};
  const int count = agreed_count(comm, context, *product, problem);
  problem = first_problem(comm, problem);
  if (!problem.empty()) return {0, problem};
  const auto num_threads = static_cast<double>(sum_over_ranks(comm, context.num_threads()));
  const double flops = 2.0 * kSize * kSize * kSize * count * num_threads;
  return {best_rate(comm, seconds, flops, [&](int) { multiply(context, *product, count); }), ""};
}

}  // namespace mixlane::bench
