// Small checkpoints of each family, made of random values, and the values that a correct reader gets out of them.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/numeric.hpp"
#include "io/safetensors.hpp"
#include "mixlane/model.hpp"
#include "support/files.hpp"
#include "support/random.hpp"

namespace mixlane::test {

// A matrix as plain floats.
struct Matrix {
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<float> values;

  float at(int64_t row, int64_t col) const { return values[static_cast<size_t>(row * cols + col)]; }
};

// `below` under `above`.
inline Matrix stack(const Matrix& above, const Matrix& below) {
  Matrix all{above.rows + below.rows, above.cols, above.values};
  all.values.insert(all.values.end(), below.values.begin(), below.values.end());
  return all;
}

struct Mlp {
  Matrix gate, up, down;
};

struct StoredTensor {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

class TestCheckpoint {
 public:
  explicit TestCheckpoint(uint64_t seed) : rng_(seed) {}

  std::vector<StoredTensor> tensors;

  void add(const std::string& name, DType dtype, const std::vector<int64_t>& shape, std::string bytes) {
    tensors.push_back({name, dtype, shape, std::move(bytes)});
  }
  StoredTensor& find(const std::string& name) {
    for (StoredTensor& tensor : tensors)
      if (tensor.name == name) return tensor;
    throw std::runtime_error("the test has no tensor " + name);
  }
  void remove(const std::string& name) {
    std::erase_if(tensors, [&](const StoredTensor& tensor) { return tensor.name == name; });
  }

  // Random values of a bf16, f16 or f32 tensor, as a reader sees them.
  Matrix add_plain(const std::string& name, DType dtype, int64_t rows, int64_t cols, std::vector<int64_t> shape = {}) {
    Matrix matrix{rows, cols, normal_f32(rng_, rows * cols)};
    std::string bytes;
    for (float& value : matrix.values) {
      if (dtype == DType::f32) {
        append(bytes, value);
      } else if (dtype == DType::bf16) {
        append(bytes, f32_to_bf16(value));
        value = bf16_to_f32(f32_to_bf16(value));
      } else {
        append(bytes, f32_to_f16(value));
        value = f16_to_f32(f32_to_f16(value));
      }
    }
    add(name, dtype, shape.empty() ? std::vector<int64_t>{rows, cols} : shape, bytes);
    return matrix;
  }

  // e4m3 with one f32 scale per 128x128 block.
  Matrix add_fp8(const std::string& name, int64_t rows, int64_t cols) {
    const int64_t block_rows = (rows + 127) / 128, block_cols = (cols + 127) / 128;
    std::vector<float> scales;
    std::string bytes, scale_bytes;
    for (int64_t i = 0; i < block_rows * block_cols; ++i) {
      scales.push_back(std::uniform_real_distribution<float>(0.001f, 0.01f)(rng_));
      append(scale_bytes, scales.back());
    }
    Matrix matrix{rows, cols, {}};
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c) {
        auto code = static_cast<uint8_t>(rng_());
        if ((code & 0x7f) == 0x7f) code ^= 1;  // no NaN
        bytes += static_cast<char>(code);
        matrix.values.push_back(e4m3_to_f32(code) * scales[static_cast<size_t>(r / 128 * block_cols + c / 128)]);
      }
    add(name, DType::fp8_e4m3, {rows, cols}, bytes);
    add(name + "_scale_inv", DType::f32, {block_rows, block_cols}, scale_bytes);
    return matrix;
  }

  // <name>_blocks [experts, rows, cols / 32, 16] and <name>_scales; one matrix per expert, rows as they are in the file.
  std::vector<Matrix> add_mxfp4(const std::string& name, int64_t experts, int64_t rows, int64_t cols) {
    std::string blocks, scales;
    std::vector<Matrix> matrices;
    for (int64_t e = 0; e < experts; ++e) {
      Matrix matrix{rows, cols, {}};
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t group = 0; group < cols / 32; ++group) {
          const auto scale = static_cast<uint8_t>(118 + rng_() % 12);
          scales += static_cast<char>(scale);
          for (int i = 0; i < 16; ++i) {
            const auto pair = static_cast<uint8_t>(rng_());
            blocks += static_cast<char>(pair);
            matrix.values.push_back(e2m1_to_f32(pair & 15) * e8m0_to_f32(scale));
            matrix.values.push_back(e2m1_to_f32(pair >> 4) * e8m0_to_f32(scale));
          }
        }
      matrices.push_back(std::move(matrix));
    }
    add(name + "_blocks", DType::u8, {experts, rows, cols / 32, 16}, blocks);
    add(name + "_scales", DType::u8, {experts, rows, cols / 32}, scales);
    return matrices;
  }

