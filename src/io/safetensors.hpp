// The safetensors format: u64 length of a JSON header, the header, then the tensors' bytes without gaps.
#pragma once

#include <map>
#include <optional>
#include <span>
#include <vector>

#include "io/file.hpp"

namespace mixlane {

struct SafetensorsEntry {
  std::string dtype_name;      // as in the file: "F8_E4M3"
  std::optional<DType> dtype;  // empty if Mixlane has none for it
  std::vector<int64_t> shape;
  int64_t offset = 0;  // in the file
  int64_t bytes = 0;
};

using SafetensorsHeader = std::map<std::string, SafetensorsEntry, std::less<>>;

inline constexpr int64_t kSafetensorsLengthBytes = 8;

// Bytes from the file's start to its first tensor. `start` holds the file's first bytes, at least 8 if it has them.
int64_t safetensors_header_bytes(std::span<const std::byte> start, int64_t file_bytes, std::string_view file_name);

// `start` holds at least safetensors_header_bytes() of a file of `file_bytes`. Throws bad_format naming file, tensor and
// numbers unless every tensor has a known dtype, a size that is its dtype times its shape, and the tensors cover the rest
// of the file exactly, each byte once.
SafetensorsHeader parse_safetensors_header(std::span<const std::byte> start, int64_t file_bytes, std::string_view file_name);

SafetensorsHeader read_safetensors_header(const InputFile& file);

// {"weight_map": {tensor: shard file name}} of model.safetensors.index.json. Shard names must be plain file names.
std::map<std::string, std::string, std::less<>> parse_safetensors_index(std::string_view json, std::string_view file_name);

struct NamedTensor {
  std::string name;
  ConstTensorView view;  // contiguous, on the CPU
};
// fp4_e2m1 has no portable name: write it as u8 with half the columns.
void write_safetensors(const std::filesystem::path& file, std::span<const NamedTensor> tensors);

}  // namespace mixlane
