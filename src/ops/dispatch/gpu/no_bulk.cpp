// What GPUs without bulk copies answer.
#include "ops/dispatch/gpu/launchers.hpp"

namespace mixlane::exchange_gpu {

bool takes_bulk(const DispatchKernelArgs&) { return false; }
void load_bulk_kernel() {}
void launch_dispatch_bulk(const DispatchKernelArgs&, bool, const Budget&, Stream) {}
void launch_dispatch_bulk_receive(const DispatchKernelArgs&, const Budget&, Stream) {}
bool takes_bulk(const CombineKernelArgs&, CombineWire) { return false; }
void load_combine_bulk_kernel(CombineWire) {}
void launch_combine_bulk(const CombineKernelArgs&, CombineWire, const Budget&, Stream) {}

}  // namespace mixlane::exchange_gpu
