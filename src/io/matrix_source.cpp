#include "io/matrix_source.hpp"

#include <algorithm>
#include <cstring>

#include "core/math.hpp"
#include "core/numeric.hpp"
#include "core/parallel.hpp"
#include "ops/quant/formats.hpp"

namespace mixlane {
namespace {

constexpr int64_t kBlock = 128;         // rows and columns that share an fp8 scale
constexpr int64_t kMxGroup = 32;        // columns that share an mxfp4 scale
constexpr int64_t kGrainRows = 64;      // fewest rows per thread
constexpr int64_t kBatchPerThread = 4;  // experts mapped at a time, per thread

bool is_plain(const CheckpointTensor& tensor) {
  const auto dtype = tensor.entry->dtype;
  return dtype == DType::bf16 || dtype == DType::f16 || dtype == DType::f32;
}

void require_dtype(const CheckpointTensor& tensor, DType expected, std::string_view name_in_file) {
  if (tensor.entry->dtype != expected) fail(ErrorCode::unsupported, "{}: it must be {}", to_string(tensor), name_in_file);
}

float plain_value(const std::byte* values, DType dtype, int64_t index) {
  if (dtype == DType::f32) {
    float value;
    std::memcpy(&value, values + index * 4, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, values + index * 2, sizeof(bits));
  return dtype == DType::bf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

// --- mapped sources ------------------------------------------------------------------------------------------------------

MappedRange map_run(Checkpoint& checkpoint, const RowRun& run) {
  return run.count == 0 ? MappedRange() : checkpoint.map(run.tensor, run.offset, run.span_bytes());
}

struct MappedSlab {
  const Slab* slab;
  MappedRange values;
  MappedRange scales;
};

std::vector<MappedSlab> map_source(Checkpoint& checkpoint, const MatrixSource& source) {
  std::vector<MappedSlab> mapped;
  for (const Slab& slab : source.slabs)
    mapped.push_back({&slab, map_run(checkpoint, slab.values), map_run(checkpoint, slab.scales)});
  return mapped;
}

void copy_run(const RowRun& run, const MappedRange& from, std::byte* into) {
  if (run.count == 0) return;
  if (run.step == 1) {
    std::memcpy(into, from.bytes().data(), static_cast<size_t>(run.bytes()));
    return;
  }
  for (int64_t row = 0; row < run.count; ++row)
    std::memcpy(into + row * run.row_bytes, from.bytes().data() + row * run.step * run.row_bytes,
                static_cast<size_t>(run.row_bytes));
}

// --- equal formats: bytes move as they are -------------------------------------------------------------------------------

bool is_direct(const MatrixSource& source, QuantFormat format) {
  for (size_t i = 0; i < source.slabs.size(); ++i) {
    const Slab& slab = source.slabs[i];
    const bool same = (format == QuantFormat::none && slab.format == SourceFormat::plain &&
                       slab.values.tensor.entry->dtype == DType::bf16) ||
                      (format == QuantFormat::fp8_block && slab.format == SourceFormat::fp8_block) ||
                      (has_mx_weights(format) && slab.format == SourceFormat::mxfp4);
    // The 128-row blocks of the whole matrix must be those of the slabs.
    const bool blocks_fit =
        format != QuantFormat::fp8_block || i + 1 == source.slabs.size() || slab.num_rows() % kBlock == 0;
    if (!same || !blocks_fit) return false;
  }
  return true;
}

void copy_directly(const std::vector<MappedSlab>& mapped, const TensorView& values, const TensorView& scales) {
  auto* values_at = values.as<std::byte>();
  auto* scales_at = scales.as<std::byte>();
  for (const MappedSlab& part : mapped) {
    copy_run(part.slab->values, part.values, values_at);
    copy_run(part.slab->scales, part.scales, scales_at);
    values_at += part.slab->values.bytes();
    scales_at += part.slab->scales.bytes();
  }
}

// --- other formats: through f32
// --------------------------------------------------------------------------------------------

// Reused from expert to expert.
struct Scratch {
  HostTensor values;  // a slab as the file holds it, dense and aligned
  HostTensor scales;
  HostTensor dense;  // f32 [rows, cols]
};

Scratch make_scratch(const std::vector<MatrixSource>& sources, int64_t rows, int64_t cols) {
  int64_t value_bytes = 0, scale_bytes = 0;
  for (const MatrixSource& source : sources)
    for (const Slab& slab : source.slabs) {
      value_bytes = std::max(value_bytes, slab.values.bytes());
      scale_bytes = std::max(scale_bytes, slab.scales.bytes());
    }
  constexpr std::string_view kWhat = "the conversion of weights";
  return {make_host_tensor(kWhat, DType::u8, {value_bytes}), make_host_tensor(kWhat, DType::u8, {scale_bytes}),
          make_host_tensor(kWhat, DType::f32, {rows, cols})};
}

void dequantize_slab(Context& context, const MappedSlab& part, int64_t cols, Scratch& scratch, float* into) {
  const Slab& slab = *part.slab;
  const int64_t rows = slab.num_rows();
  copy_run(slab.values, part.values, scratch.values.view.as<std::byte>());
  copy_run(slab.scales, part.scales, scratch.scales.view.as<std::byte>());
  void* values = scratch.values.view.data;
  void* scales = scratch.scales.view.data;
  DequantArgs args;
  args.output = TensorView(into, DType::f32, {rows, cols});
  switch (slab.format) {
    case SourceFormat::plain: {
      const DType dtype = *slab.values.tensor.entry->dtype;
      parallel_ranges(context.num_threads(), rows, kGrainRows, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin * cols; i < end * cols; ++i)
          into[i] = plain_value(static_cast<const std::byte*>(values), dtype, i);
      });
      return;
    }
    case SourceFormat::fp8_block:
      args.group = ScaleGroup::block_128x128;
      args.input = TensorView(values, DType::fp8_e4m3, {rows, cols});
      args.scales = TensorView(scales, DType::f32, {ceil_div(rows, kBlock), ceil_div(cols, kBlock)});
      break;
    case SourceFormat::mxfp4:
      args.group = ScaleGroup::group_1x32;
      args.input = TensorView(values, DType::fp4_e2m1, {rows, cols});
      args.scales = TensorView(scales, DType::e8m0, {rows, cols / kMxGroup});
      break;
  }
  dequantize(context, args);
}

void encode(Context& context, const TensorView& dense, QuantFormat format, const TensorView& values,
            const TensorView& scales) {
  if (format == QuantFormat::none) {
    const auto* from = dense.as<float>();
    auto* into = values.as<uint16_t>();
    const int64_t cols = dense.shape[1];
    parallel_ranges(context.num_threads(), dense.shape[0], kGrainRows, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * cols; i < end * cols; ++i) into[i] = f32_to_bf16(from[i]);
    });
    return;
  }
  QuantArgs args;
  args.input = dense;
  args.group = weight_group(format);
  args.output = values;
  args.scales = scales;
  quantize(context, args);
}

