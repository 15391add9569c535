// The safetensors reader against files written byte by byte here, and against its own writer.
#include "io/safetensors.hpp"

#include <cstring>
#include <numeric>

#include "support/errors.hpp"
#include "support/files.hpp"
#include "support/random.hpp"

namespace mixlane {
namespace {

using test::expect_error;

std::string image(const std::string& header, size_t data_bytes) {
  std::string text;
  for (int i = 0; i < 8; ++i) text += static_cast<char>(header.size() >> (8 * i));
  return text + header + std::string(data_bytes, 'x');
}

SafetensorsHeader parse(const std::string& bytes) {
  return parse_safetensors_header(std::as_bytes(std::span(bytes)), static_cast<int64_t>(bytes.size()), "f.safetensors");
}

TEST(Safetensors, ReadsAHeader) {
  const std::string header =
      R"({"__metadata__": {"format": "pt"},
          "b": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [4, 16]},
          "a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
          "none": {"dtype": "I64", "shape": [0, 9223372036854775807, 8], "data_offsets": [16, 16]},
          "fp8": {"dtype": "F8_E4M3", "shape": [3], "data_offsets": [16, 19]},
          "five": {"dtype": "F8_E5M2", "shape": [1, 1, 1, 1, 1], "data_offsets": [19, 20]}}  )";
  const SafetensorsHeader tensors = parse(image(header, 20));
  const auto data = static_cast<int64_t>(8 + header.size());
  ASSERT_EQ(tensors.size(), 5u);
  EXPECT_EQ(tensors.at("a").dtype, DType::f32);
  EXPECT_EQ(tensors.at("a").shape, std::vector<int64_t>{});
  EXPECT_EQ(tensors.at("a").offset, data);
  EXPECT_EQ(tensors.at("b").dtype, DType::bf16);
  EXPECT_EQ(tensors.at("b").shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(tensors.at("b").offset, data + 4);
  EXPECT_EQ(tensors.at("b").bytes, 12);
  EXPECT_EQ(tensors.at("none").bytes, 0);
  EXPECT_EQ(tensors.at("fp8").dtype, DType::fp8_e4m3);
  EXPECT_FALSE(tensors.at("five").dtype.has_value());
  EXPECT_EQ(tensors.at("five").dtype_name, "F8_E5M2");
}

TEST(Safetensors, RefusesFilesThatLie) {
  struct Lie {
    std::string header;
    size_t data_bytes;
    std::vector<std::string> mentions;
  };
  const std::string t = R"("t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]})";
  const std::vector<Lie> lies = {
      {"{" + t + "}", 7, {"'t'", "8", "7", "truncated"}},
      {"{" + t + "}", 9, {"9 bytes", "8"}},
      {"{}", 4, {"4 bytes", "0"}},
      {"{" + t + ", " + t + "}", 8, {"\"t\"", "twice"}},
      {R"({"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], "dtype": "I32"}})", 8, {"dtype", "twice"}},
      {"{" + t, 8, {"JSON"}},
      {"[]", 0, {"must be an object"}},
      {R"({"t": 1})", 0, {"'t'", "must be an object"}},
      {R"({"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], "more": 1}})", 8, {"'t'", "'more'"}},
      {R"({"t": {"shape": [2], "data_offsets": [0, 8]}})", 8, {"'t'", "no dtype"}},
      {R"({"t": {"dtype": "F32", "data_offsets": [0, 8]}})", 8, {"'t'", "no shape"}},
      {R"({"t": {"dtype": "F32", "shape": [2]}})", 8, {"'t'", "no data_offsets"}},
      {R"({"t": {"dtype": "FLOAT", "shape": [2], "data_offsets": [0, 8]}})", 8, {"'t'", "FLOAT", "BF16", "F8_E4M3"}},
      {R"({"t": {"dtype": 7, "shape": [2], "data_offsets": [0, 8]}})", 8, {"'t'", "dtype 7"}},
      {R"({"t": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}})", 8, {"'t'", "shape [-2]"}},
      {R"({"t": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}})", 8, {"'t'", "shape [2.0]"}},
      {R"({"t": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}})", 8, {"'t'", "shape 2"}},
      {R"({"t": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}})", 8, {"'t'", "8 bytes", "[3]", "12"}},
      {R"({"t": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}})", 1, {"'t'", "[3]", "1.5"}},
      {R"({"t": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 8]}})", 8, {"'t'", "2^63"}},
      {R"({"t": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}})", 8, {"'t'", "[8,0]"}},
      {R"({"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 9]}})", 9, {"'t'", "[0,8,9]"}},
      {R"({"t": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}})", 8, {"'t'", "[-8,0]"}},
      {R"({"t": {"dtype": "F32", "shape": [2], "data_offsets": [18446744073709551608, 18446744073709551615]}})", 8, {"'t'"}},
      {R"({"t": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}})", 12, {"'t'", "byte 4", "gap"}},
      {"{" + t + R"(, "u": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}})", 12, {"'u'", "byte 4", "overlap"}},
      {R"({"__metadata__": {"n": 1}, "t": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}})", 1, {"__metadata__"}},
  };
  for (const Lie& lie : lies) {
    SCOPED_TRACE(lie.header);
    std::vector<std::string> mentions = lie.mentions;
    mentions.push_back("f.safetensors");
    expect_error(ErrorCode::bad_format, mentions, [&] { parse(image(lie.header, lie.data_bytes)); });
  }
}

