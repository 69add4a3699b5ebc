// GpuLauncher and GpuDevice by NVIDIA's driver. Its functions are found when they are first needed (gpu_nvrtc.h).
#include <unistd.h>

#include <map>
#include <mutex>
#include <new>
#include <stdexcept>

#include "gpu_launcher.h"
#include "gpu_nvrtc.h"

namespace equipot {
namespace {

// The driver's interface, as its manual states it.
using Context = struct ContextObject*;
using Module = struct ModuleObject*;
using Function = struct FunctionObject*;
using Stream = struct StreamObject*;
using Event = struct EventObject*;
using Address = unsigned long long;
enum : int { cuda_success = 0, out_of_memory = 2, capability_major = 75, capability_minor = 76 };

struct Driver {
  int (*init)(unsigned flags);
  int (*count_devices)(int*);
  int (*get_device)(int* device, int ordinal);
  int (*get_name)(char* name, int length, int device);
  int (*get_attribute)(int* value, int attribute, int device);
  int (*get_context)(Context*);
  int (*set_context)(Context);
  int (*retain_context)(Context*, int device);
  int (*load_module)(Module*, const void* image, unsigned options, int* names, void** values);
  int (*get_function)(Function*, Module, const char* name);
  int (*launch)(Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned shared, Stream,
                void** parameters, void** extra);
  int (*message)(int error, const char** text);
  // Only of the engine.
  int (*make_stream)(Stream*, unsigned flags);
  int (*end_stream)(Stream);
  int (*wait_for)(Stream);
  int (*make_event)(Event*, unsigned flags);
  int (*end_event)(Event);
  int (*record)(Event, Stream);
  int (*let_wait)(Stream, Event, unsigned flags);
  int (*allocate)(Address*, size_t);
  int (*free)(Address);
  int (*allocate_host)(void**, size_t);
  int (*free_host)(void*);
  int (*set_bytes)(Address, unsigned char, size_t, Stream);
  int (*copy_up)(Address, const void*, size_t, Stream);
  int (*copy_down)(void*, Address, size_t, Stream);
  int (*memory)(size_t* left, size_t* total);
};

template <class F>
void find(F*& function, const char* name) {
  function = reinterpret_cast<F*>(find_cuda_function(name));
  if (function == nullptr)
    throw std::runtime_error(std::string("equipot: GPUs need ") + name + " of NVIDIA's driver (libcuda.so.1), which was not found; " +
                             "install the driver, or " + cuda_surroundings().advice);
}

Driver find_driver() {
  Driver d{};
  find(d.init, "cuInit"), find(d.count_devices, "cuDeviceGetCount"), find(d.get_device, "cuDeviceGet");
  find(d.get_name, "cuDeviceGetName"), find(d.get_attribute, "cuDeviceGetAttribute");
  find(d.get_context, "cuCtxGetCurrent"), find(d.set_context, "cuCtxSetCurrent");
  find(d.retain_context, "cuDevicePrimaryCtxRetain");
  find(d.load_module, "cuModuleLoadDataEx"), find(d.get_function, "cuModuleGetFunction");
  find(d.launch, "cuLaunchKernel"), find(d.message, "cuGetErrorString");
  find(d.make_stream, "cuStreamCreate"), find(d.end_stream, "cuStreamDestroy_v2"), find(d.wait_for, "cuStreamSynchronize");
  find(d.make_event, "cuEventCreate"), find(d.end_event, "cuEventDestroy_v2"), find(d.record, "cuEventRecord");
  find(d.let_wait, "cuStreamWaitEvent");
  find(d.allocate, "cuMemAlloc_v2"), find(d.free, "cuMemFree_v2");
  find(d.allocate_host, "cuMemAllocHost_v2"), find(d.free_host, "cuMemFreeHost");
  find(d.set_bytes, "cuMemsetD8Async"), find(d.memory, "cuMemGetInfo_v2");
  find(d.copy_up, "cuMemcpyHtoDAsync_v2"), find(d.copy_down, "cuMemcpyDtoHAsync_v2");
  return d;
}

void check(const Driver& driver, int result, const char* what) {
  if (result == cuda_success) return;
  if (result == out_of_memory) throw std::bad_alloc();
  const char* text = nullptr;
  driver.message(result, &text);
  throw std::runtime_error(std::string("equipot: ") + what + ": " + (text == nullptr ? "unknown error" : text));
}

int count_devices(const Driver& driver) {
  static const pid_t first = getpid();
  if (getpid() != first)
    throw std::runtime_error("equipot: this process was forked from one that had asked for GPUs, and CUDA does not work in it; start "
                             "processes by spawn (multiprocessing.set_start_method), or " + cuda_surroundings().advice);
  int count = 0;
  check(driver, driver.init(0), "cuInit"), check(driver, driver.count_devices(&count), "cuDeviceGetCount");
  return count;
}

// Functions of a context, by the text they were compiled from.
struct Modules {
  std::mutex mutex;
  std::map<std::pair<Context, std::string>, Module> known;
};

Modules& modules() {
  static auto* all = new Modules;  // never destroyed: when the process ends, the driver may be gone before
  return *all;
}

Address address(const void* memory) { return reinterpret_cast<Address>(memory); }

class DriverDevice : public GpuDevice {
 public:
  // With a runtime: of its current device and stream.
  DriverDevice(const GpuRuntime& runtime, int ordinal) : driver_(find_driver()), runtime_(runtime), ordinal_(ordinal) {
    const int count = count_devices(driver_);
    if (runtime_.device != nullptr) return;
    if (ordinal < 0 || ordinal >= count)
      throw std::runtime_error("equipot: the GPU " + std::to_string(ordinal) + " does not exist, the driver has " +
                               std::to_string(count) + "; " + cuda_surroundings().advice);
    check(driver_.retain_context(&own_, device()), "cuDevicePrimaryCtxRetain");
    const Entered entered(*this);
    check(driver_.make_stream(&own_stream_, 1), "cuStreamCreate");  // 1: it does not wait for other streams
    check(driver_.make_stream(&aside_, 1), "cuStreamCreate");
    check(driver_.make_event(&reached_, 2), "cuEventCreate");  // 2: it measures no time
  }

