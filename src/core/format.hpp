// fmt, with its formatting of characters compiled once (format.cpp). The header-only form, which builds that run on
// machines without libfmt use, would compile it into every file: two thirds of such a file's time.
#pragma once

#include <fmt/format.h>

namespace fmt::detail {
extern template void vformat_to(buffer<char>&, basic_string_view<char>, basic_format_args<buffer_context<char>>, locale_ref);
}
