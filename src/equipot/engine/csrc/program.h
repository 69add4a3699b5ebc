// What a model file holds for the engine: a program (JSON) and the weights it names (safetensors' layout).
// docs/model_format.md describes both.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"

namespace equipot {

constexpr int program_version = 4;

struct Weight {
  std::vector<int64_t> shape;
  std::string dtype;  // F32, F64 or I64
  std::string_view bytes;

  int64_t count() const {
    int64_t product = 1;
    for (const int64_t n : shape) product *= n;
    return product;
  }
};

struct Program {
  Json json;
  std::map<std::string, Weight> weights;

  // Throws std::runtime_error; `path` stands in the message. `bytes` must outlive the program.
  Program(const std::string& path, std::string_view text, std::string_view bytes) {
    try {
      json = Json::parse(std::string(text));
      const auto version = int(json["version"].number);
      if (version > program_version)
        throw std::runtime_error("its program has version " + std::to_string(version) + ", this engine reads up to " +
                                 std::to_string(program_version) + ". Upgrade equipot");
      read_weights(bytes);
    } catch (const std::exception& error) {
      throw std::runtime_error(path + ": " + error.what() + ".");
    }
  }

  // The numbers of a weight as T. Throws if there is none, or it has another number of elements (< 0: any).
  template <class T>
  std::vector<T> values(const std::string& name, int64_t count = -1) const {
    const auto found = weights.find(name);
    if (found == weights.end()) throw std::runtime_error("the weights '" + name + "' are missing");
    const Weight& weight = found->second;
    if (count >= 0 && weight.count() != count)
      throw std::runtime_error("the weights '" + name + "' are " + std::to_string(weight.count()) + " numbers, expected " +
                               std::to_string(count));
    std::vector<T> numbers(size_t(weight.count()));
    if (weight.dtype == "F32") copy<float>(weight, numbers);
    else if (weight.dtype == "F64") copy<double>(weight, numbers);
    else copy<int64_t>(weight, numbers);
    return numbers;
  }

 private:
  template <class Stored, class T>
  static void copy(const Weight& weight, std::vector<T>& to) {
    for (size_t n = 0; n < to.size(); ++n) {
      Stored value;
      std::memcpy(&value, weight.bytes.data() + n * sizeof value, sizeof value);
      to[n] = T(value);
    }
  }

  void read_weights(std::string_view bytes) {
    const auto damaged = [] { throw std::runtime_error("its weights are damaged"); };
    uint64_t header = 0;
    if (bytes.size() < sizeof header) damaged();
    std::memcpy(&header, bytes.data(), sizeof header);
    if (header > bytes.size() - sizeof header) damaged();
    const Json names = Json::parse(std::string(bytes.substr(sizeof header, header)));
    const std::string_view data = bytes.substr(sizeof header + header);
    for (const auto& [name, entry] : names.members) {
      if (name == "__metadata__") continue;
      const auto range = entry["data_offsets"].numbers<double>();
      Weight weight{entry["shape"].numbers<int64_t>(), entry["dtype"].text, {}};
      if (range.size() != 2 || !(range[0] >= 0 && range[0] <= range[1] && range[1] <= double(data.size()))) damaged();
      weight.bytes = data.substr(size_t(range[0]), size_t(range[1] - range[0]));
      const int64_t size = weight.dtype == "F32" ? 4 : weight.dtype == "F64" || weight.dtype == "I64" ? 8 : 0;
      double count = 1;
      for (const int64_t n : weight.shape) count *= n < 1 ? -1e300 : double(n);
      if (size == 0 || count * double(size) != double(weight.bytes.size())) damaged();
      weights[name] = weight;
    }
  }
};

}  // namespace equipot
