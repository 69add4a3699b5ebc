// What equipot needs of a GPU, so that tests can stand in for it: gpu_driver.cpp is NVIDIA's driver.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace equipot {

using GpuGrid = std::array<int64_t, 3>;

// Compiling and starting kernels: all that torch's operators need, whose memory is torch's.
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

// And memory, for the engine. All work is done in the order in which it is asked for, and nothing waits for it but
// `synchronize`; memory of the host that is copied must be the device's own (allocate_host), and stay as it is until then.
class GpuDevice : public GpuLauncher {
 public:
  virtual void* allocate(size_t bytes) = 0;  // null if there is not so much
  virtual void free(void* memory) noexcept = 0;
  virtual void* allocate_host(size_t bytes) = 0;
  virtual void free_host(void* memory) noexcept = 0;
  virtual void zero(void* memory, size_t bytes) = 0;
  virtual void copy_up(void* to, const void* from, size_t bytes) = 0;  // from the host
  virtual void copy_down(void* to, const void* from, size_t bytes) = 0;  // to the host
  virtual void synchronize() = 0;
  // Copies beside that work, in an order of their own. After `fork` they wait for all that has been asked for until then, and
  // touch only memory that was taken by then; after `join` what is asked for waits for them.
  virtual void fork() = 0;
  virtual void copy_up_aside(void* to, const void* from, size_t bytes) = 0;
  virtual void copy_down_aside(void* to, const void* from, size_t bytes) = 0;
  virtual void synchronize_aside() = 0;  // the host waits for them, and for what they wait for
  virtual void join() = 0;
  // Calls work() with the device current, for libraries that look for it themselves, such as MPI.
  virtual void enter(const std::function<void()>& work) = 0;
  virtual size_t memory_left() = 0;
  virtual std::string name() = 0;
};

// What a program with a runtime of its own, such as torch, has to say: its current device, and the stream of that.
struct GpuRuntime {
  int (*device)() = nullptr;
  void* (*stream)(int device) = nullptr;
};

// By NVIDIA's driver, whose functions are found now. Throws std::runtime_error that says what is missing.
std::unique_ptr<GpuLauncher> driver_launcher(const GpuRuntime& runtime);
std::shared_ptr<GpuDevice> driver_device(int ordinal);  // one for all models

// The devices that it has. Throws std::runtime_error that says what is missing, the compiler of kernels too.
int count_driver_devices();

}  // namespace equipot
