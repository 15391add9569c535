#include "core/format.hpp"

#ifdef FMT_HEADER_ONLY
namespace fmt::detail {
template void vformat_to(buffer<char>&, basic_string_view<char>, basic_format_args<buffer_context<char>>, locale_ref);
}
#endif
