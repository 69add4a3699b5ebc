// NVIDIA's run-time compiler, found when it is first needed: nothing of CUDA is there when equipot is compiled.
#pragma once

#include <string>
#include <vector>

namespace equipot {

// What the program around says of itself, before anything is looked for.
struct CudaSurroundings {
  std::vector<std::string> libraries;  // that may have CUDA's functions, before those of the system
  std::string advice = "use the device cpu instead";  // ends messages about what is missing
};
CudaSurroundings& cuda_surroundings();

struct DeviceCode {
  std::string binary;  // for the driver: machine code, or PTX where the compiler does not know the device
  std::string log;
};

// An address in CUDA's shared libraries. Null if there is none.
void* find_cuda_function(const char* name);

// Throws std::runtime_error if there is no compiler that the driver goes with.
void find_compiler();

// For compute capability `major`.`minor`; `verbose`: with registers and spills in the log. Throws std::runtime_error with the
// compiler's messages.
DeviceCode compile_for_gpu(const std::string& source, int major, int minor, bool verbose = false);

}  // namespace equipot
