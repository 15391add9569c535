// Chunks of transfers: whatever the cut, every byte comes to its place.
#include "io/transfer.hpp"

#include <numeric>

#include "core/numeric.hpp"
#include "support/errors.hpp"
#include "support/files.hpp"
#include "support/random.hpp"

namespace mixlane {
namespace {

using test::expect_error;

// A file that is one tensor.
class OneTensor {
 public:
  OneTensor(const std::filesystem::path& path, DType dtype, const std::string& bytes) {
    test::write_file(path, bytes);
    file_ = std::make_unique<InputFile>(path);
    const auto size = static_cast<int64_t>(bytes.size());
    entry_ = {std::string(name(dtype)), dtype, {size / size_bytes(dtype, 1)}, 0, size};
  }
  CheckpointTensor tensor() const { return {file_.get(), &name_, &entry_}; }

 private:
  std::unique_ptr<InputFile> file_;
  std::string name_ = "one";
  SafetensorsEntry entry_;
};

float value_at(DType dtype, const std::string& bytes, int64_t i) {
  uint16_t half;
  float whole;
  std::memcpy(&half, bytes.data() + 2 * (dtype == DType::f32 ? 0 : i), 2);
  std::memcpy(&whole, bytes.data() + 4 * (dtype == DType::f32 ? i : 0), 4);
  return dtype == DType::f32 ? whole : dtype == DType::f16 ? f16_to_f32(half) : bf16_to_f32(half);
}

// Row by row and value by value: what must lie in memory.
std::string expected(const Transfer& transfer, const std::string& file) {
  const RowRun& run = transfer.from;
  std::string memory;
  for (int way = 0; way < run.ways; ++way)
    for (int64_t row = way; row < run.count; row += run.ways) {
      const int64_t begin = run.offset + row * run.row_bytes;
      if (!transfer.converts()) {
        memory += file.substr(static_cast<size_t>(begin), static_cast<size_t>(run.row_bytes));
        continue;
      }
      const int64_t width = size_bytes(run.dtype(), 1);
      for (int64_t i = begin / width; i < (begin + run.row_bytes) / width; ++i) {
        const float value = value_at(run.dtype(), file, i);
        const uint16_t half = f32_to_bf16(value);
        memory.append(
            transfer.dtype == DType::f32 ? reinterpret_cast<const char*>(&value) : reinterpret_cast<const char*>(&half),
            static_cast<size_t>(size_bytes(transfer.dtype, 1)));
      }
    }
  return memory;
}

TEST(Transfer, AnyCutBringsEveryByteToItsPlace) {
  test::TempFolder folder;
  test::Rng rng(5);
  std::string file;
  for (int i = 0; i < 40'000; ++i) {  // of finite values, whatever their dtype
    const float value = static_cast<float>(i) * 0.25f + 1;
    file.append(reinterpret_cast<const char*>(&value), 4);
  }
  for (const DType dtype : {DType::u8, DType::bf16, DType::f16, DType::f32}) {
    const OneTensor one(folder / std::string(name(dtype)), dtype, file);
    const int64_t width = size_bytes(dtype, 1);
    for (const DType to : {dtype, DType::bf16, DType::f32}) {
      if (to != dtype && dtype == DType::u8) continue;
      for (const int ways : {1, 2})
        for (const auto& [row_values, count] :
             std::vector<std::pair<int64_t, int64_t>>{{1, 2}, {3, 10}, {1440 / 4, 22}, {7, 802}, {1, 5000}, {9'000, 4}}) {
          SCOPED_TRACE(fmt::format("{} to {}, {} ways, {} rows of {}", name(dtype), name(to), ways, count, row_values));
          const Transfer shape{{one.tensor(), 3 * width, row_values * width, count, ways}, to, nullptr};
          const std::string wanted = expected(shape, file);
          for (const int64_t max_bytes : {int64_t{72'000}, int64_t{4096}, 2 * shape.row_bytes()}) {
            if (ways * shape.row_bytes() > max_bytes) continue;
            std::string memory(wanted.size() + 2, '#');
            Transfer transfer = shape;
            transfer.into = reinterpret_cast<std::byte*>(memory.data()) + 1;
            ChunkScratch scratch;
            for (const Chunk& chunk : cut({transfer}, max_bytes)) {
              EXPECT_LE(chunk.bytes(), max_bytes);
              read_chunk(chunk, chunk.into, scratch);
            }
            EXPECT_EQ(memory, "#" + wanted + "#");
          }
        }
    }
  }
}

TEST(Transfer, RowsThatAreTakenApartMustFit) {
  test::TempFolder folder;
  const OneTensor one(folder / "f", DType::u8, std::string(4000, 'x'));
  std::vector<std::byte> memory(4000);
  const Transfer transfer = as_stored({one.tensor(), 0, 1000, 4, 2}, memory.data());
  expect_error(ErrorCode::unsupported, {"'one'", "1000", "1999"}, [&] { cut({transfer}, 1999); });
  EXPECT_EQ(cut({transfer}, 2000).size(), 2u);
  EXPECT_TRUE(cut({as_stored({one.tensor(), 0, 1000, 0, 1}, memory.data())}, 10).empty());
}

}  // namespace
}  // namespace mixlane
