// What a decode step does before its experts: routing, quantisation of the rows, and align of the ids that routing wrote,
// one after the other on one stream, each overlapping the end of the one before where kernels can (PDL).
#include "stage/align.hpp"
#include "stage/quant.hpp"
#include "stage/routing.hpp"

namespace mixlane::bench {
namespace {

class ChainStage final : public DeviceStage {
 public:
  ChainStage(const StageSetup& setup, int block, ScaleGroup group)
      : num_sets_(setup.num_sets(RoutingStage::set_bytes(setup.inputs, DType::f32) +
                                 QuantCase{group}.set_bytes(setup.inputs.cell().tokens, setup.inputs.cell().shape.hidden))),
        routing_(setup, {}, num_sets_),
        quant_(setup, {group}, num_sets_),
        align_(setup, block, routing_.ids(), num_sets_) {
    quant_.follow_independently();
  }

  std::string options() const override { return quant_.options() + " " + align_.options(); }
  std::string automatic() const override {
    return routing_.automatic() + "+" + quant_.automatic() + "+" + align_.automatic();
  }
  std::string refusal(const std::string&) const override { return ""; }
  int num_sets() const override { return num_sets_; }

  void enqueue(const std::string&, Stream stream, int set) override {
    routing_.enqueue("auto", stream, set);
    quant_.enqueue("auto", stream, set);
    align_.enqueue("auto", stream, set);
  }

  void poison(Stream stream, int set) override {
    routing_.poison(stream, set);
    quant_.poison(stream, set);
    align_.poison(stream, set);
  }

  Correctness verify(Stream stream, int set) override {
    Correctness all = routing_.verify(stream, set);
    if (!all.passed) return all;  // no ids that align could take
    for (const Correctness& part : {quant_.verify(stream, set), align_.verify(stream, set)}) {
      all.passed = all.passed && part.passed;
      all.rel_error = std::max(all.rel_error, part.rel_error);
      all.reference += "+" + part.reference;
    }
    return all;
  }

  StageWork work() const override {
    StageWork sum = routing_.work();
    sum += quant_.work();
    sum += align_.work();
    return sum;
  }

 private:
  int num_sets_;
  RoutingStage routing_;
  QuantStage quant_;
  AlignStage align_;
};

}  // namespace

std::vector<std::unique_ptr<DeviceStage>> make_chain_stages(const StageSetup& setup) {
  const std::vector<ScaleGroup>& groups = setup.options.quant_groups;
  const ScaleGroup group = groups.empty() ? quant_group_of(setup.inputs.cell().format) : groups.front();
  std::vector<std::unique_ptr<DeviceStage>> stages;
  for (const int block : setup.options.align_blocks) stages.push_back(std::make_unique<ChainStage>(setup, block, group));
  return stages;
}

}  // namespace mixlane::bench