  // Tensors go to the shards in turn, so that one expert's lie in several.
  void write(const std::filesystem::path& folder, int num_shards, bool with_index = true) const {
    nlohmann::json map = nlohmann::json::object();
    for (int shard = 0; shard < num_shards; ++shard) {
      const std::string file = "model-" + std::to_string(shard + 1) + ".safetensors";
      std::vector<NamedTensor> named;
      for (size_t i = static_cast<size_t>(shard); i < tensors.size(); i += static_cast<size_t>(num_shards)) {
        named.push_back({tensors[i].name, view(tensors[i])});
        map[tensors[i].name] = file;
      }
      write_safetensors(folder / file, named);
    }
    if (with_index)
      write_file(folder / "model.safetensors.index.json", nlohmann::json{{"metadata", {}}, {"weight_map", map}}.dump());
  }

 private:
  template <class Value>
  static void append(std::string& bytes, Value value) {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  static ConstTensorView view(const StoredTensor& tensor) {
    ConstTensorView result(tensor.bytes.data(), tensor.dtype, {});
    result.ndim = static_cast<int32_t>(tensor.shape.size());
    int64_t stride = 1;
    for (size_t d = tensor.shape.size(); d-- > 0; stride *= tensor.shape[d]) {
      result.shape[d] = tensor.shape[d];
      result.strides[d] = stride;
    }
    return result;
  }

  Rng rng_;
};

inline Model tiny_model(int hidden, int intermediate, int num_experts) {
  Model model;
  model.name = "tiny";
  model.hidden = hidden;
  model.intermediate = intermediate;
  model.routing.num_experts = num_experts;
  model.routing.num_topk = 2;
  return model;
}

// Expert tensors "<begin><gate>.weight" and so on, plain or fp8.
inline Mlp add_mlp(TestCheckpoint& checkpoint, const std::string& begin, const std::array<std::string, 3>& gate_up_down,
                   DType dtype, int64_t hidden, int64_t intermediate) {
  const auto matrix = [&](const std::string& name, int64_t rows, int64_t cols) {
    const std::string tensor = begin + name + ".weight";
    return dtype == DType::fp8_e4m3 ? checkpoint.add_fp8(tensor, rows, cols)
                                    : checkpoint.add_plain(tensor, dtype, rows, cols);
  };
  Mlp mlp;
  mlp.gate = matrix(gate_up_down[0], intermediate, hidden);
  mlp.up = matrix(gate_up_down[1], intermediate, hidden);
  mlp.down = matrix(gate_up_down[2], hidden, intermediate);
  return mlp;
}

struct TestLayer {
  Matrix router;
  std::vector<Mlp> experts;
};

inline TestLayer add_mixtral(TestCheckpoint& checkpoint, const Model& model, const std::string& layer, DType dtype) {
  TestLayer truth;
  const std::string block = layer + "block_sparse_moe.";
  truth.router = checkpoint.add_plain(block + "gate.weight", DType::bf16, model.routing.num_experts, model.hidden);
  for (int e = 0; e < model.routing.num_experts; ++e)
    truth.experts.push_back(add_mlp(checkpoint, block + "experts." + std::to_string(e) + ".", {"w1", "w3", "w2"}, dtype,
                                    model.hidden, model.intermediate));
  return truth;
}

inline const std::array<std::string, 3> kProjections{"gate_proj", "up_proj", "down_proj"};

inline TestLayer add_qwen(TestCheckpoint& checkpoint, const Model& model, const std::string& layer, DType dtype) {
  TestLayer truth;
  truth.router = checkpoint.add_plain(layer + "mlp.gate.weight", DType::bf16, model.routing.num_experts, model.hidden);
  for (int e = 0; e < model.routing.num_experts; ++e)
    truth.experts.push_back(add_mlp(checkpoint, layer + "mlp.experts." + std::to_string(e) + ".", kProjections, dtype,
                                    model.hidden, model.intermediate));
  return truth;
}

struct OssLayer : TestLayer {
  Matrix router_bias;
  std::vector<std::vector<float>> gate_up_bias;  // gate rows, then up rows
  Matrix down_bias;
};

inline OssLayer add_gpt_oss(TestCheckpoint& checkpoint, const Model& model, const std::string& layer) {
  const int64_t experts = model.routing.num_experts, hidden = model.hidden, intermediate = model.intermediate;
  OssLayer truth;
  truth.router = checkpoint.add_plain(layer + "mlp.router.weight", DType::bf16, experts, hidden);
  truth.router_bias = checkpoint.add_plain(layer + "mlp.router.bias", DType::bf16, 1, experts, {experts});
  const std::vector<Matrix> fused =
      checkpoint.add_mxfp4(layer + "mlp.experts.gate_up_proj", experts, 2 * intermediate, hidden);
  const std::vector<Matrix> down = checkpoint.add_mxfp4(layer + "mlp.experts.down_proj", experts, hidden, intermediate);
  const Matrix fused_bias =
      checkpoint.add_plain(layer + "mlp.experts.gate_up_proj_bias", DType::bf16, experts, 2 * intermediate);
  truth.down_bias = checkpoint.add_plain(layer + "mlp.experts.down_proj_bias", DType::bf16, experts, hidden);
  for (int64_t e = 0; e < experts; ++e) {
    Mlp mlp{{intermediate, hidden, {}}, {intermediate, hidden, {}}, down[static_cast<size_t>(e)]};
    std::vector<float> gate_bias, up_bias;
    for (int64_t row = 0; row < 2 * intermediate; ++row) {
      Matrix& half = row % 2 == 0 ? mlp.gate : mlp.up;
      for (int64_t c = 0; c < hidden; ++c) half.values.push_back(fused[static_cast<size_t>(e)].at(row, c));
      (row % 2 == 0 ? gate_bias : up_bias).push_back(fused_bias.at(e, row));
    }
    gate_bias.insert(gate_bias.end(), up_bias.begin(), up_bias.end());
    truth.gate_up_bias.push_back(gate_bias);
    truth.experts.push_back(std::move(mlp));
  }
  return truth;
}

// A valid one of a Mixtral layer with eight experts, larger than any machine's memory, and almost no bytes on the disk.
class HugeCheckpoint {
 public:
  explicit HugeCheckpoint(const std::filesystem::path& folder) : model(tiny_model(1 << 20, 1 << 15, 8)) {
    nlohmann::json header = nlohmann::json::object();
    int64_t end = 0;
    const auto add = [&](const std::string& name, int64_t rows, int64_t cols) {
      const int64_t begin = end;
      end += 2 * rows * cols;
      header["model.layers.0.block_sparse_moe." + name + ".weight"] = {
          {"dtype", "BF16"}, {"shape", {rows, cols}}, {"data_offsets", {begin, end}}};
    };
    add("gate", 8, model.hidden);
    for (int e = 0; e < 8; ++e) {
      const std::string expert = "experts." + std::to_string(e);
      add(expert + ".w1", model.intermediate, model.hidden);
      add(expert + ".w2", model.hidden, model.intermediate);
      add(expert + ".w3", model.intermediate, model.hidden);
    }
    const std::string text = header.dump();
    const auto length = static_cast<uint64_t>(text.size());
    const std::filesystem::path file = folder / "model.safetensors";
    write_file(file, std::string(reinterpret_cast<const char*>(&length), 8) + text);
    std::filesystem::resize_file(file, 8 + length + static_cast<uint64_t>(end));
  }
  int64_t weight_bytes() const { return int64_t{8} * 3 * 2 * model.hidden * model.intermediate; }

  Model model;
};

}  // namespace mixlane::test
