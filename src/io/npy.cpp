#include "io/npy.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>

#include "io/file.hpp"

namespace mixlane {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";

struct NpyType {
  std::string_view descr;
  DType dtype;
};
// The first of a dtype is what the writer uses.
constexpr std::array<NpyType, 10> kTypes{{{"<f4", DType::f32},
                                          {"<f8", DType::f64},
                                          {"<f2", DType::f16},
                                          {"<i4", DType::i32},
                                          {"<i8", DType::i64},
                                          {"|u1", DType::u8},
                                          {"<V2", DType::bf16},
                                          {"|V2", DType::bf16},
                                          {"<u2", DType::bf16},
                                          {"<u1", DType::u8}}};

// The header is a Python dict: {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }
class HeaderReader {
 public:
  HeaderReader(std::string_view text, std::string_view file_name) : text_(text), file_name_(file_name) {}

  void read(NpyHeader& header) {
    expect('{');
    bool has_descr = false, has_order = false, has_shape = false;
    while (!accept('}')) {
      const std::string_view key = quoted();
      expect(':');
      if (key == "descr") {
        once(key, has_descr);
        header.dtype = dtype();
      } else if (key == "fortran_order") {
        once(key, has_order);
        c_order();
      } else if (key == "shape") {
        once(key, has_shape);
        header.shape = shape();
      } else {
        refuse("an unknown key '{}'", key);
      }
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip_spaces();
    if (at_ != text_.size()) refuse("something behind the closing brace");
    if (!has_descr || !has_order || !has_shape) refuse("no descr, fortran_order or shape");
  }

 private:
  template <class... Values>
  [[noreturn]] void refuse(fmt::format_string<Values...> text, Values&&... values) const {
    fail(ErrorCode::bad_format, "{}: the npy header has {}", file_name_, fmt::format(text, std::forward<Values>(values)...));
  }
  void once(std::string_view key, bool& seen) const {
    if (seen) refuse("'{}' twice", key);
    seen = true;
  }
  void skip_spaces() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t')) ++at_;
  }
  bool accept(char wanted) {
    skip_spaces();
    if (at_ == text_.size() || text_[at_] != wanted) return false;
    ++at_;
    return true;
  }
  void expect(char wanted) {
    if (!accept(wanted)) refuse("no '{}' at its byte {}", wanted, at_);
  }
  std::string_view quoted() {
    skip_spaces();
    const char quote = at_ < text_.size() ? text_[at_] : ' ';
    if (quote != '\'' && quote != '"') refuse("no quoted text at its byte {}", at_);
    const size_t end = text_.find(quote, at_ + 1);
    if (end == std::string_view::npos) refuse("an unclosed quote at its byte {}", at_);
    const std::string_view word = text_.substr(at_ + 1, end - at_ - 1);
    at_ = end + 1;
    return word;
  }
  DType dtype() {
    skip_spaces();
    if (at_ < text_.size() && text_[at_] == '[') refuse("a structured type; save one plain array");
    const std::string_view descr = quoted();
    std::string valid;
    for (const NpyType& type : kTypes) {
      if (type.descr == descr) return type.dtype;
      valid += fmt::format("{}{} ({})", valid.empty() ? "" : ", ", type.descr, name(type.dtype));
    }
    refuse("type '{}'; readable ones: {}", descr, valid);
  }
  void c_order() {
    skip_spaces();
    if (text_.substr(at_).starts_with("True")) refuse("fortran_order True; save numpy.ascontiguousarray(...)");
    if (!text_.substr(at_).starts_with("False")) refuse("no True or False for fortran_order");
    at_ += std::string_view("False").size();
  }
  std::vector<int64_t> shape() {
    std::vector<int64_t> sizes;
    expect('(');
    while (!accept(')')) {
      skip_spaces();
      int64_t size = 0;
      const char* begin = text_.data() + at_;
      const auto [end, error] = std::from_chars(begin, text_.data() + text_.size(), size);
      if (error != std::errc() || size < 0) refuse("no valid size at its byte {}", at_);
      at_ += static_cast<size_t>(end - begin);
      sizes.push_back(size);
      if (sizes.size() > kMaxDims) refuse("more than {} dimensions", kMaxDims);
      if (!accept(',')) {
        expect(')');
        break;
      }
    }
    return sizes;
  }

