// The inverse of quantisation, of hidden rows that the CPU has quantised.
#include "ops/quant/op.hpp"
#include "stage/quant.hpp"

namespace mixlane::bench {
namespace {

class DequantStage final : public OpStage<DequantArgs> {
 public:
  DequantStage(const StageSetup& setup, const QuantCase& which)
      : OpStage(setup.context, select_dequant, dequantize), inputs_(setup.inputs), case_(which) {
    const Device device = setup.context.device();
    const int64_t rows = inputs_.cell().tokens, cols = inputs_.cell().shape.hidden;
    num_sets_ = setup.num_sets(case_.set_bytes(rows, cols));
    quantize_on_cpu(rows, cols);
    values_ = DeviceTensor(device, case_.type, {rows, cols}, num_sets_);
    codes_ = DeviceTensor(device, case_.code_type(), {rows, cols}, num_sets_, host_codes_.data());
    scales_ = DeviceTensor(device, case_.scale_type(), {case_.num_scales(rows, cols)}, num_sets_, host_scales_.data());
  }

  std::string options() const override { return case_.text(); }
  int num_sets() const override { return num_sets_; }

  DequantArgs args(int set) const override {
    DequantArgs args;
    args.input = codes_.view(set);
    args.group = case_.group;
    args.scales = case_.scales(scales_.view(set).data, args.input.shape[0], args.input.shape[1], args.input.device);
    args.output = values_.view(set);
    return args;
  }

  void poison(Stream stream, int set) override { values_.poison(stream, set); }

  Correctness verify(Stream stream, int set) override {
    if (expected_.empty()) run_reference();
    const std::vector<std::byte> values = values_.fetch(stream, set);
    const auto num_bytes = static_cast<int64_t>(values.size());
    return exact_check(inputs_.cell().tokens, count_different(values.data(), expected_.data(), num_bytes), num_bytes,
                       "dequant.cpu");
  }

  StageWork work() const override { return work_of(dequantize_cost(args(0))); }

 private:
  void quantize_on_cpu(int64_t rows, int64_t cols) {
    const std::vector<std::byte> values = encoded_rows(inputs_, case_.type);
    host_codes_.resize(static_cast<size_t>(size_bytes(case_.code_type(), rows * cols)));
    host_scales_.resize(static_cast<size_t>(size_bytes(case_.scale_type(), case_.num_scales(rows, cols))));
    QuantArgs args;
    args.input = ConstTensorView(values.data(), case_.type, {rows, cols});
    args.group = case_.group;
    args.output = TensorView(host_codes_.data(), case_.code_type(), {rows, cols});
    args.scales = case_.scales(host_scales_.data(), rows, cols, {});
    quantize(inputs_.cpu(), args);
  }

  void run_reference() {
    expected_.resize(static_cast<size_t>(values_.bytes()));
    Context& cpu = inputs_.cpu();
    dequantize(cpu, on_host(args(0), host_codes_.data(), expected_.data(), host_scales_.data(), cpu.device()));
  }

  StageInputs& inputs_;
  QuantCase case_;
  int num_sets_ = 1;
  DeviceTensor codes_, scales_, values_;
  std::vector<std::byte> host_codes_, host_scales_, expected_;
};

}  // namespace

std::vector<std::unique_ptr<DeviceStage>> make_dequant_stages(const StageSetup& setup) {
  std::vector<std::unique_ptr<DeviceStage>> stages;
  for (const QuantCase& which : quant_cases(setup)) stages.push_back(std::make_unique<DequantStage>(setup, which));
  return stages;
}

}  // namespace mixlane::bench