  // The context stays: modules() has what was compiled in it.
  ~DriverDevice() override {
    for (Stream stream : {own_stream_, aside_})
      if (stream != nullptr) quietly([&] { driver_.end_stream(stream); });
    if (reached_ != nullptr) quietly([&] { driver_.end_event(reached_); });
  }

  void* compile(const std::string& source, const char* name) override {
    const Entered entered(*this);
    const std::lock_guard<std::mutex> guard(modules().mutex);
    Module& module = modules().known[{entered.context, source}];
    if (module == nullptr) {
      int major = 0, minor = 0;
      check(driver_.get_attribute(&major, capability_major, device()), "cuDeviceGetAttribute");
      check(driver_.get_attribute(&minor, capability_minor, device()), "cuDeviceGetAttribute");
      const DeviceCode code = compile_for_gpu(source, major, minor);
      check(driver_.load_module(&module, code.binary.data(), 0, nullptr, nullptr), "cuModuleLoadDataEx");
    }
    Function function = nullptr;
    check(driver_.get_function(&function, module, name), "cuModuleGetFunction");
    return function;
  }

  void launch(void* kernel, const GpuGrid& grid, int64_t threads, void* parameter) override {
    const Entered entered(*this);
    void* parameters[] = {parameter};
    check(driver_.launch(static_cast<Function>(kernel), unsigned(grid[0]), unsigned(grid[1]), unsigned(grid[2]),
                         unsigned(threads), 1, 1, 0, static_cast<Stream>(stream()), parameters, nullptr),
          "cuLaunchKernel");
  }

  void* stream() override { return runtime_.stream == nullptr ? own_stream_ : runtime_.stream(runtime_.device()); }

  void* allocate(size_t bytes) override {
    const Entered entered(*this);
    Address memory = 0;
    const int result = driver_.allocate(&memory, bytes);
    if (result == out_of_memory) return nullptr;
    check(result, "cuMemAlloc");
    return reinterpret_cast<void*>(memory);
  }
  void free(void* memory) noexcept override {
    quietly([&] { driver_.free(address(memory)); });
  }
  void* allocate_host(size_t bytes) override {
    const Entered entered(*this);
    void* memory = nullptr;
    check(driver_.allocate_host(&memory, bytes), "cuMemAllocHost");
    return memory;
  }
  void free_host(void* memory) noexcept override {
    quietly([&] { driver_.free_host(memory); });
  }
  void zero(void* memory, size_t bytes) override {
    const Entered entered(*this);
    check(driver_.set_bytes(address(memory), 0, bytes, own_stream_), "cuMemsetD8Async");
  }
  void copy_up(void* to, const void* from, size_t bytes) override { copy_up(to, from, bytes, own_stream_); }
  void copy_down(void* to, const void* from, size_t bytes) override { copy_down(to, from, bytes, own_stream_); }
  void synchronize() override { synchronize(own_stream_); }
  void fork() override { let_wait(aside_, own_stream_); }
  void copy_up_aside(void* to, const void* from, size_t bytes) override { copy_up(to, from, bytes, aside_); }
  void copy_down_aside(void* to, const void* from, size_t bytes) override { copy_down(to, from, bytes, aside_); }
  void synchronize_aside() override { synchronize(aside_); }
  void join() override { let_wait(own_stream_, aside_); }
  void enter(const std::function<void()>& work) override {
    const Entered entered(*this);
    work();
  }
  size_t memory_left() override {
    const Entered entered(*this);
    size_t left = 0, total = 0;
    check(driver_.memory(&left, &total), "cuMemGetInfo");
    return left;
  }
  std::string name() override {
    char text[256] = {};
    check(driver_.get_name(text, sizeof text - 1, device()), "cuDeviceGetName");
    return text;
  }