  std::string_view text_;
  std::string_view file_name_;
  size_t at_ = 0;
};

int64_t array_bytes(const NpyHeader& header, std::string_view file_name) {
  // A zero anywhere makes the product 0, whatever the others are.
  if (std::find(header.shape.begin(), header.shape.end(), 0) != header.shape.end()) return 0;
  int64_t bytes = bits(header.dtype) / 8;
  for (const int64_t size : header.shape)
    if (__builtin_mul_overflow(bytes, size, &bytes))
      fail(ErrorCode::bad_format, "{}: shape ({}) takes more than 2^63 bytes", file_name, fmt::join(header.shape, ", "));
  return bytes;
}

}  // namespace

NpyHeader parse_npy_header(std::span<const std::byte> start, int64_t file_bytes, std::string_view file_name) {
  const std::string_view text(reinterpret_cast<const char*>(start.data()), start.size());
  const auto byte = [&](size_t i) { return static_cast<int64_t>(static_cast<unsigned char>(text[i])); };
  if (text.size() < 10 || !text.starts_with(kMagic))
    fail(ErrorCode::bad_format, "{}: {} bytes without the npy magic at the start; it is no npy file", file_name, file_bytes);
  const int64_t version = byte(6);
  if (version < 1 || version > 3 || (version > 1 && text.size() < 12))
    fail(ErrorCode::bad_format, "{}: npy version {} in {} bytes; versions 1 to 3 are readable", file_name, version,
         file_bytes);
  const int64_t prefix = version == 1 ? 10 : 12;
  const int64_t length = version == 1 ? byte(8) | byte(9) << 8 : byte(8) | byte(9) << 8 | byte(10) << 16 | byte(11) << 24;
  if (length > static_cast<int64_t>(text.size()) - prefix)
    fail(ErrorCode::bad_format, "{}: an npy header of {} bytes in a file of {} (limit {}); it is truncated", file_name,
         length, file_bytes, kMaxNpyHeaderBytes);

  NpyHeader header;
  HeaderReader(text.substr(static_cast<size_t>(prefix), static_cast<size_t>(length)), file_name).read(header);
  header.data_offset = prefix + length;
  header.data_bytes = array_bytes(header, file_name);
  if (header.data_bytes != file_bytes - header.data_offset)
    fail(ErrorCode::bad_format, "{}: {} of shape ({}) takes {} bytes, the file holds {}", file_name, name(header.dtype),
         fmt::join(header.shape, ", "), header.data_bytes, file_bytes - header.data_offset);
  return header;
}

OwnedTensor load_npy(const std::filesystem::path& path) {
  const InputFile file(path);
  std::vector<std::byte> start(static_cast<size_t>(std::min(file.size(), kMaxNpyHeaderBytes)));
  file.read(0, start);
  const NpyHeader header = parse_npy_header(start, file.size(), path.string());
  OwnedTensor tensor = make_host_tensor(path.string(), header.dtype, header.shape);
  file.read(header.data_offset, {static_cast<std::byte*>(tensor.view.data), static_cast<size_t>(header.data_bytes)});
  return tensor;
}

void save_npy(const std::filesystem::path& file, const ConstTensorView& view) {
  const auto type = std::find_if(kTypes.begin(), kTypes.end(), [&](const NpyType& t) { return t.dtype == view.dtype; });
  if (type == kTypes.end() || !view.contiguous())
    fail(ErrorCode::invalid_argument, "{}: npy can't hold {}; convert it to a dense f32, f64, f16, bf16, i32, i64 or u8 one",
         file.string(), to_string(view));
  std::string shape;
  for (int d = 0; d < view.ndim; ++d) shape += fmt::format("{}, ", view.shape[d]);
  std::string header = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}", type->descr, shape);
  constexpr size_t kPrefix = 10, kAlignment = 64;
  const size_t total = (kPrefix + header.size() + 1 + kAlignment - 1) / kAlignment * kAlignment;
  header.resize(total - kPrefix - 1, ' ');
  header += '\n';
  std::string start(kMagic);
  start += {'\x01', '\x00', static_cast<char>(header.size() & 0xff), static_cast<char>(header.size() >> 8)};
  start += header;
  write_whole_file(file, [&](const ByteSink& put) {
    put(std::as_bytes(std::span(start)));
    put({static_cast<const std::byte*>(view.data), static_cast<size_t>(size_bytes(view.dtype, view.num_values()))});
  });
}

}  // namespace mixlane