TEST(Safetensors, RefusesBadLengths) {
  expect_error(ErrorCode::bad_format, {"0 bytes"}, [] { parse(""); });
  expect_error(ErrorCode::bad_format, {"7 bytes"}, [] { parse("1234567"); });
  expect_error(ErrorCode::bad_format, {"header of 3 bytes", "10", "truncated"},
               [] { parse(std::string("\3\0\0\0\0\0\0\0{}", 10)); });
  expect_error(ErrorCode::bad_format, {"18446744073709551615"}, [] { parse(std::string(64, '\xff')); });
}

TEST(Safetensors, EveryTruncationIsRefused) {
  const std::string whole = image(
      R"({"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "u": {"dtype": "U8", "shape": [3], "data_offsets": [8, 11]}})",
      11);
  EXPECT_EQ(parse(whole).size(), 2u);
  test::TempFolder folder;
  for (size_t length = 0; length < whole.size(); ++length) {
    test::write_file(folder / "cut.safetensors", whole.substr(0, length));
    expect_error(ErrorCode::bad_format, {"cut.safetensors"},
                 [&] { read_safetensors_header(InputFile(folder / "cut.safetensors")); });
  }
}

TEST(Safetensors, WhatIsWrittenIsRead) {
  test::TempFolder folder;
  test::Rng rng(7);
  const std::vector<float> f32 = test::normal_f32(rng, 35);
  const std::vector<uint16_t> bf16 = test::normal_bf16(rng, 24);
  std::vector<uint8_t> bytes(11);
  std::iota(bytes.begin(), bytes.end(), uint8_t{100});
  const std::vector<NamedTensor> tensors = {{"z.bytes", ConstTensorView(bytes.data(), DType::u8, {11})},
                                            {"a \"quoted\" name", ConstTensorView(f32.data(), DType::f32, {5, 7})},
                                            {"bf16", ConstTensorView(bf16.data(), DType::bf16, {2, 3, 4})},
                                            {"empty", ConstTensorView(nullptr, DType::i32, {0, 4})}};
  write_safetensors(folder / "out.safetensors", tensors);

  const InputFile file(folder / "out.safetensors");
  const SafetensorsHeader header = read_safetensors_header(file);
  ASSERT_EQ(header.size(), tensors.size());
  for (const NamedTensor& tensor : tensors) {
    SCOPED_TRACE(tensor.name);
    const SafetensorsEntry& entry = header.at(tensor.name);
    EXPECT_EQ(entry.dtype, tensor.view.dtype);
    EXPECT_EQ(entry.shape, std::vector<int64_t>(tensor.view.shape.begin(), tensor.view.shape.begin() + tensor.view.ndim));
    ASSERT_EQ(entry.bytes, size_bytes(tensor.view.dtype, tensor.view.num_values()));
    std::vector<std::byte> got(static_cast<size_t>(entry.bytes));
    file.read(entry.offset, got);
    if (entry.bytes > 0) {
      EXPECT_EQ(std::memcmp(got.data(), tensor.view.data, got.size()), 0);
    }
  }
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1) << "a temporary file was left";
}

