// Compiling and starting GPU kernels: what gpu_passes.cpp needs of a GPU, so that tests can stand in for it.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace equipot {

using GpuGrid = std::array<int64_t, 3>;

class GpuLauncher {
 public:
  virtual ~GpuLauncher() = default;
  // The function `name` of CUDA C++ text, for the current device. Never null; it stays as long as the process.
  virtual void* compile(const std::string& source, const char* name) = 0;
  // Blocks of `threads` threads, on the current stream. The kernel's only parameter is a structure.
  virtual void launch(void* kernel, const GpuGrid& grid, int64_t threads, void* parameter) = 0;
  // What work is ordered by: the current stream.
  virtual void* stream() = 0;
};

// NVIDIA's driver, or what tests have set. Raises an error that says what is missing.
GpuLauncher& gpu_launcher();

// Whether tests have set another launcher; then tensors on the CPU go to it too.
bool gpu_is_emulated();

}  // namespace equipot