 private:
  void copy_up(void* to, const void* from, size_t bytes, Stream stream) {
    const Entered entered(*this);
    check(driver_.copy_up(address(to), from, bytes, stream), "cuMemcpyHtoDAsync");
  }
  void copy_down(void* to, const void* from, size_t bytes, Stream stream) {
    const Entered entered(*this);
    check(driver_.copy_down(to, address(from), bytes, stream), "cuMemcpyDtoHAsync");
  }
  void synchronize(Stream stream) {
    const Entered entered(*this);
    check(driver_.wait_for(stream), "cuStreamSynchronize");
  }
  // For what the other has been asked for so far. (A wait is for what the event marked when it was asked for.)
  void let_wait(Stream stream, Stream other) {
    const Entered entered(*this);
    const std::lock_guard guard(marking_);
    check(driver_.record(reached_, other), "cuEventRecord");
    check(driver_.let_wait(stream, reached_, 0), "cuStreamWaitEvent");
  }

  // Gives back what may be gone with the context: in a forked process, when the process ends, after a kernel has failed.
  template <class F>
  void quietly(const F& give_back) const noexcept {
    try {
      const Entered entered(*this);
      give_back();
    } catch (const std::exception&) {
    }
  }

  // Has the device's context be the thread's while it lives. What was there comes back afterwards, also if it was none: torch
  // takes the thread's context for its current device. Of a runtime, a context that it would choose itself stays.
  struct Entered {
    const DriverDevice& of;
    Context before = nullptr, context = nullptr;

    explicit Entered(const DriverDevice& device) : of(device) {
      of.check(of.driver_.get_context(&before), "cuCtxGetCurrent");
      context = of.own_ != nullptr ? of.own_ : before;
      if (context == nullptr)  // a thread that the runtime has not used yet
        of.check(of.driver_.retain_context(&context, of.device()), "cuDevicePrimaryCtxRetain");
      if (context != before) of.check(of.driver_.set_context(context), "cuCtxSetCurrent");
    }
    ~Entered() {
      if (context != before && (before != nullptr || of.own_ != nullptr)) of.driver_.set_context(before);
    }
  };

  void check(int result, const char* what) const { equipot::check(driver_, result, what); }

  int device() const {
    int device = 0;
    check(driver_.get_device(&device, runtime_.device == nullptr ? ordinal_ : runtime_.device()), "cuDeviceGet");
    return device;
  }

  const Driver driver_;
  const GpuRuntime runtime_;
  const int ordinal_;
  Context own_ = nullptr;
  Stream own_stream_ = nullptr, aside_ = nullptr;
  Event reached_ = nullptr;
  std::mutex marking_;  // models in several threads share it
};

}  // namespace

std::unique_ptr<GpuLauncher> driver_launcher(const GpuRuntime& runtime) {
  return std::make_unique<DriverDevice>(runtime, 0);
}

int count_driver_devices() {
  find_compiler();
  return count_devices(find_driver());
}

std::shared_ptr<GpuDevice> driver_device(int ordinal) {
  static std::mutex mutex;
  static auto* open = new std::map<int, std::weak_ptr<GpuDevice>>;  // as modules
  const std::lock_guard<std::mutex> guard(mutex);
  std::shared_ptr<GpuDevice> found = (*open)[ordinal].lock();
  if (found == nullptr) (*open)[ordinal] = found = std::make_shared<DriverDevice>(GpuRuntime{}, ordinal);
  return found;
}

}  // namespace equipot