TEST(Safetensors, WriterRefuses) {
  test::TempFolder folder;
  const float value = 1;
  const uint8_t nibbles = 0;
  const NamedTensor one{"one", ConstTensorView(&value, DType::f32, {1})};
  expect_error(ErrorCode::invalid_argument, {"'one'"}, [&] {
    write_safetensors(folder / "x", std::vector<NamedTensor>{one, one});
  });
  expect_error(ErrorCode::invalid_argument, {"'fp4'", "fp4_e2m1"}, [&] {
    write_safetensors(folder / "x", std::vector<NamedTensor>{{"fp4", ConstTensorView(&nibbles, DType::fp4_e2m1, {2})}});
  });
  expect_error(ErrorCode::io_error, {"no/such"},
               [&] { write_safetensors(folder / "no/such/x", std::vector<NamedTensor>{one}); });
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(SafetensorsIndex, NamesShards) {
  const auto shards = parse_safetensors_index(
      R"({"metadata": {"total_size": 1}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})", "i.json");
  EXPECT_EQ(shards.size(), 2u);
  EXPECT_EQ(shards.at("b"), "2.safetensors");
  expect_error(ErrorCode::bad_format, {"i.json", "weight_map"}, [] { parse_safetensors_index("{}", "i.json"); });
  expect_error(ErrorCode::bad_format, {"i.json", "weight_map"}, [] { parse_safetensors_index("[]", "i.json"); });
  for (const std::string name : {"\"../1.safetensors\"", "\"/etc/passwd\"", "\"\"", "\"..\"", "3", "\"a\\u0000b\""})
    expect_error(ErrorCode::bad_format, {"i.json", "'a'", "plain file name"},
                 [&] { parse_safetensors_index("{\"weight_map\": {\"a\": " + name + "}}", "i.json"); });
}

TEST(InputFile, NamesWhatItCannotOpen) {
  test::TempFolder folder;
  expect_error(ErrorCode::io_error, {"absent"}, [&] { InputFile(folder / "absent"); });
  expect_error(ErrorCode::io_error, {folder.path().string()}, [&] { InputFile(folder.path()); });
}

TEST(InputFile, ReadsAnyRangeAndSaysWhereTheFileEnds) {
  test::TempFolder folder;
  std::string text(20'000, ' ');
  for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 7);
  test::write_file(folder / "f", text);
  const InputFile file(folder / "f");
  for (const auto& [offset, bytes] : std::vector<std::pair<size_t, size_t>>{
           {0, 20'000}, {0, 1}, {4095, 2}, {4096, 4096}, {19'999, 1}, {12'345, 7'000}, {20'000, 0}}) {
    std::string got(bytes, ' ');
    file.read(static_cast<int64_t>(offset), std::as_writable_bytes(std::span(got)));
    EXPECT_EQ(got, text.substr(offset, bytes));
  }
  // In more parts than the system takes at a time, some of them empty.
  std::string scattered(20'000, ' ');
  std::vector<iovec> parts;
  for (size_t at = 0, i = 0; at < scattered.size(); at += i++ % 11) parts.push_back({scattered.data() + at, i % 11});
  parts.back().iov_len =
      static_cast<size_t>(scattered.data() + scattered.size() - static_cast<char*>(parts.back().iov_base));
  EXPECT_EQ(file.read_up_to(0, parts), 20'000);
  EXPECT_EQ(scattered, text);
  std::vector<std::byte> two(2);
  iovec beyond{two.data(), 2};
  EXPECT_EQ(file.read_up_to(19'999, {&beyond, 1}), 1);
  expect_error(ErrorCode::io_error, {(folder / "f").string(), "20000"}, [&] { file.read(19'999, two); });
}

}  // namespace
}  // namespace mixlane
