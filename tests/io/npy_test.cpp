// The npy reader against files written byte by byte here, and against its own writer.
#include "io/npy.hpp"

#include <cstring>

#include "support/errors.hpp"
#include "support/files.hpp"
#include "support/random.hpp"

namespace mixlane {
namespace {

using test::expect_error;

std::string image(int version, const std::string& header, size_t data_bytes) {
  std::string text = "\x93NUMPY";
  text += static_cast<char>(version);
  text += '\0';
  for (int i = 0; i < (version == 1 ? 2 : 4); ++i) text += static_cast<char>(header.size() >> (8 * i));
  text += header;
  for (size_t i = 0; i < data_bytes; ++i) text += static_cast<char>(i);
  return text;
}

std::string dict(const std::string& descr, const std::string& shape, const std::string& order = "False") {
  return "{'descr': '" + descr + "', 'fortran_order': " + order + ", 'shape': " + shape + ", }\n";
}

NpyHeader parse(const std::string& bytes) {
  return parse_npy_header(std::as_bytes(std::span(bytes)), static_cast<int64_t>(bytes.size()), "f.npy");
}

TEST(Npy, ReadsEveryVersionAndType) {
  for (int version = 1; version <= 3; ++version) {
    const NpyHeader header = parse(image(version, dict("<f4", "(2, 3)"), 24));
    EXPECT_EQ(header.dtype, DType::f32);
    EXPECT_EQ(header.shape, (std::vector<int64_t>{2, 3}));
    EXPECT_EQ(header.data_bytes, 24);
  }
  const std::vector<std::pair<std::string, DType>> types = {{"<f2", DType::f16},  {"<f8", DType::f64},  {"<i4", DType::i32},
                                                            {"<i8", DType::i64},  {"<u2", DType::bf16}, {"<V2", DType::bf16},
                                                            {"|V2", DType::bf16}, {"|u1", DType::u8}};
  for (const auto& [descr, dtype] : types) {
    SCOPED_TRACE(descr);
    EXPECT_EQ(parse(image(1, dict(descr, "(3,)"), static_cast<size_t>(3 * bits(dtype) / 8))).dtype, dtype);
  }
  EXPECT_EQ(parse(image(1, dict("<f8", "()"), 8)).shape, std::vector<int64_t>{});
  EXPECT_EQ(parse(image(1, dict("<f8", "(9223372036854775807, 0)"), 0)).data_bytes, 0);
  EXPECT_EQ(parse(image(2, R"({"shape":(1,1,1,2),"fortran_order":False,"descr":"<f4"})", 8)).shape,
            (std::vector<int64_t>{1, 1, 1, 2}));
}

TEST(Npy, RefusesWhatItCannotRead) {
  struct Case {
    std::string bytes;
    std::vector<std::string> mentions;
  };
  const std::vector<Case> cases = {
      {"", {"0 bytes", "magic"}},
      {"PK\3\4 a zip archive", {"magic"}},
      {image(4, dict("<f4", "(1,)"), 4), {"version 4"}},
      {image(0, dict("<f4", "(1,)"), 4), {"version 0"}},
      {image(1, dict(">f4", "(1,)"), 4), {"'>f4'", "<f4 (f32)"}},
      {image(1, dict("<c8", "(1,)"), 8), {"'<c8'"}},
      {image(1, dict("<f4", "(1,)", "True"), 4), {"fortran_order", "ascontiguousarray"}},
      {image(1, dict("<f4", "(1,)", "0"), 4), {"fortran_order"}},
      {image(1, dict("<f4", "(2, 3)"), 23), {"f32", "(2, 3)", "24", "23"}},
      {image(1, dict("<f4", "(2, 3)"), 25), {"24", "25"}},
      {image(1, dict("<f4", "(-2, 3)"), 24), {"size"}},
      {image(1, dict("<f4", "(2.0, 3)"), 24), {"header has"}},
      {image(1, dict("<f4", "(99999999999999999999,)"), 24), {"size"}},
      {image(1, dict("<f4", "(9223372036854775807, 9)"), 24), {"2^63"}},
      {image(1, dict("<f4", "(1, 1, 1, 1, 1)"), 4), {"4 dimensions"}},
      {image(1, dict("<f4", "[1]"), 4), {"'('"}},
      {image(1, "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", 4), {"structured"}},
      {image(1, "{'descr': '<f4', 'fortran_order': False}", 4), {"no descr"}},
      {image(1, "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", 4), {"'descr' twice"}},
      {image(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': 1}", 4), {"unknown key 'x'"}},
      {image(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)} x", 4), {"brace"}},
      {image(1, "{'descr': '<f4", 4), {"quote"}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.mentions.front());
    std::vector<std::string> mentions = c.mentions;
    mentions.push_back("f.npy");
    expect_error(ErrorCode::bad_format, mentions, [&] { parse(c.bytes); });
  }
}

TEST(Npy, EveryTruncationIsRefused) {
  test::TempFolder folder;
  for (int version = 1; version <= 2; ++version) {
    const std::string whole = image(version, dict("<i4", "(2, 2)"), 16);
    test::write_file(folder / "cut.npy", whole);
    EXPECT_EQ(load_npy(folder / "cut.npy").bytes, 16);
    for (size_t length = 0; length < whole.size(); ++length) {
      test::write_file(folder / "cut.npy", whole.substr(0, length));
      expect_error(ErrorCode::bad_format, {"cut.npy"}, [&] { load_npy(folder / "cut.npy"); });
    }
  }
}

TEST(Npy, LoadsValues) {
  test::TempFolder folder;
  test::write_file(folder / "a.npy", image(1, dict("<i4", "(2, 2)"), 16));
  const OwnedTensor tensor = load_npy(folder / "a.npy");
  ASSERT_EQ(tensor.view.dtype, DType::i32);
  ASSERT_EQ(tensor.view.ndim, 2);
  EXPECT_EQ(tensor.view.as<int32_t>()[0], 0x03020100);
  EXPECT_EQ(tensor.view.as<int32_t>()[3], 0x0f0e0d0c);
}

TEST(Npy, WhatIsWrittenIsRead) {
  test::TempFolder folder;
  test::Rng rng(11);
  const std::vector<float> values = test::normal_f32(rng, 4 * 3 * 5);
  const std::vector<uint16_t> halves = test::to_bf16(values);
  const auto round_trip = [&](const ConstTensorView& view) {
    SCOPED_TRACE(to_string(view));
    save_npy(folder / "t.npy", view);
    const OwnedTensor got = load_npy(folder / "t.npy");
    EXPECT_EQ(to_string(got.view), to_string(view));
    const auto bytes = static_cast<size_t>(size_bytes(view.dtype, view.num_values()));
    EXPECT_EQ(got.bytes, static_cast<int64_t>(bytes));
    if (bytes > 0) {
      EXPECT_EQ(std::memcmp(got.view.data, view.data, bytes), 0);
    }
    EXPECT_EQ(parse(test::read_file(folder / "t.npy")).data_offset % 64, 0);
  };
  round_trip({values.data(), DType::f32, {4, 3, 5}});
  round_trip({values.data(), DType::f32, {60}});
  round_trip({values.data(), DType::f32, {}});
  round_trip({values.data(), DType::f64, {1, 30, 1, 1}});
  round_trip({halves.data(), DType::bf16, {12, 5}});
  round_trip({halves.data(), DType::f16, {60, 1}});
  round_trip({values.data(), DType::i32, {3, 20}});
  round_trip({values.data(), DType::i64, {3, 10}});
  round_trip({values.data(), DType::u8, {240}});
  round_trip({nullptr, DType::f32, {0, 7}});
  expect_error(ErrorCode::invalid_argument, {"fp8_e4m3"}, [&] {
    save_npy(folder / "t.npy", {values.data(), DType::fp8_e4m3, {8}});
  });
  expect_error(ErrorCode::io_error, {"absent.npy"}, [&] { load_npy(folder / "absent.npy"); });
}

}  // namespace
}  // namespace mixlane
