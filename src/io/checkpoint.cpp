#include "io/checkpoint.hpp"

#include <algorithm>

#include "io/json.hpp"

namespace mixlane {
namespace {

constexpr std::string_view kIndexName = "model.safetensors.index.json";
constexpr int64_t kMaxIndexBytes = 256 << 20;

}  // namespace

std::string to_string(const CheckpointTensor& tensor) {
  return fmt::format("{}: tensor '{}' ({} [{}])", tensor.file->path().string(), *tensor.name, tensor.entry->dtype_name,
                     fmt::join(tensor.entry->shape, ", "));
}

void read_tensor(const CheckpointTensor& tensor, int64_t offset, std::span<std::byte> into) {
  iovec whole{into.data(), into.size()};
  read_tensor(tensor, offset, static_cast<int64_t>(into.size()), {&whole, 1});
}

void read_tensor(const CheckpointTensor& tensor, int64_t offset, int64_t bytes, std::span<iovec> parts) {
  if (offset < 0 || offset > tensor.entry->bytes - bytes)
    fail(ErrorCode::internal, "{}: bytes {} + {} lie outside of its {}", to_string(tensor), offset, bytes,
         tensor.entry->bytes);
  const int64_t begin = tensor.entry->offset + offset;
  const int64_t got = tensor.file->read_up_to(begin, parts);
  if (got < bytes)
    fail(ErrorCode::io_error, "{}: the file ends at byte {}, it had {} when it was opened; was it replaced meanwhile?",
         to_string(tensor), begin + got, tensor.file->size());
}

Checkpoint::Checkpoint(const std::filesystem::path& folder) : folder_(folder) {
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error))
    fail(ErrorCode::io_error, "checkpoint {}: not a folder; give the one with the *.safetensors files", folder.string());
  const std::filesystem::path index = folder / kIndexName;
  if (std::filesystem::exists(index, error)) {
    read_index(index);
  } else {
    read_all_headers();
  }
}

void Checkpoint::read_index(const std::filesystem::path& index) {
  std::map<std::string, size_t> number_of;
  for (auto& [tensor, shard] : parse_safetensors_index(read_text_file(index, kMaxIndexBytes), index.string())) {
    const auto [number, is_new] = number_of.emplace(shard, shards_.size());
    if (is_new) shards_.push_back({folder_ / shard, nullptr, {}});
    shard_of_.emplace(tensor, number->second);
  }
}

void Checkpoint::read_all_headers() {
  std::vector<std::filesystem::path> files;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder_, error))
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  if (error) fail(ErrorCode::io_error, "checkpoint {}: {}", folder_.string(), error.message());
  if (files.empty()) fail(ErrorCode::io_error, "checkpoint {}: no {} and no *.safetensors", folder_.string(), kIndexName);
  std::sort(files.begin(), files.end());
  for (const auto& file : files) shards_.push_back({file, nullptr, {}});
  for (size_t shard = 0; shard < shards_.size(); ++shard)
    for (const auto& [tensor, entry] : open(shard).header)
      if (const auto [found, is_new] = shard_of_.emplace(tensor, shard); !is_new)
        fail(ErrorCode::bad_format, "{} and {} both hold tensor '{}'; remove one, or add a {}",
             shards_[found->second].path.string(), shards_[shard].path.string(), tensor, kIndexName);
}

Checkpoint::Shard& Checkpoint::open(size_t number) {
  Shard& shard = shards_[number];
  if (!shard.file) {
    auto file = std::make_unique<InputFile>(shard.path);
    shard.header = read_safetensors_header(*file);
    shard.file = std::move(file);
  }
  return shard;
}

CheckpointTensor Checkpoint::tensor(std::string_view name) {
  const auto found = shard_of_.find(name);
  if (found == shard_of_.end()) fail(ErrorCode::bad_format, "checkpoint {}: no tensor '{}'", folder_.string(), name);
  const Shard& shard = open(found->second);
  const auto entry = shard.header.find(name);
  if (entry == shard.header.end())
    fail(ErrorCode::bad_format, "{}: no tensor '{}', though {} says so", shard.path.string(), name, kIndexName);
  return {shard.file.get(), &entry->first, &entry->second};
}

}  // namespace mixlane
