// The few declarations of onnxruntime's C++ API that the page of a pack uses, written by hand
// after its documentation. The session checks what it is given and halves its last input.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

enum OrtLoggingLevel { ORT_LOGGING_LEVEL_ERROR = 3 };
enum OrtAllocatorType { OrtArenaAllocator = 1 };
enum OrtMemType { OrtMemTypeDefault = 0 };

namespace Ort {

struct Env {
  Env(OrtLoggingLevel, const char*) {}
};

struct SessionOptions {};

struct RunOptions {
  explicit RunOptions(std::nullptr_t) {}
};

struct MemoryInfo {
  static MemoryInfo CreateCpu(OrtAllocatorType, OrtMemType) { return {}; }
};

struct Value {
  Value() = default;
  Value(const Value&) = delete;
  Value(Value&&) = default;

  template <typename T>
  static Value CreateTensor(const MemoryInfo&, T* data, size_t count, const int64_t* shape,
                            size_t rank) {
    Value value;
    value.values.assign(data, data + count);
    value.shape.assign(shape, shape + rank);
    return value;
  }

  template <typename T>
  const T* GetTensorData() const {
    return values.data();
  }

  std::vector<float> values;
  std::vector<int64_t> shape;
};

struct Session {
  Session(const Env&, const char*, const SessionOptions&) {}

  size_t GetInputCount() const { return 2; }

  std::vector<Value> Run(const RunOptions&, const char* const* input_names, const Value* inputs,
                         size_t input_count, const char* const* output_names,
                         size_t output_count) {
    const Value& last = inputs[input_count - 1];
    size_t expected = 1;
    for (int64_t side : last.shape) expected *= static_cast<size_t>(side);
    if (input_count != 2 || output_count != 1 || std::string(input_names[1]) != "context" ||
        std::string(output_names[0]) != "restored" || last.shape.size() != 4 ||
        last.values.size() != expected) {
      throw std::runtime_error("not what the model takes");
    }
    Value value;
    value.values = last.values;
    value.shape = last.shape;
    for (float& one : value.values) one /= 2;
    std::vector<Value> outputs;
    outputs.push_back(std::move(value));
    return outputs;
  }
};

}  // namespace Ort
