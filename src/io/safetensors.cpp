#include "io/safetensors.hpp"

#include <algorithm>
#include <array>

#include "io/json.hpp"

namespace mixlane {
namespace {

constexpr int64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr size_t kMaxShapeDims = 16;

struct FileDType {
  std::string_view name;
  int bits;
  std::optional<DType> dtype;
};

constexpr std::array<FileDType, 20> kFileDTypes{{{"BF16", 16, DType::bf16},
                                                 {"F16", 16, DType::f16},
                                                 {"F32", 32, DType::f32},
                                                 {"F64", 64, DType::f64},
                                                 {"F8_E4M3", 8, DType::fp8_e4m3},
                                                 {"F8_E8M0", 8, DType::e8m0},
                                                 {"U8", 8, DType::u8},
                                                 {"I32", 32, DType::i32},
                                                 {"I64", 64, DType::i64},
                                                 {"BOOL", 8, {}},
                                                 {"I8", 8, {}},
                                                 {"I16", 16, {}},
                                                 {"U16", 16, {}},
                                                 {"U32", 32, {}},
                                                 {"U64", 64, {}},
                                                 {"F8_E5M2", 8, {}},
                                                 {"F4", 4, {}},
                                                 {"F6_E2M3", 6, {}},
                                                 {"F6_E3M2", 6, {}},
                                                 {"C64", 64, {}}}};

const FileDType* find_dtype(std::string_view name) {
  const auto found = std::find_if(kFileDTypes.begin(), kFileDTypes.end(), [&](const auto& d) { return d.name == name; });
  return found == kFileDTypes.end() ? nullptr : &*found;
}

uint64_t read_u64(std::span<const std::byte> bytes) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | static_cast<uint64_t>(bytes[static_cast<size_t>(i)]);
  return value;
}

// A JSON number that is a whole number from 0 to INT64_MAX.
std::optional<int64_t> whole_number(const Json& value) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) return {};
  return value.get<int64_t>();
}

// One tensor's declaration, with its offset still relative to the header's end.
class EntryReader {
 public:
  EntryReader(std::string_view file_name, const std::string& tensor, const Json& json)
      : file_name_(file_name), tensor_(tensor), json_(json) {}

  SafetensorsEntry read(int64_t data_bytes) const {
    if (!json_.is_object()) refuse("is {}; it must be an object", shown(json_));
    for (const auto& [field, value] : json_.items())
      if (field != "dtype" && field != "shape" && field != "data_offsets") refuse("has an unknown field '{}'", field);
    SafetensorsEntry entry;
    const FileDType& dtype = read_dtype();
    entry.dtype_name = dtype.name;
    entry.dtype = dtype.dtype;
    entry.shape = read_list("shape", kMaxShapeDims);
    const std::vector<int64_t> offsets = read_list("data_offsets", 2);
    if (offsets.size() != 2 || offsets[0] > offsets[1])
      refuse("has data_offsets {}; they must be [begin, end]", shown(json_["data_offsets"]));
    if (offsets[1] > data_bytes)
      refuse("ends at byte {} of the data, but the file holds {}; it is truncated", offsets[1], data_bytes);
    entry.offset = offsets[0];
    entry.bytes = offsets[1] - offsets[0];
    check_size(entry, dtype);
    return entry;
  }

 private:
  template <class... Values>
  [[noreturn]] void refuse(fmt::format_string<Values...> text, Values&&... values) const {
    fail(ErrorCode::bad_format, "{}: tensor '{}' {}", file_name_, tensor_,
         fmt::format(text, std::forward<Values>(values)...));
  }

  const FileDType& read_dtype() const {
    const auto found = json_.find("dtype");
    if (found == json_.end()) refuse("has no dtype");
    const FileDType* dtype = found->is_string() ? find_dtype(found->get_ref<const std::string&>()) : nullptr;
    if (dtype) return *dtype;
    std::vector<std::string_view> names;
    for (const FileDType& known : kFileDTypes) names.push_back(known.name);
    refuse("has dtype {}; known ones: {}", shown(*found), fmt::join(names, ", "));
  }

