// experts.onednn: matrix products by oneDNN, one thread each; many run side by side.
//
// The slots of every expert are cut into tiles of kTileRows rows, tiles are taken in waves that share a workspace of fixed
// size, and a wave goes through three loops over independent tasks, with all threads in each:
//   gather    row                       -> operand row (quantised if the format wants it)
//   gate_up   (tile, kGateUpCols of I)  -> gate and up products -> activation -> operand for down
//   down      (tile, kDownCols of H)    -> product -> bias -> bf16 rows at their slots
// Tiles and columns are cut the same way whatever the number of threads, and a tile's method depends on its rows alone:
// the same pairs on an expert give the same bits.
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <span>
#include <vector>

#include "core/arena.hpp"
#include "core/numeric.hpp"
#include "core/simd.hpp"
#include "core/stage_states.hpp"
#include "ops/experts/activation.hpp"
#include "ops/experts/cpu/few_rows.hpp"
#include "ops/experts/cpu/matmul_library.hpp"
#include "ops/experts/op.hpp"
#include "ops/experts/operands.hpp"
#include "ops/experts/sum_pairs.hpp"

namespace mixlane {
namespace {

constexpr int64_t kTileRows = 256;
// Both multiples of 128, the scale group of fp8_block.
constexpr int64_t kGateUpCols = 128;
constexpr int64_t kDownCols = 256;
constexpr int64_t kWaveRowsPerThread = 512;
// Products see row counts rounded up to it: few shapes to prepare, and a whole matrix tile of the CPU.
constexpr int64_t kRowUnit = 16;

struct Tile {
  int64_t expert, first_slot, rows;
  int64_t scratch_row;  // first row in the wave's buffers
  int64_t scratch_rows() const { return rows <= kFewRows ? rows : ceil_div(rows, kRowUnit) * kRowUnit; }
};

struct ThreadScratch {
  float* products;    // [kTileRows, 2 * kGateUpCols or kDownCols]
  float* partial;     // fp8_block: one group's products
  float* row;         // max(H, I) floats, also the few-rows scratch
  uint16_t* weights;  // decoded: kDownCols or kGateUpCols rows
  float* column_scales;
};

MatmulLibrary& library(const Context& context) {
  return context.states().get<MatmulLibrary>([&] { return std::make_shared<MatmulLibrary>(context.env()); });
}

MIXLANE_CPU_LEVELS void scale_row(const float* products, float a_scale, const float* w_scales, int64_t count, float* out) {
  for (int64_t n = 0; n < count; ++n) out[n] = products[n] * (a_scale * w_scales[n]);
}
MIXLANE_CPU_LEVELS void add_scaled_row(const float* products, float a_scale, const float* w_scales, int64_t count,
                                       float* sums) {
  for (int64_t n = 0; n < count; ++n) sums[n] += products[n] * (a_scale * w_scales[n]);
}

MIXLANE_CPU_LEVELS void add_row(const float* addend, int64_t count, float* row) {
  for (int64_t n = 0; n < count; ++n) row[n] += addend[n];
}

MIXLANE_CPU_LEVELS void store_bf16(const float* row, int64_t count, uint16_t* out) {
  for (int64_t n = 0; n < count; ++n) out[n] = f32_to_bf16(row[n]);
}

// One call: geometry, the workspace and the steps of a tile.
class Call {
 public:
  Call(Context& context, const ExpertsArgs& args)
      : context_(context),
        args_(args),
        rows_(args.output),
        slots_(args),
        hidden_(args.weights.hidden),
        intermediate_(args.weights.intermediate),
        format_(args.weights.format),
        num_threads_(context.num_threads()),
        arena_(context.arena()),
        library_(library(context)) {
    library_.prepare(num_threads_);
  }

  void run() {
    std::vector<Tile> tiles = cut_tiles();
    if (!tiles.empty()) run_tiles(tiles);
    if (args_.pair_slots.given()) sum_pairs(context_, args_, rows_);
  }

