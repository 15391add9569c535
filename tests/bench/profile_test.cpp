#include <gtest/gtest.h>

#include "profile/kernel_names.hpp"
#include "profile/kernel_profile.hpp"
#include "support/errors.hpp"

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
  EXPECT_EQ(variant("route_tokens"), "routing.warp");
  EXPECT_EQ(variant("quantize_tiles"), "quant.tiles");
}

TEST(KernelNames, OfOthersLeadNowhere) {
  const std::vector<std::string> known = {"align.none"};
  EXPECT_EQ(variant_of_kernel("void cub::align_none<int>(int)", known), "");
  EXPECT_EQ(variant_of_kernel("void mixlane::bench::copy_packets(int)", known), "");
  EXPECT_EQ(variant_of_kernel("void mixlane::bench::align(int)", known), "") << "a stage without a variant";
  EXPECT_EQ(variant_of_kernel("ncclDevKernel_AllGather", known), "");
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