void convert(Context& context, const std::vector<MappedSlab>& mapped, QuantFormat format, Scratch& scratch,
             const TensorView& values, const TensorView& scales) {
  const int64_t cols = scratch.dense.view.shape[1];
  auto* dense_at = scratch.dense.view.as<float>();
  for (const MappedSlab& part : mapped) {
    dequantize_slab(context, part, cols, scratch, dense_at);
    dense_at += part.slab->num_rows() * cols;
  }
  encode(context, scratch.dense.view, format, values, scales);
}

TensorView scales_slice(const ExpertMatrices& matrices, int64_t expert) {
  return matrices.scales.view.given() ? expert_slice(matrices.scales.view, expert) : TensorView();
}

}  // namespace

int64_t MatrixSource::num_rows() const {
  int64_t rows = 0;
  for (const Slab& slab : slabs) rows += slab.num_rows();
  return rows;
}

void require_shape(const CheckpointTensor& tensor, std::initializer_list<int64_t> expected) {
  if (!std::equal(expected.begin(), expected.end(), tensor.entry->shape.begin(), tensor.entry->shape.end()))
    fail(ErrorCode::invalid_argument, "{}: the model needs [{}]; is it another model's checkpoint?", to_string(tensor),
         fmt::join(expected, ", "));
}

