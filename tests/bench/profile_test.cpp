#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/format.hpp"
#include "profile/kernel_names.hpp"
#include "profile/kernel_profile.hpp"
#include "results/files.hpp"
#include "support/errors.hpp"
#include "trace/chrome_trace.hpp"

namespace mixlane::bench {
namespace {

TEST(KernelNames, AreFoundInSymbols) {
  EXPECT_EQ(kernel_name("void mixlane::align_gpu::align_multi_phase<mixlane::gpu::Wave<(int)32>, int>(mixlane::X<2>, int)"),
            "align_multi_phase");
  EXPECT_EQ(kernel_name("mixlane::align_gpu::align_none(mixlane::align_gpu::KernelArgs)"), "align_none");
  EXPECT_EQ(kernel_name("void (anonymous namespace)::deep::(anonymous namespace)::copy<4>((anonymous namespace)::Args)"),
            "copy");
  EXPECT_EQ(kernel_name("ncclDevKernel_AllGather"), "ncclDevKernel_AllGather");
  EXPECT_EQ(kernel_name(""), "");
  EXPECT_EQ(demangled("_ZN7mixlane9align_gpu10align_noneEi"), "mixlane::align_gpu::align_none(int)");
  EXPECT_EQ(demangled("plain_name"), "plain_name");
}

TEST(KernelNames, LeadToVariantsByRule) {
  const std::vector<std::string> known = {"align.multi_phase", "dispatch.p2p", "dispatch.p2p_push"};
  const auto variant = [&](const std::string& name) {
    return variant_of_kernel("void mixlane::some::" + name + "<int>(int)", known);
  };
  EXPECT_EQ(variant("align_multi_phase"), "align.multi_phase");
  EXPECT_EQ(variant("align_multi_phase_tail"), "align.multi_phase");
  EXPECT_EQ(variant("align_multi_phases"), "align.multi_phases") << "another word is another variant";
  EXPECT_EQ(variant("dispatch_p2p_push_rows"), "dispatch.p2p_push") << "the longest id";
  EXPECT_EQ(variant("dispatch_p2p_pull"), "dispatch.p2p");
  EXPECT_EQ(variant("experts_grouped"), "experts.grouped") << "no id is known, the stage is";
  EXPECT_EQ(variant("expert_major_gather"), "expert_major.gather") << "not a kernel of experts";
}

TEST(KernelNames, OfOthersLeadNowhere) {
  const std::vector<std::string> known = {"align.none"};
  EXPECT_EQ(variant_of_kernel("void cub::align_none<int>(int)", known), "");
  EXPECT_EQ(variant_of_kernel("void mixlane::bench::copy_packets(int)", known), "");
  EXPECT_EQ(variant_of_kernel("void mixlane::bench::align(int)", known), "") << "a stage without a variant";
  EXPECT_EQ(variant_of_kernel("ncclDevKernel_AllGather", known), "");
}

// Two ranks: one with a kernel on each of two streams, one with a kernel that nobody knows.
TEST(KernelTrace, SlicesAreNamedAndKeepTheirDistances) {
  const std::string align = "void mixlane::align_gpu::align_none<32>(int)";
  const std::vector<std::vector<KernelSpan>> of_ranks = {
      {{.symbol = align, .begin_ns = 1'000'000, .end_ns = 1'002'500, .stream = 7, .graph_node = 3},
       {.symbol = align, .begin_ns = 1'001'000, .end_ns = 1'004'000, .stream = 8}},
      {{.symbol = "void other<int>(int)", .begin_ns = 1'010'000, .end_ns = 1'011'000, .device = 1, .stream = 7}}};
  TraceWriter writer(2, "title");
  writer.add_kernels({"balanced", 4, {}}, of_ranks, {});
  writer.add_kernels({"balanced", 4, {}}, of_ranks, {});
  writer.add_kernels({"balanced", 4, {}}, {{}, {}}, {});
  const std::filesystem::path folder = std::filesystem::temp_directory_path() / fmt::format("mixlane_trace_{}", getpid());
  writer.write(folder);
  const auto events = nlohmann::json::parse(read_text_file(folder / "merged.json")).at("traceEvents");
  std::filesystem::remove_all(folder);

  std::vector<nlohmann::json> kernels;
  int num_streams = 0;
  for (const auto& event : events) {
    if (event.at("ph") == "X" && event.at("cat") != "layer") kernels.push_back(event);
    num_streams += event.at("ph") == "M" && event.at("args").value("name", "").starts_with("GPU ");
  }
  EXPECT_EQ(num_streams, 3) << "each once";
  ASSERT_EQ(kernels.size(), 6u);
  EXPECT_EQ(kernels[0].at("name"), "align.none");
  EXPECT_EQ(kernels[0].at("dur"), 2.5);
  EXPECT_EQ(kernels[0].at("args").at("graph"), true);
  EXPECT_EQ(kernels[1].at("ts").get<double>() - kernels[0].at("ts").get<double>(), 1.0);
  EXPECT_NE(kernels[1].at("tid"), kernels[0].at("tid"));
  EXPECT_GE(kernels[2].at("ts").get<double>(), 11.0) << "the second sample lies behind the first";
  EXPECT_EQ(kernels[4].at("name"), "other");
  EXPECT_EQ(kernels[4].at("cat"), "unattributed");
  EXPECT_EQ(kernels[4].at("pid"), 1);
  EXPECT_EQ(kernels[4].at("ts").get<double>() - kernels[0].at("ts").get<double>(), 10.0) << "one clock for all ranks";
}

TEST(KernelProfiler, SaysWhatIsMissing) {
  Env env;
  env.cupti = "/nowhere/libcupti.so";
  KernelProfiler profiler(env);
  ASSERT_FALSE(profiler.missing().empty());
  mixlane::test::expect_error(ErrorCode::missing_component, {profiler.missing()}, [&] { profiler.start(); });
  EXPECT_ANY_THROW(profiler.stop());
}

}  // namespace
}  // namespace mixlane::bench
