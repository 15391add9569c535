#include "ops/routing/launch.cuh"

namespace mixlane::routing_gpu {
namespace {

// Many tokens: finding a token's bound and ranking what reaches it takes a wave as long for several tokens, each in a part
// of it, as for one. For few tokens a whole wave each is quicker.
constexpr uint32_t kManyTokens = 24;  // of a multiprocessor

// The same with usual routers, of which whole waves are quick for as many tokens as this.
uint32_t few_tokens(const KernelArgs& args) {
  if (!takes_many(args)) return kManyTokens;
  if (args.chooses_by_score) return args.num_columns <= 256 ? 18 : 16;
  return args.num_columns == 256 || args.num_columns == 384 ? 16 : 12;
}

bool takes_parts(const KernelArgs& args, int num_multiprocessors, uint32_t lanes, uint32_t max_columns) {
  return !args.hash_table && args.plain && args.num_topk <= lanes && args.num_columns <= max_columns &&
         args.num_tokens >= kManyTokens * static_cast<uint32_t>(num_multiprocessors);
}

}  // namespace

void launch_warp(const KernelArgs& args, int num_multiprocessors, bool overlap, Stream stream) {
  constexpr const char* kVariant = "routing.warp";
  if (is_usual(args) && args.num_tokens <= few_tokens(args) * static_cast<uint32_t>(num_multiprocessors))
    return launch_usual(args, num_multiprocessors, overlap, stream);
  if (takes_many(args)) return launch_many(args, num_multiprocessors, overlap, stream);
  if (takes_parts(args, num_multiprocessors, 8, 256))
    launch_tokens<8, 128, 256>(args, kVariant, num_multiprocessors, overlap, stream);
  else if (takes_parts(args, num_multiprocessors, 16, 512))
    launch_tokens<16, 256, 384, 512>(args, kVariant, num_multiprocessors, overlap, stream);
  else
    launch_tokens<gpu::kHardwareWave, 256, 384, 512, 1024, 2048>(args, kVariant, num_multiprocessors, overlap, stream);
}

}  // namespace mixlane::routing_gpu
