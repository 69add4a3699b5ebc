// NVIDIA's run-time compiler, found when it is first needed: nothing of CUDA is there when equipot is compiled.
#pragma once

#include <string>

namespace equipot {

struct DeviceCode {
  std::string binary;  // for the driver: machine code, or PTX where the compiler does not know the device
  std::string log;
};

// The shared libraries of CUDA that torch brings: an address in them. Null if there is none.
void* find_cuda_function(const char* name);

// For compute capability `major`.`minor`. Raises an error with the compiler's messages.
DeviceCode compile_for_gpu(const std::string& source, int major, int minor);

}  // namespace equipot
