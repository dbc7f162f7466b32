// Restores a photograph, an 8-bit binary PPM, in overlapping tiles as restore.py does.
//
//   g++ -std=c++17 -O2 restore.cpp -lonnxruntime -o restore
//   ./restore part.ppm restored.ppm
//
// This file is part of restore_jax (Apache-2.0) and needs onnxruntime's headers and library.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

// As in manifest.json: side and overlap of the tiles, and what their sides are multiples of, px.
constexpr int64_t kTile = $tile, kOverlap = $overlap, kMultiple = $multiple;
constexpr double kPi = 3.14159265358979323846;

struct Photograph {
  int64_t height = 0, width = 0;
  std::vector<float> values;  // rows of RGB, in [0, 1]
};

// The tiles along an axis: their side, their first pixels, and the weights of their pixels.
struct Cut {
  int64_t side;
  std::vector<int64_t> starts;
  std::vector<std::vector<float>> weights;
};

int64_t rounded_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Neighbours are cross-faded by a raised cosine; the weights of a pixel sum to one.
void blend(Cut& cut) {
  const size_t side = static_cast<size_t>(cut.side), tiles = cut.starts.size();
  std::vector<std::vector<double>> weights(tiles, std::vector<double>(side, 1.0));
  for (size_t i = 0; i + 1 < tiles; ++i) {
    const size_t shared = side - static_cast<size_t>(cut.starts[i + 1] - cut.starts[i]);
    for (size_t k = 0; k < shared; ++k) {
      const double sine = std::sin(kPi / 2 * (k + 0.5) / shared);
      weights[i][side - 1 - k] *= sine * sine;
      weights[i + 1][k] *= sine * sine;
    }
  }
  std::vector<double> total(static_cast<size_t>(cut.starts.back()) + side, 0.0);
  for (size_t i = 0; i < tiles; ++i) {
    for (size_t k = 0; k < side; ++k) total[cut.starts[i] + k] += weights[i][k];
  }
  for (size_t i = 0; i < tiles; ++i) {
    for (size_t k = 0; k < side; ++k) weights[i][k] /= total[cut.starts[i] + k];
    cut.weights.emplace_back(weights[i].begin(), weights[i].end());
  }
}

Cut cut_axis(int64_t length) {
  Cut cut{std::min(kTile, rounded_up(length, kMultiple)), {0}, {}};
  if (length > cut.side) {
    // Multiples of 32, as far as possible: the network works on blocks of pixels.
    int64_t eighth = 1;
    while (eighth * 8 <= cut.side) eighth *= 2;
    const int64_t shift = cut.side - kOverlap;
    const int64_t unit = std::gcd(std::gcd(cut.side, shift), std::gcd(kMultiple, eighth));
    const int64_t last = rounded_up(length - cut.side, unit) / unit;
    const int64_t gaps = rounded_up(last, shift / unit) / (shift / unit);
    for (int64_t i = 1; i <= gaps; ++i) {
      const double place = static_cast<double>(i * last) / static_cast<double>(gaps);
      cut.starts.push_back(unit * static_cast<int64_t>(std::nearbyint(place)));
    }
  }
  blend(cut);
  return cut;
}

// The pixel that continues an axis by reflection: 0 1 2 1 0 1 ... for a length of 3.
int64_t reflected(int64_t place, int64_t length) {
  if (length == 1) return 0;
  place %= 2 * (length - 1);
  return std::min(place, 2 * (length - 1) - place);
}

Ort::Value tensor(std::vector<float>& values, const std::vector<int64_t>& shape) {
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  return Ort::Value::CreateTensor<float>(memory, values.data(), values.size(), shape.data(),
                                         shape.size());
}

Photograph restored(Ort::Session& session, Photograph& degraded) {
  const auto [height, width] = std::pair(degraded.height, degraded.width);
  const Cut rows = cut_axis(height), columns = cut_axis(width);
  const char* input_names[] = {"degraded", "context"};
  const char* output_names[] = {"restored"};
  Photograph result{height, width, std::vector<float>(degraded.values.size(), 0.0f)};
  std::vector<float> tile(static_cast<size_t>(rows.side * columns.side * 3));
  for (size_t i = 0; i < rows.starts.size(); ++i) {
    for (size_t j = 0; j < columns.starts.size(); ++j) {
      const int64_t top = rows.starts[i], left = columns.starts[j];
      for (int64_t y = 0; y < rows.side; ++y) {
        for (int64_t x = 0; x < columns.side; ++x) {
          const float* pixel =
              &degraded.values[static_cast<size_t>(3 * (reflected(top + y, height) * width +
                                                        reflected(left + x, width)))];
          std::copy_n(pixel, 3, &tile[static_cast<size_t>(3 * (y * columns.side + x))]);
        }
      }
      std::vector<Ort::Value> inputs;
      inputs.push_back(tensor(tile, {1, rows.side, columns.side, 3}));
      if (session.GetInputCount() > 1) {
        // What the model has to see of the whole photograph.
        inputs.push_back(tensor(degraded.values, {1, height, width, 3}));
      }
      auto outputs = session.Run(Ort::RunOptions{nullptr}, input_names, inputs.data(),
                                 inputs.size(), output_names, 1);
      const float* values = outputs[0].GetTensorData<float>();
      // The last tiles may end after the photograph.
      for (int64_t y = 0; y < std::min(rows.side, height - top); ++y) {
        for (int64_t x = 0; x < std::min(columns.side, width - left); ++x) {
          const float weight = rows.weights[i][y] * columns.weights[j][x];
          for (int64_t c = 0; c < 3; ++c) {
            result.values[static_cast<size_t>(3 * ((top + y) * width + left + x) + c)] +=
                weight * values[3 * (y * columns.side + x) + c];
          }
        }
      }
    }
  }
  return result;
}

Photograph read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  Photograph photograph;
  int64_t white = 0;
  file >> magic >> photograph.width >> photograph.height >> white;
  file.get();
  if (!file || magic != "P6" || white != 255 || photograph.width < 1 || photograph.height < 1) {
    throw std::runtime_error(std::string(path) + ": not an 8-bit binary PPM");
  }
  std::vector<uint8_t> bytes(static_cast<size_t>(photograph.width * photograph.height * 3));
  file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  if (!file) throw std::runtime_error(std::string(path) + ": ends too early");
  for (uint8_t level : bytes) photograph.values.push_back(level / 255.0f);
  return photograph;
}

void write(const char* path, const Photograph& photograph) {
  std::ofstream file(path, std::ios::binary);
  file << "P6\n" << photograph.width << " " << photograph.height << "\n255\n";
  for (float value : photograph.values) {
    const float level = std::nearbyint(std::clamp(value, 0.0f, 1.0f) * 255.0f);
    file.put(static_cast<char>(static_cast<uint8_t>(level)));
  }
  file.close();
  if (!file) throw std::runtime_error(std::string(path) + ": cannot be written");
}

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: restore IN.ppm OUT.ppm\n";
    return 2;
  }
  try {
    Photograph degraded = read(argv[1]);
    Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "restore");
    // On Windows, the path is a wide string: L"$first".
    Ort::Session session(env, "$first", Ort::SessionOptions{});
    write(argv[2], restored(session, degraded));
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
