#include "gpu_torch.h"

#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>
#include <dlfcn.h>

#include "gpu_nvrtc.h"

namespace equipot {
namespace {

// Directory of torch's own libraries.
std::string torch_directory() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<void*>(&c10::GetCPUAllocator), &info) == 0) return "";
  const std::string path = info.dli_fname;
  return path.substr(0, path.rfind('/') + 1);
}

// torch's stub depends on driver and NVRTC and knows where its packages keep them.
const bool told = [] {
  for (const char* name : {"libtorch_cuda.so", "libcaffe2_nvrtc.so"})
    cuda_surroundings().libraries.push_back(torch_directory() + name);
  cuda_surroundings().advice = "set EQUIPOT_KERNELS=off to run plain torch instead, several times slower";
  return true;
}();

int current_device() { return c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).getDevice().index(); }

void* current_stream(int device) {
  using Function = int(int32_t device, void** stream);
  static const auto get = reinterpret_cast<Function*>(find_cuda_function("aoti_torch_get_current_cuda_stream"));
  void* stream = nullptr;
  TORCH_CHECK(get != nullptr && get(device, &stream) == 0, "equipot: torch's current CUDA stream is not known; ",
              cuda_surroundings().advice);
  return stream;
}

GpuLauncher* emulator = nullptr;

}  // namespace

GpuLauncher& gpu_launcher() {
  if (emulator != nullptr) return *emulator;
  static const std::unique_ptr<GpuLauncher> driver = driver_launcher({current_device, current_stream});
  return *driver;
}

bool gpu_is_emulated() { return emulator != nullptr; }

}  // namespace equipot

// For tests: null is NVIDIA's driver again.
extern "C" __attribute__((visibility("default"))) void equipot_set_gpu_launcher(equipot::GpuLauncher* launcher) {
  equipot::emulator = launcher;
}