 private:
  void run_tiles(std::vector<Tile>& tiles) {
    take_workspace(tiles);
    for (size_t begin = 0; begin < tiles.size();) {
      size_t end = begin;
      int64_t rows = 0;
      while (end < tiles.size() && (end == begin || rows + tiles[end].scratch_rows() <= wave_rows_)) {
        tiles[end].scratch_row = rows;
        rows += tiles[end++].scratch_rows();
      }
      run_wave({tiles.data() + begin, end - begin});
      begin = end;
    }
    if (const char* error = error_.load()) fail(ErrorCode::internal, "oneDNN: {}", error);
  }
  std::vector<Tile> cut_tiles() const {
    std::vector<Tile> tiles;
    for (int64_t e = 0; e < args_.weights.num_experts; ++e)
      for (int64_t done = 0; done < slots_.count(e); done += kTileRows)
        tiles.push_back({e, slots_.begin(e) + done, std::min(kTileRows, slots_.count(e) - done), 0});
    return tiles;
  }

  void take_workspace(const std::vector<Tile>& tiles);
  void run_wave(std::span<const Tile> tiles);
  void gather(const Tile& tile, ThreadScratch& scratch);
  void gate_up(const Tile& tile, int64_t first, int thread);
  void quantise_activated(const Tile& tile);
  void down(const Tile& tile, int64_t first, int thread);
  void multiply(const MatrixView& matrix, int64_t first, int64_t count, const Tile& tile, const uint16_t* values,
                const float* scales, int thread, float* c, int64_t ldc);
  void matmul(int thread, const MatmulArgs& args);

  template <class Body>
  void for_each_task(int64_t count, Body&& body) {
#pragma omp parallel for num_threads(num_threads_) schedule(dynamic, 1)
    for (int64_t task = 0; task < count; ++task) body(task, omp_get_thread_num());
  }

  // fp8_channel needs the whole activated row before it can quantise it.
  bool whole_rows() const { return format_ == QuantFormat::fp8_channel; }

  const Context& context_;
  const ExpertsArgs& args_;
  TensorView rows_;  // bf16 [slots, H]: the output, or what its sums are of
  const SlotMap slots_;
  const int64_t hidden_, intermediate_;
  const QuantFormat format_;
  const int num_threads_;
  Arena& arena_;
  MatmulLibrary& library_;
  std::atomic<const char*> error_{nullptr};

