// GpuLauncher by NVIDIA's driver. Its functions are found when they are first needed (gpu_nvrtc.h).
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>


#include "gpu_launcher.h"
#include "gpu_nvrtc.h"

namespace equipot {
namespace {

// The driver's interface, as its manual states it.
using Context = struct ContextObject*;
using Module = struct ModuleObject*;
using Function = struct FunctionObject*;
using Stream = struct StreamObject*;
enum : int { cuda_success = 0, capability_major = 75, capability_minor = 76 };

struct Driver {
  int (*init)(unsigned flags);
  int (*get_device)(int* device, int ordinal);
  int (*get_attribute)(int* value, int attribute, int device);
  int (*get_context)(Context*);
  int (*set_context)(Context);
  int (*retain_context)(Context*, int device);
  int (*load_module)(Module*, const void* image, unsigned options, int* names, void** values);
  int (*get_function)(Function*, Module, const char* name);
  int (*launch)(Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned shared, Stream,
                void** parameters, void** extra);
  int (*message)(int error, const char** text);
  int (*current_stream)(int32_t device, void** stream);  // torch's
};

template <class F>
void find(F*& function, const char* name) {
  function = reinterpret_cast<F*>(find_cuda_function(name));
  TORCH_CHECK(function != nullptr, "equipot: the kernels for GPUs need ", name,
              " of NVIDIA's driver (libcuda.so.1) or of torch, which was not found; set EQUIPOT_KERNELS=off to run "
              "plain torch instead, several times slower");
}

class DriverLauncher : public GpuLauncher {
 public:
  DriverLauncher() {
    find(driver_.init, "cuInit");
    find(driver_.get_device, "cuDeviceGet");
    find(driver_.get_attribute, "cuDeviceGetAttribute");
    find(driver_.get_context, "cuCtxGetCurrent");
    find(driver_.set_context, "cuCtxSetCurrent");
    find(driver_.retain_context, "cuDevicePrimaryCtxRetain");
    find(driver_.load_module, "cuModuleLoadDataEx");
    find(driver_.get_function, "cuModuleGetFunction");
    find(driver_.launch, "cuLaunchKernel");
    find(driver_.message, "cuGetErrorString");
    find(driver_.current_stream, "aoti_torch_get_current_cuda_stream");
    check(driver_.init(0), "cuInit");
  }

  void* compile(const std::string& source, const char* name) override {
    const int device = enter();
    int major = 0, minor = 0;
    check(driver_.get_attribute(&major, capability_major, device), "cuDeviceGetAttribute");
    check(driver_.get_attribute(&minor, capability_minor, device), "cuDeviceGetAttribute");
    const DeviceCode code = compile_for_gpu(source, major, minor);
    Module module = nullptr;
    Function function = nullptr;
    check(driver_.load_module(&module, code.binary.data(), 0, nullptr, nullptr), "cuModuleLoadDataEx");
    check(driver_.get_function(&function, module, name), "cuModuleGetFunction");
    return function;
  }

  void launch(void* kernel, const GpuGrid& grid, int64_t threads, void* parameter) override {
    enter();
    void* parameters[] = {parameter};
    check(driver_.launch(static_cast<Function>(kernel), unsigned(grid[0]), unsigned(grid[1]), unsigned(grid[2]),
                         unsigned(threads), 1, 1, 0, static_cast<Stream>(stream()), parameters, nullptr),
          "cuLaunchKernel");
  }

  void* stream() override {
    void* stream = nullptr;
    TORCH_CHECK(driver_.current_stream(ordinal(), &stream) == 0, "equipot: torch's current CUDA stream is not known");
    return stream;
  }

 private:
  void check(int result, const char* what) const {
    const char* text = nullptr;
    if (result != cuda_success) driver_.message(result, &text);
    TORCH_CHECK(result == cuda_success, "equipot: ", what, ": ", text == nullptr ? "unknown error" : text);
  }

  static int32_t ordinal() { return c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).getDevice().index(); }

  // The current device; a thread that torch has not used yet has no context of it.
  int enter() const {
    int device = 0;
    check(driver_.get_device(&device, ordinal()), "cuDeviceGet");
    Context context = nullptr;
    check(driver_.get_context(&context), "cuCtxGetCurrent");
    if (context != nullptr) return device;
    check(driver_.retain_context(&context, device), "cuDevicePrimaryCtxRetain");
    check(driver_.set_context(context), "cuCtxSetCurrent");
    return device;
  }

  Driver driver_{};
};

GpuLauncher* emulator = nullptr;

}  // namespace

GpuLauncher& gpu_launcher() {
  if (emulator != nullptr) return *emulator;
  static DriverLauncher driver;
  return driver;
}

bool gpu_is_emulated() { return emulator != nullptr; }

}  // namespace equipot

// For tests: null is NVIDIA's driver again.
extern "C" __attribute__((visibility("default"))) void equipot_set_gpu_launcher(equipot::GpuLauncher* launcher) {
  equipot::emulator = launcher;
}
