#include "profile/kernel_names.hpp"

#include <cxxabi.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>

namespace mixlane::bench {
namespace {

constexpr std::array<std::string_view, 9> kStages = {"routing", "quant",        "dequant", "dispatch", "align",
                                                     "experts", "expert_major", "combine", "addend"};

bool begins_with_words(std::string_view name, std::string_view words) {
  return name.starts_with(words) && (name.size() == words.size() || name[words.size()] == '_');
}

std::string with_point(std::string_view name, size_t underscore) {
  std::string id(name);
  id[underscore] = '.';
  return id;
}

}  // namespace

std::string demangled(const std::string& symbol) {
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> text(abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, &status),
                                                         &std::free);
  return status == 0 ? std::string(text.get()) : symbol;
}

std::string_view kernel_name(std::string_view symbol) {
  constexpr std::string_view kAnonymous = "(anonymous namespace)::";
  size_t begin = 0, end = 0;
  // The name ends at its template's or its own arguments; the one parenthesis before those is this namespace's.
  while (end = symbol.find_first_of("<(", begin),
         end != std::string_view::npos && symbol.substr(end).starts_with(kAnonymous))
    begin = end + kAnonymous.size();
  const std::string_view name = symbol.substr(begin, end - begin);
  const size_t start = name.find_last_of(": ");
  return start == std::string_view::npos ? name : name.substr(start + 1);
}

std::string variant_of_kernel(std::string_view symbol, std::span<const std::string> known) {
  if (symbol.find("mixlane::") == std::string_view::npos) return "";
  const std::string_view name = kernel_name(symbol);

  const std::string* best = nullptr;
  for (const std::string& id : known) {
    std::string words = id;
    std::replace(words.begin(), words.end(), '.', '_');
    if (begins_with_words(name, words) && (!best || id.size() > best->size())) best = &id;
  }
  if (best) return *best;
  for (const std::string_view stage : kStages)
    if (begins_with_words(name, stage) && name.size() > stage.size() + 1) return with_point(name, stage.size());
  return "";
}

}  // namespace mixlane::bench
