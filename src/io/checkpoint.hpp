// The tensors of a Hugging Face checkpoint folder, by name, whatever shard holds them.
#pragma once

#include <memory>

#include "io/safetensors.hpp"

namespace mixlane {

// A tensor's place. Valid as long as its Checkpoint.
struct CheckpointTensor {
  const InputFile* file = nullptr;
  const std::string* name = nullptr;
  const SafetensorsEntry* entry = nullptr;
};

// "model-00002.safetensors: tensor 'lm_head.weight' (BF16 [32, 64])", for messages.
std::string to_string(const CheckpointTensor& tensor);

// Bytes [offset, offset + into.size()) of a tensor, from any thread. Throws io_error naming file and tensor.
void read_tensor(const CheckpointTensor& tensor, int64_t offset, std::span<std::byte> into);
// The same for `bytes` that go to several parts, in order; it changes them.
void read_tensor(const CheckpointTensor& tensor, int64_t offset, int64_t bytes, std::span<iovec> parts);

class Checkpoint {
 public:
  // Reads the index if there is one, else the headers of all *.safetensors. Throws io_error or bad_format.
  explicit Checkpoint(const std::filesystem::path& folder);

  const std::filesystem::path& folder() const { return folder_; }
  bool has(std::string_view name) const { return shard_of_.find(name) != shard_of_.end(); }
  // Opens the tensor's shard at its first use. Throws bad_format if there is no such tensor, io_error without its shard.
  CheckpointTensor tensor(std::string_view name);
  template <class Body>
  void for_each_name(Body&& body) const {
    for (const auto& [name, shard] : shard_of_) body(name);
  }

 private:
  struct Shard {
    std::filesystem::path path;
    std::unique_ptr<InputFile> file;  // nullptr until it is used
    SafetensorsHeader header;
  };
  void read_index(const std::filesystem::path& index);
  void read_all_headers();
  Shard& open(size_t shard);

  std::filesystem::path folder_;
  std::vector<Shard> shards_;
  std::map<std::string, size_t, std::less<>> shard_of_;
};

}  // namespace mixlane