  std::vector<int64_t> read_list(const char* field, size_t max_count) const {
    const auto found = json_.find(field);
    if (found == json_.end()) refuse("has no {}", field);
    std::vector<int64_t> values;
    const bool fits = found->is_array() && found->size() <= max_count;
    for (size_t i = 0; fits && i < found->size(); ++i)
      if (const auto value = whole_number((*found)[i])) values.push_back(*value);
    if (!fits || values.size() != found->size())
      refuse("has {} {}; it must be a list of at most {} whole numbers", field, shown(*found), max_count);
    return values;
  }

  void check_size(const SafetensorsEntry& entry, const FileDType& dtype) const {
    // A zero anywhere makes the product 0, whatever the others are.
    const bool is_empty = std::find(entry.shape.begin(), entry.shape.end(), 0) != entry.shape.end();
    int64_t total_bits = is_empty ? 0 : dtype.bits;
    for (const int64_t size : entry.shape)
      if (!is_empty && __builtin_mul_overflow(total_bits, size, &total_bits))
        refuse("has shape [{}], more than 2^63 bits", fmt::join(entry.shape, ", "));
    if (total_bits % 8 != 0 || total_bits / 8 != entry.bytes)
      refuse("has {} bytes, but {} of shape [{}] takes {}", entry.bytes, dtype.name, fmt::join(entry.shape, ", "),
             static_cast<double>(total_bits) / 8);
  }

  std::string_view file_name_;
  const std::string& tensor_;
  const Json& json_;
};

// Offsets must follow each other without a gap or an overlap, up to the file's end.
void require_full_cover(const SafetensorsHeader& header, int64_t data_bytes, std::string_view file_name) {
  std::vector<const SafetensorsHeader::value_type*> in_order;
  for (const auto& tensor : header) in_order.push_back(&tensor);
  std::sort(in_order.begin(), in_order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->second.offset, a->second.bytes) < std::pair(b->second.offset, b->second.bytes);
  });
  int64_t end = 0;
  for (const auto* tensor : in_order) {
    if (tensor->second.offset != end)
      fail(ErrorCode::bad_format, "{}: tensor '{}' begins at byte {} of the data, but the one before it ends at {}: {}",
           file_name, tensor->first, tensor->second.offset, end, tensor->second.offset < end ? "they overlap" : "a gap");
    end += tensor->second.bytes;
  }
  if (end != data_bytes)
    fail(ErrorCode::bad_format, "{}: {} bytes of data, but its tensors take {}", file_name, data_bytes, end);
}

void check_metadata(const Json& metadata, std::string_view file_name) {
  const bool fits =
      metadata.is_object() && std::all_of(metadata.begin(), metadata.end(), [](const Json& v) { return v.is_string(); });
  if (!fits) fail(ErrorCode::bad_format, "{}: __metadata__ is {}; it must map names to texts", file_name, shown(metadata));
}

}  // namespace

int64_t safetensors_header_bytes(std::span<const std::byte> start, int64_t file_bytes, std::string_view file_name) {
  if (start.size() < static_cast<size_t>(kSafetensorsLengthBytes) || file_bytes < kSafetensorsLengthBytes)
    fail(ErrorCode::bad_format, "{}: {} bytes; a safetensors file begins with 8 bytes of header length", file_name,
         file_bytes);
  const uint64_t length = read_u64(start);
  if (length > static_cast<uint64_t>(kMaxHeaderBytes))
    fail(ErrorCode::bad_format, "{}: a header of {} bytes; the limit is {}, so this is no safetensors file", file_name,
         length, kMaxHeaderBytes);
  if (static_cast<int64_t>(length) > file_bytes - kSafetensorsLengthBytes)
    fail(ErrorCode::bad_format, "{}: a header of {} bytes in a file of {}; it is truncated", file_name, length, file_bytes);
  return static_cast<int64_t>(length) + kSafetensorsLengthBytes;
}

