// What torch_model.cpp offers; a library of its own, so that the plugin runs without torch.
#pragma once

#include <string>

#include "model.h"

namespace equipot {

struct TorchFunctions {
  Model* (*open)(const std::string& path, const std::string& device);  // throws std::runtime_error
  int (*num_gpus)();
};

}  // namespace equipot