  int64_t wave_rows_ = 0;
  uint16_t* input_ = nullptr;          // [wave rows, H]
  float* input_scales_ = nullptr;      // [wave rows, groups of H]
  uint16_t* activated_ = nullptr;      // [wave rows, I]
  float* activated_scales_ = nullptr;  // [wave rows, groups of I]
  float* unquantised_ = nullptr;       // [wave rows, I], fp8_channel
  std::vector<ThreadScratch> threads_;
};

void Call::take_workspace(const std::vector<Tile>& tiles) {
  int64_t rows = 0;
  for (const Tile& tile : tiles) rows += tile.scratch_rows();
  wave_rows_ = std::min(rows, kWaveRowsPerThread * num_threads_);
  const bool decodes = format_ != QuantFormat::none;
  const int64_t longest = std::max(hidden_, intermediate_);
  const int64_t products = kTileRows * std::max(2 * kGateUpCols, kDownCols);
  const int64_t weights = decodes ? std::max(kGateUpCols * hidden_, kDownCols * intermediate_) : 0;
  const int64_t partial = has_groups(format_) ? products : 0;
  const int64_t row = std::max(longest, few_rows_scratch(longest));
  const int64_t columns = std::max(kGateUpCols, kDownCols);

  const int64_t pair_rows = args_.pair_slots.given() ? num_slots(args_) : 0;
  uint16_t* pairs = nullptr;

  // Two rounds of the same code: the sum, then the pointers.
  int64_t bytes = 0;
  bool measuring = true;
  const auto take = [&](auto*& pointer, int64_t count) {
    const auto size = count * static_cast<int64_t>(sizeof(*pointer));
    if (measuring)
      bytes += Arena::rounded(size);
    else
      pointer = static_cast<std::remove_reference_t<decltype(pointer)>>(arena_.take(size));
  };
  threads_.resize(static_cast<size_t>(num_threads_));
  const auto take_all = [&] {
    take(pairs, pair_rows * hidden_);
    take(input_, wave_rows_ * hidden_);
    take(input_scales_, wave_rows_ * num_groups(format_, hidden_));
    take(activated_, wave_rows_ * intermediate_);
    take(activated_scales_, wave_rows_ * num_groups(format_, intermediate_));
    take(unquantised_, whole_rows() ? wave_rows_ * intermediate_ : 0);
    for (ThreadScratch& thread : threads_) {
      take(thread.products, products);
      take(thread.partial, partial);
      take(thread.row, row);
      take(thread.weights, weights);
      take(thread.column_scales, columns);
    }
  };
  take_all();
  arena_.reserve(bytes);
  measuring = false;
  take_all();
  if (args_.pair_slots.given()) rows_ = {pairs, DType::bf16, {pair_rows, hidden_}};
}

void Call::run_wave(std::span<const Tile> tiles) {
  const auto num_tiles = static_cast<int64_t>(tiles.size());
  for_each_task(num_tiles, [&](int64_t task, int thread) { gather(tiles[task], threads_[thread]); });
  const int64_t gate_up_tasks = ceil_div(intermediate_, kGateUpCols);
  for_each_task(num_tiles * gate_up_tasks, [&](int64_t task, int thread) {
    gate_up(tiles[task / gate_up_tasks], task % gate_up_tasks * kGateUpCols, thread);
  });
  if (whole_rows()) for_each_task(num_tiles, [&](int64_t task, int) { quantise_activated(tiles[task]); });
  const int64_t down_tasks = ceil_div(hidden_, kDownCols);
  for_each_task(num_tiles * down_tasks,
                [&](int64_t task, int thread) { down(tiles[task / down_tasks], task % down_tasks * kDownCols, thread); });
}

void Call::gather(const Tile& tile, ThreadScratch& scratch) {
  const int64_t groups = num_groups(format_, hidden_);
  for (int64_t m = 0; m < tile.rows; ++m) {
    const int64_t row = tile.scratch_row + m;
    load_input_row(args_, slots_.pair(tile.first_slot + m), input_ + row * hidden_, input_scales_ + row * groups,
                   scratch.row);
  }
  // Rows that only fill up the last unit: their products are not used, but reading them must be harmless.
  const int64_t fill = tile.scratch_rows() - tile.rows, first = tile.scratch_row + tile.rows;
  std::memset(input_ + first * hidden_, 0, static_cast<size_t>(fill * hidden_) * 2);
  std::memset(activated_ + first * intermediate_, 0, static_cast<size_t>(fill * intermediate_) * 2);
}

void Call::gate_up(const Tile& tile, int64_t first, int thread) {
  const MatrixView matrix = gate_up_of(args_.weights, tile.expert);
  const int64_t count = std::min(kGateUpCols, intermediate_ - first), stride = 2 * kGateUpCols;
  const int64_t groups = num_groups(format_, hidden_);
  float* gate = threads_[thread].products;
  float* up = gate + kGateUpCols;
  const uint16_t* values = input_ + tile.scratch_row * hidden_;
  const float* scales = input_scales_ + tile.scratch_row * groups;
  const bool gated = args_.activation.gated();
  multiply(matrix, first, count, tile, values, scales, thread, gate, stride);
  if (gated) multiply(matrix, intermediate_ + first, count, tile, values, scales, thread, up, stride);

  const int64_t out_groups = num_groups(format_, intermediate_);
  for (int64_t m = 0; m < tile.rows; ++m, gate += stride, up += stride) {
    if (matrix.bias) add_row(matrix.bias + first, count, gate);
    if (matrix.bias && gated) add_row(matrix.bias + intermediate_ + first, count, up);
    const int64_t row = tile.scratch_row + m;
    if (whole_rows()) {
      apply_activation(args_.activation, gate, up, unquantised_ + row * intermediate_ + first, count);
      continue;
    }
    apply_activation(args_.activation, gate, up, gate, count);
    float* to_scales = activated_scales_ + row * out_groups + (out_groups > 1 ? first / kScaleBlock : 0);
    store_operand(format_, gate, count, activated_ + row * intermediate_ + first, to_scales);
  }
}

void Call::quantise_activated(const Tile& tile) {
  for (int64_t row = tile.scratch_row; row < tile.scratch_row + tile.rows; ++row)
    store_operand(format_, unquantised_ + row * intermediate_, intermediate_, activated_ + row * intermediate_,
                  activated_scales_ + row);
}

void Call::down(const Tile& tile, int64_t first, int thread) {
  const MatrixView matrix = down_of(args_.weights, tile.expert);
  const int64_t count = std::min(kDownCols, hidden_ - first);
  float* product = threads_[thread].products;
  multiply(matrix, first, count, tile, activated_ + tile.scratch_row * intermediate_,
           activated_scales_ + tile.scratch_row * num_groups(format_, intermediate_), thread, product, kDownCols);
  for (int64_t m = 0; m < tile.rows; ++m, product += kDownCols) {
    if (matrix.bias) add_row(matrix.bias + first, count, product);
    store_bf16(product, count, rows_.as<uint16_t>() + (tile.first_slot + m) * rows_.strides[0] + first);
  }
}

// c[m, 0 .. count) = product of the tile's operand rows with the matrix rows from `first` on, without bias.
void Call::multiply(const MatrixView& matrix, int64_t first, int64_t count, const Tile& tile, const uint16_t* values,
                    const float* scales, int thread, float* c, int64_t ldc) {
  ThreadScratch& scratch = threads_[thread];
  if (tile.rows <= kFewRows)
    return few_rows_product(matrix, first, count, {values, scales, tile.rows, matrix.cols}, c, ldc, scratch.row);

  const auto* weights = reinterpret_cast<const uint16_t*>(matrix.row(first));
  if (format_ != QuantFormat::none) {
    for (int64_t n = 0; n < count; ++n) decode_row(matrix, first + n, scratch.weights + n * matrix.cols);
    weights = scratch.weights;
  }
  MatmulArgs args{values, weights, c, tile.scratch_rows(), count, matrix.cols, matrix.cols, matrix.cols, ldc};
  if (!quantises_activations(format_)) return matmul(thread, args);

  const int64_t group = group_size(format_, matrix.cols), groups = num_groups(format_, matrix.cols);
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t n = 0; n < count; ++n) scratch.column_scales[n] = weight_scale(matrix, first + n, g);
    args.a = values + g * group;
    args.b = weights + g * group;
    args.k = std::min(group, matrix.cols - g * group);
    args.c = g == 0 ? c : scratch.partial;
    args.ldc = g == 0 ? ldc : count;
    matmul(thread, args);
    for (int64_t m = 0; m < tile.rows; ++m) {
      const float a_scale = scales[m * groups + g];
      if (g == 0)
        scale_row(c + m * ldc, a_scale, scratch.column_scales, count, c + m * ldc);
      else
        add_scaled_row(scratch.partial + m * count, a_scale, scratch.column_scales, count, c + m * ldc);
    }
  }
}

// Exceptions can't leave a parallel loop: the first error is kept for its end.
void Call::matmul(int thread, const MatmulArgs& args) {
  if (const char* error = library_.of_thread(thread).run(args)) error_.store(error);
}

}  // namespace

std::string onednn_missing(const Context& context) { return library(context).missing(); }

void launch_experts_onednn(Context& context, const ExpertsArgs& args, Stream) {
  const Arena::Scope scope(context.arena());
  Call(context, args).run();
}

}  // namespace mixlane
