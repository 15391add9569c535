#include "io/matrix_source.hpp"

#include <algorithm>

#include "core/math.hpp"
#include "ops/quant/formats.hpp"

namespace mixlane {
namespace {

constexpr int64_t kBlock = 128;   // rows and columns that share an fp8 scale
constexpr int64_t kMxGroup = 32;  // columns that share an mxfp4 scale
constexpr int64_t kAlign = 256;   // of what is fetched for conversions

void require_dtype(const CheckpointTensor& tensor, DType expected, std::string_view name_in_file) {
  if (tensor.entry->dtype != expected) fail(ErrorCode::unsupported, "{}: it must be {}", to_string(tensor), name_in_file);
}

void require_one_format(const MatrixSource& source) {
  for (const Slab& slab : source.slabs)
    if (slab.format != source.slabs[0].format)
      fail(ErrorCode::unsupported, "{} and {}: one is quantised, the other is not; they make up one matrix",
           to_string(source.slabs[0].values.tensor), to_string(slab.values.tensor));
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

void require_plain(const CheckpointTensor& tensor) {
  if (!tensor.entry->dtype || !is_plain(*tensor.entry->dtype))
    fail(ErrorCode::unsupported, "{}: it must be BF16, F16 or F32", to_string(tensor));
}

Slab separate_slab(Checkpoint& checkpoint, const std::string& name, int64_t rows, int64_t cols) {
  const CheckpointTensor values = checkpoint.tensor(name);
  require_shape(values, {rows, cols});
  Slab slab;
  if (values.entry->dtype && is_plain(*values.entry->dtype)) {
    slab.values = {values, 0, size_bytes(*values.entry->dtype, cols), rows};
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
  slab.values = {values, 0, cols, rows};
  slab.scales = {scales, 0, block_cols * 4, block_rows};
  return slab;
}

Slab stacked_slab(Checkpoint& checkpoint, const std::string& name, const StackedShape& shape, int64_t expert, int ways) {
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
  const int64_t row = expert * shape.rows;
  const int64_t row_bytes = groups * kMxGroup / 2;
  Slab slab;
  slab.format = SourceFormat::mxfp4;
  slab.values = {blocks, row * row_bytes, row_bytes, shape.rows, ways};
  slab.scales = {scales, row * groups, groups, shape.rows, ways};
  return slab;
}

// --- equal formats -------------------------------------------------------------------------------------------------------

bool is_direct(const MatrixSource& source, QuantFormat format) {
  for (size_t i = 0; i < source.slabs.size(); ++i) {
    const Slab& slab = source.slabs[i];
    const bool same = (format == QuantFormat::none && slab.format == SourceFormat::plain) ||
                      (format == QuantFormat::fp8_block && slab.format == SourceFormat::fp8_block) ||
                      (has_mx_weights(format) && slab.format == SourceFormat::mxfp4);
    // The 128-row blocks of the whole matrix must be those of the slabs.
    const bool blocks_fit =
        format != QuantFormat::fp8_block || i + 1 == source.slabs.size() || slab.num_rows() % kBlock == 0;
    if (!same || !blocks_fit) return false;
  }
  return true;
}

void plan_matrices(const std::vector<MatrixSource>& sources, const ExpertMatrices& into, LoadPlan& plan) {
  // Values first, then scales: what is neighbours in memory stays neighbours in the list.
  std::vector<Transfer> all_scales;
  for (size_t e = 0; e < sources.size(); ++e) {
    const MatrixSource& source = sources[e];
    require_one_format(source);
    const TensorView values = expert_slice(into.values.view, static_cast<int64_t>(e));
    const TensorView scales =
        into.scales.view.given() ? expert_slice(into.scales.view, static_cast<int64_t>(e)) : TensorView();
    if (!is_direct(source, into.format)) {
      plan.conversions.push_back({source, into.format, values, scales});
      continue;
    }
    auto* values_at = values.as<std::byte>();
    auto* scales_at = scales.as<std::byte>();
    for (const Slab& slab : source.slabs) {
      Transfer transfer = as_stored(slab.values, values_at, into.values.view.data);
      if (slab.format == SourceFormat::plain) transfer.dtype = DType::bf16;
      plan.transfers.push_back(transfer);
      values_at += transfer.row_bytes() * slab.num_rows();
      if (slab.scales.count == 0) continue;
      all_scales.push_back(as_stored(slab.scales, scales_at, into.scales.view.data));
      scales_at += slab.scales.bytes();
    }
  }
  plan.transfers.insert(plan.transfers.end(), all_scales.begin(), all_scales.end());
}

int64_t bytes_read(const LoadPlan& plan) {
  int64_t bytes = 0;
  for (const Transfer& transfer : plan.transfers) bytes += transfer.from.bytes();
  for (const Conversion& conversion : plan.conversions)
    for (const Slab& slab : conversion.from.slabs) bytes += slab.values.bytes() + slab.scales.bytes();
  return bytes;
}

// --- other formats: through f32 ------------------------------------------------------------------------------------------

namespace {

// Plain matrices are fetched in one dtype: their own, or f32 if the slabs' differ.
DType plain_dtype(const MatrixSource& source) {
  for (const Slab& slab : source.slabs)
    if (slab.values.dtype() != source.slabs[0].values.dtype()) return DType::f32;
  return source.slabs[0].values.dtype();
}

// Appends the transfers that bring a matrix to `into`, and returns the bytes that it takes there: a plain one dense, of
// others values, then scales of each slab, each aligned.
int64_t plan_fetch(const MatrixSource& source, std::byte* into, const void* allocation, std::vector<Transfer>* transfers) {
  const bool plain = source.slabs[0].format == SourceFormat::plain;
  int64_t used = 0;
  const auto add = [&](const RowRun& run, DType dtype) {
    const Transfer transfer{run, dtype, into + used, allocation};
    if (transfers) transfers->push_back(transfer);
    used += transfer.row_bytes() * run.count;
    if (!plain) used = ceil_div(used, kAlign) * kAlign;
  };
  for (const Slab& slab : source.slabs) {
    add(slab.values, plain ? plain_dtype(source) : slab.values.dtype());
    if (!plain) add(slab.scales, slab.scales.dtype());
  }
  return ceil_div(used, kAlign) * kAlign;
}

int64_t fetched_bytes(const MatrixSource& source) { return plan_fetch(source, nullptr, nullptr, nullptr); }

// f32 values of a matrix between its two formats; none where it goes in one step.
int64_t dense_bytes(const MatrixSource& source, QuantFormat format) {
  if (format == QuantFormat::none || source.slabs[0].format == SourceFormat::plain) return 0;
  return source.num_rows() * source.cols * 4;
}

void dequantize_slab(WeightMemory& memory, int lane, const Slab& slab, int64_t cols, std::byte* values, std::byte* scales,
                     const TensorView& output) {
  const int64_t rows = slab.num_rows();
  const Device device = output.device;
  DequantArgs args;
  args.output = output;
  if (slab.format == SourceFormat::fp8_block) {
    args.group = ScaleGroup::block_128x128;
    args.input = TensorView(values, DType::fp8_e4m3, {rows, cols}, device);
    args.scales = TensorView(scales, DType::f32, {ceil_div(rows, kBlock), ceil_div(cols, kBlock)}, device);
  } else {
    args.group = ScaleGroup::group_1x32;
    args.input = TensorView(values, DType::fp4_e2m1, {rows, cols}, device);
    args.scales = TensorView(scales, DType::e8m0, {rows, cols / kMxGroup}, device);
  }
  dequantize(memory.context(lane), args, memory.stream(lane));
}

// Its slabs, one below the other, as `dtype`.
void dequantize_matrix(WeightMemory& memory, int lane, const MatrixSource& source, std::byte* fetched, DType dtype,
                       std::byte* into, Device device) {
  for (const Slab& slab : source.slabs) {
    std::byte* scales = fetched + ceil_div(slab.values.bytes(), kAlign) * kAlign;
    dequantize_slab(memory, lane, slab, source.cols, fetched, scales,
                    TensorView(into, dtype, {slab.num_rows(), source.cols}, device));
    fetched = scales + ceil_div(slab.scales.bytes(), kAlign) * kAlign;
    into += size_bytes(dtype, slab.num_rows() * source.cols);
  }
}

void convert(WeightMemory& memory, int lane, const Conversion& conversion, std::byte* fetched, std::byte* dense) {
  const MatrixSource& source = conversion.from;
  const Device device = conversion.values.device;
  if (conversion.format == QuantFormat::none)
    return dequantize_matrix(memory, lane, source, fetched, DType::bf16, conversion.values.as<std::byte>(), device);
  QuantArgs args;
  args.input = TensorView(fetched, DType::f32, {source.num_rows(), source.cols}, device);
  args.input.dtype = plain_dtype(source);
  if (source.slabs[0].format != SourceFormat::plain) {
    dequantize_matrix(memory, lane, source, fetched, DType::f32, dense, device);
    args.input.data = dense;
    args.input.dtype = DType::f32;
  }
  args.group = weight_group(conversion.format);
  args.output = conversion.values;
  args.scales = conversion.scales;
  quantize(memory.context(lane), args, memory.stream(lane));
}

// What the scratch of a list of conversions holds.
struct ScratchSizes {
  int64_t all = 0;      // fetched, of all matrices
  int64_t largest = 0;  // fetched, of one
  int64_t dense = 0;    // the largest one's

  void add(const MatrixSource& source, QuantFormat format) {
    const int64_t fetched = fetched_bytes(source);
    all += fetched;
    largest = std::max(largest, fetched);
    dense = std::max(dense, dense_bytes(source, format));
  }
  // Fetched at a time: at least a matrix.
  int64_t batch(const WeightMemory& memory) const { return std::min(all, std::max(largest, memory.batch_bytes())); }
  int num_lanes(const WeightMemory& memory) const { return all > batch(memory) ? memory.num_lanes() : 1; }
};

}  // namespace

int64_t conversion_bytes(const WeightMemory& memory, const std::vector<MatrixSource>& sources, QuantFormat format) {
  ScratchSizes sizes;
  for (const MatrixSource& source : sources)
    if (!is_direct(source, format)) sizes.add(source, format);
  return sizes.num_lanes(memory) * (sizes.batch(memory) + sizes.dense);
}

void run_conversions(WeightMemory& memory, const std::vector<Conversion>& conversions) {
  if (conversions.empty()) return;
  ScratchSizes sizes;
  for (const Conversion& each : conversions) sizes.add(each.from, each.format);
  struct LaneScratch {
    OwnedTensor fetched;
    OwnedTensor dense;
  };
  std::vector<LaneScratch> scratch;
  for (int lane = 0; lane < sizes.num_lanes(memory); ++lane) {
    constexpr std::string_view kWhat = "the conversion of weights";
    scratch.push_back({memory.make(kWhat, DType::u8, {sizes.batch(memory)}), memory.make(kWhat, DType::u8, {sizes.dense})});
  }
  size_t lane = 0;
  for (size_t first = 0; first < conversions.size(); lane = (lane + 1) % scratch.size()) {
    const TensorView& fetched = scratch[lane].fetched.view;
    std::vector<Transfer> transfers;
    std::vector<std::byte*> places;
    auto* at = fetched.as<std::byte>();
    const std::byte* const end = at + sizes.batch(memory);
    size_t last = first;
    for (; last < conversions.size() && fetched_bytes(conversions[last].from) <= end - at; ++last) {
      places.push_back(at);
      at += plan_fetch(conversions[last].from, at, fetched.data, &transfers);
    }
    // The lane's order keeps what is fetched next from overwriting what is still being converted.
    memory.fetch(transfers, static_cast<int>(lane));
    for (size_t i = first; i < last; ++i)
      convert(memory, static_cast<int>(lane), conversions[i], places[i - first], scratch[lane].dense.view.as<std::byte>());
    first = last;
  }
  memory.finish();  // before the scratch goes
}

}  // namespace mixlane