SafetensorsHeader parse_safetensors_header(std::span<const std::byte> start, int64_t file_bytes,
                                           std::string_view file_name) {
  const int64_t header_bytes = safetensors_header_bytes(start, file_bytes, file_name);
  if (static_cast<int64_t>(start.size()) < header_bytes)
    fail(ErrorCode::internal, "{}: {} of {} header bytes given", file_name, start.size(), header_bytes);
  const std::string_view text(reinterpret_cast<const char*>(start.data()) + kSafetensorsLengthBytes,
                              static_cast<size_t>(header_bytes - kSafetensorsLengthBytes));
  const Json root = parse_json(text, file_name, /*max_depth=*/4);
  if (!root.is_object()) fail(ErrorCode::bad_format, "{}: the header is {}; it must be an object", file_name, shown(root));

  SafetensorsHeader header;
  const int64_t data_bytes = file_bytes - header_bytes;
  for (const auto& [tensor, json] : root.items()) {
    if (tensor == "__metadata__") {
      check_metadata(json, file_name);
    } else {
      header.emplace(tensor, EntryReader(file_name, tensor, json).read(data_bytes));
    }
  }
  require_full_cover(header, data_bytes, file_name);
  for (auto& [tensor, entry] : header) entry.offset += header_bytes;
  return header;
}

SafetensorsHeader read_safetensors_header(const InputFile& file) {
  std::array<std::byte, kSafetensorsLengthBytes> length{};
  const int64_t available = std::min(file.size(), kSafetensorsLengthBytes);
  file.read(0, std::span(length).first(static_cast<size_t>(available)));
  std::vector<std::byte> start(static_cast<size_t>(
      safetensors_header_bytes(std::span(length).first(static_cast<size_t>(available)), file.size(), file.path().string())));
  file.read(0, start);
  return parse_safetensors_header(start, file.size(), file.path().string());
}

std::map<std::string, std::string, std::less<>> parse_safetensors_index(std::string_view json, std::string_view file_name) {
  const Json root = parse_json(json, file_name, /*max_depth=*/4);
  const auto map = root.is_object() ? root.find("weight_map") : root.end();
  if (map == root.end() || !map->is_object())
    fail(ErrorCode::bad_format, "{}: no object 'weight_map' that names each tensor's file", file_name);
  std::map<std::string, std::string, std::less<>> shards;
  for (const auto& [tensor, shard] : map->items()) {
    const std::string name = shard.is_string() ? shard.get<std::string>() : "";
    // Nothing outside of the folder.
    if (name.empty() || name == "." || name == ".." || name.find_first_of(std::string_view("/\0", 2)) != std::string::npos)
      fail(ErrorCode::bad_format, "{}: the file of tensor '{}' is {}; it must be a plain file name", file_name, tensor,
           shown(shard));
    shards.emplace(tensor, name);
  }
  return shards;
}

namespace {

std::string header_text(std::span<const NamedTensor> tensors) {
  Json root = Json::object();
  int64_t end = 0;
  for (const NamedTensor& tensor : tensors) {
    const ConstTensorView& view = tensor.view;
    const auto dtype = std::find_if(kFileDTypes.begin(), kFileDTypes.end(),
                                    [&](const FileDType& d) { return d.dtype == std::optional(view.dtype); });
    if (dtype == kFileDTypes.end() || !view.contiguous() || root.contains(tensor.name))
      fail(ErrorCode::invalid_argument, "tensor '{}' is {}; safetensors holds dense tensors of distinct names, fp4 as u8",
           tensor.name, to_string(view));
    const int64_t begin = end;
    end += size_bytes(view.dtype, view.num_values());
    root[tensor.name] = {{"dtype", dtype->name},
                         {"shape", std::vector<int64_t>(view.shape.begin(), view.shape.begin() + view.ndim)},
                         {"data_offsets", {begin, end}}};
  }
  std::string text = root.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the data begins at a multiple of 8
  return text;
}

}  // namespace

void write_safetensors(const std::filesystem::path& file, std::span<const NamedTensor> tensors) {
  const std::string header = header_text(tensors);
  write_whole_file(file, [&](const ByteSink& put) {
    std::array<std::byte, kSafetensorsLengthBytes> length{};
    for (size_t i = 0; i < length.size(); ++i) length[i] = static_cast<std::byte>(header.size() >> (8 * i));
    put(length);
    put(std::as_bytes(std::span(header)));
    for (const NamedTensor& tensor : tensors)
      put({static_cast<const std::byte*>(tensor.view.data),
           static_cast<size_t>(size_bytes(tensor.view.dtype, tensor.view.num_values()))});
  });
}

}  // namespace mixlane