Slab separate_slab(Checkpoint& checkpoint, const std::string& name, int64_t rows, int64_t cols) {
  const CheckpointTensor values = checkpoint.tensor(name);
  require_shape(values, {rows, cols});
  Slab slab;
  if (is_plain(values)) {
    slab.values = {values, 0, size_bytes(*values.entry->dtype, cols), 1, rows};
    return slab;
  }
  if (values.entry->dtype != DType::fp8_e4m3)
    fail(ErrorCode::unsupported, "{}: experts can be read from BF16, F16, F32, or F8_E4M3 with weight_scale_inv",
         to_string(values));
  const CheckpointTensor scales = checkpoint.tensor(name + "_scale_inv");
  require_dtype(scales, DType::f32, "F32");
  const int64_t block_rows = ceil_div(rows, kBlock), block_cols = ceil_div(cols, kBlock);
  require_shape(scales, {block_rows, block_cols});
  slab.format = SourceFormat::fp8_block;
  slab.values = {values, 0, cols, 1, rows};
  slab.scales = {scales, 0, block_cols * 4, 1, block_rows};
  return slab;
}

Slab stacked_slab(Checkpoint& checkpoint, const std::string& name, const StackedShape& shape, int64_t expert,
                  int64_t first_row, int64_t step) {
  if (shape.cols % kMxGroup != 0)
    fail(ErrorCode::invalid_argument, "'{}': rows of {} values; mxfp4 checkpoints hold multiples of {}", name, shape.cols,
         kMxGroup);
  const CheckpointTensor blocks = checkpoint.tensor(name + "_blocks");
  const CheckpointTensor scales = checkpoint.tensor(name + "_scales");
  const int64_t groups = shape.cols / kMxGroup;
  require_dtype(blocks, DType::u8, "U8");
  require_dtype(scales, DType::u8, "U8");
  require_shape(blocks, {shape.num_experts, shape.rows, groups, kMxGroup / 2});
  require_shape(scales, {shape.num_experts, shape.rows, groups});
  const int64_t row = expert * shape.rows + first_row;
  const int64_t count = ceil_div(shape.rows - first_row, step);
  const int64_t row_bytes = groups * kMxGroup / 2;
  Slab slab;
  slab.format = SourceFormat::mxfp4;
  slab.values = {blocks, row * row_bytes, row_bytes, step, count};
  slab.scales = {scales, row * groups, groups, step, count};
  return slab;
}

void load_matrices(Context& context, Checkpoint& checkpoint, const std::vector<MatrixSource>& sources,
                   ExpertMatrices& into) {
  const auto num_experts = static_cast<int64_t>(sources.size());
  const bool all_direct = std::all_of(sources.begin(), sources.end(),
                                      [&](const MatrixSource& source) { return is_direct(source, into.format); });
  Scratch scratch;
  if (!all_direct) scratch = make_scratch(sources, into.rows(), into.cols());
  const int64_t batch = all_direct ? kBatchPerThread * context.num_threads() : 1;
  for (int64_t first = 0; first < num_experts; first += batch) {
    const int64_t count = std::min(batch, num_experts - first);
    std::vector<std::vector<MappedSlab>> mapped;
    for (int64_t i = 0; i < count; ++i) mapped.push_back(map_source(checkpoint, sources[static_cast<size_t>(first + i)]));
    const auto copy = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        copy_directly(mapped[static_cast<size_t>(i)], expert_slice(into.values.view, first + i),
                      scales_slice(into, first + i));
    };
    if (all_direct) {
      parallel_ranges(context.num_threads(), count, 1, copy);
    } else if (is_direct(sources[static_cast<size_t>(first)], into.format)) {
      copy(0, 1);
    } else {
      convert(context, mapped[0], into.format, scratch, expert_slice(into.values.view, first), scales_slice(into, first));
    }
  }
}

void load_f32(Checkpoint& checkpoint, const CheckpointTensor& tensor, int64_t first, std::span<float> into) {
  if (!is_plain(tensor)) fail(ErrorCode::unsupported, "{}: it must be BF16, F16 or F32", to_string(tensor));
  const DType dtype = *tensor.entry->dtype;
  const auto count = static_cast<int64_t>(into.size());
  const MappedRange range = checkpoint.map(tensor, size_bytes(dtype, first), size_bytes(dtype, count));
  for (int64_t i = 0; i < count; ++i) into[static_cast<size_t>(i)] = plain_value(range.bytes().data(), dtype, i);
}

}  // namespace mixlane
