#include "gpu_nvrtc.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <climits>
#include <filesystem>
#include <mutex>
#include <stdexcept>

namespace equipot {
namespace {

// NVRTC's interface, as its manual states it.
using Program = struct ProgramObject*;
enum : int { nvrtc_success = 0 };

struct Nvrtc {
  int major = 0, minor = 0;
  int (*create)(Program*, const char* source, const char* name, int headers, const char* const*, const char* const*);
  int (*compile)(Program, int options, const char* const*);
  int (*destroy)(Program*);
  int (*log_size)(Program, size_t*);
  int (*log)(Program, char*);
  int (*cubin_size)(Program, size_t*);
  int (*cubin)(Program, char*);
  int (*ptx_size)(Program, size_t*);
  int (*ptx)(Program, char*);
  int (*num_architectures)(int*);
  int (*architectures)(int*);
  const char* (*message)(int);

  int version() const { return 1000 * major + 10 * minor; }  // as the driver counts
};

std::string text_of(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

// NVRTC opens its builtins by name when it first compiles, and where it was opened by its path alone does not find
// them: opened before it, they are there (seen with NVRTC 13.0).
void open_builtins(const std::filesystem::path& nvrtc) {
  std::error_code none;
  for (const auto& file : std::filesystem::directory_iterator(nvrtc.parent_path(), none))
    if (file.path().filename().string().rfind("libnvrtc-builtins.so", 0) == 0)
      dlopen(file.path().c_str(), RTLD_LAZY | RTLD_LOCAL);
}

const std::vector<void*>& open_libraries() {
  static const std::vector<void*> opened = [] {
    std::vector<std::string> names = cuda_surroundings().libraries;
    for (const char* name : {"libcuda.so.1", "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so"})
      names.push_back(name);
    std::vector<void*> found;
    for (const std::string& name : names)
      if (void* library = dlopen(name.c_str(), RTLD_LAZY | RTLD_LOCAL)) found.push_back(library);
    return found;
  }();
  return opened;
}

template <class Function>
bool find(Function*& function, void* library, const char* name) {
  return (function = reinterpret_cast<Function*>(dlsym(library, name))) != nullptr;
}

bool open_compiler(const std::string& file, Nvrtc& f) {
  void* const library = dlopen(file.c_str(), RTLD_LAZY | RTLD_LOCAL);
  int (*version)(int*, int*) = nullptr;
  return library != nullptr && find(version, library, "nvrtcVersion") && version(&f.major, &f.minor) == nvrtc_success &&
         find(f.create, library, "nvrtcCreateProgram") && find(f.compile, library, "nvrtcCompileProgram") &&
         find(f.destroy, library, "nvrtcDestroyProgram") && find(f.log_size, library, "nvrtcGetProgramLogSize") &&
         find(f.log, library, "nvrtcGetProgramLog") && find(f.cubin_size, library, "nvrtcGetCUBINSize") &&
         find(f.cubin, library, "nvrtcGetCUBIN") && find(f.ptx_size, library, "nvrtcGetPTXSize") &&
         find(f.ptx, library, "nvrtcGetPTX") && find(f.num_architectures, library, "nvrtcGetNumSupportedArchs") &&
         find(f.architectures, library, "nvrtcGetSupportedArchs") && find(f.message, library, "nvrtcGetErrorString");
}

// Each NVRTC that this process has opened or the system finds by name, the newest first. There may be several: that of torch,
// that of NVIDIA's package, that of the system.
const std::vector<Nvrtc>& compilers() {
  static std::mutex mutex;
  static std::vector<Nvrtc> known;
  const std::lock_guard guard(mutex);
  if (!known.empty()) return known;
  open_libraries();
  std::vector<std::string> files;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* to) {
        const std::string name = std::filesystem::path(info->dlpi_name).filename();
        const bool compiler = name.rfind("libnvrtc", 0) == 0 && name.find("builtins") == std::string::npos;
        if (compiler) static_cast<std::vector<std::string>*>(to)->push_back(info->dlpi_name);
        return 0;
      },
      &files);
  for (const std::string& file : files)
    if (Nvrtc each; open_compiler(file, each)) open_builtins(file), known.push_back(each);
  std::stable_sort(known.begin(), known.end(), [](const Nvrtc& a, const Nvrtc& b) { return a.version() > b.version(); });
  return known;
}

// Of CUDA, that the driver goes with: 12040 is 12.4. Without a driver, all of them.
int driver_version() {
  int version = INT_MAX;
  if (void* function = find_cuda_function("cuDriverGetVersion")) reinterpret_cast<int (*)(int*)>(function)(&version);
  return version;
}

// A driver loads the machine code of every compiler of its own major version, and of older ones.
bool goes_with_driver(const Nvrtc& compiler) { return compiler.major <= driver_version() / 1000; }

void check(const Nvrtc& compiler, int result, const char* what) {
  if (result != nvrtc_success)
    throw std::runtime_error(std::string("equipot: NVRTC, ") + what + ": " + compiler.message(result));
}

// The newest architecture that the compiler knows and the device can run; 0 if there is none.
int architecture(const Nvrtc& compiler, int device) {
  int count = 0;
  check(compiler, compiler.num_architectures(&count), "architectures");
  std::vector<int> known(count);
  check(compiler, compiler.architectures(known.data()), "architectures");
  const std::vector<int> embedded{53, 62, 72, 87, 88, 101, 110};  // whose code other devices do not run
  int best = 0;
  for (int each : known)
    if (each == device || (each < device && std::count(embedded.begin(), embedded.end(), each) == 0)) best = std::max(best, each);
  return best;
}

struct Target {
  const Nvrtc* compiler;
  int architecture;
  bool machine_code;  // which runs on later devices of the same generation; for another one the driver translates PTX
};

// By the newest compiler that suits driver and device.
Target target_of(int device) {
  find_compiler();
  for (const Nvrtc& compiler : compilers()) {
    const int known = architecture(compiler, device);
    const bool machine_code = known / 10 == device / 10;
    const bool suits = machine_code ? goes_with_driver(compiler) : compiler.version() <= driver_version();
    if (known > 0 && suits) return {&compiler, known, machine_code};
  }
  std::string versions;
  for (const Nvrtc& compiler : compilers()) versions += (versions.empty() ? "" : ", ") + text_of(compiler.version());
  throw std::runtime_error("equipot: NVRTC " + versions + " does not compile for GPUs of compute capability " +
                           std::to_string(device / 10) + "." + std::to_string(device % 10) + " and this driver; " +
                           cuda_surroundings().advice);
}

std::string read(const Nvrtc& compiler, Program program, int (*get_size)(Program, size_t*), int (*get)(Program, char*)) {
  size_t size = 0;
  check(compiler, get_size(program, &size), "size of the result");
  std::string text(size, '\0');
  if (size > 0) check(compiler, get(program, text.data()), "result");
  return text;
}

}  // namespace

CudaSurroundings& cuda_surroundings() {
  static CudaSurroundings surroundings;
  return surroundings;
}

void* find_cuda_function(const char* name) {
  if (void* function = dlsym(RTLD_DEFAULT, name)) return function;
  for (void* library : open_libraries())
    if (void* function = dlsym(library, name)) return function;
  return nullptr;
}

void find_compiler() {
  const std::vector<Nvrtc>& all = compilers();
  if (all.empty())
    throw std::runtime_error("equipot: the kernels for GPUs are compiled by NVRTC (libnvrtc.so), which was not found; install the "
                             "package nvidia-cuda-nvrtc (nvidia-cuda-nvrtc-cu12 for drivers of CUDA 12), or " +
                             cuda_surroundings().advice);
  if (std::none_of(all.begin(), all.end(), goes_with_driver))
    throw std::runtime_error("equipot: NVRTC " + text_of(all.back().version()) + " is newer than the driver, which is of CUDA " +
                             text_of(driver_version()) + " (nvidia-smi shows it); install a newer driver, or the package " +
                             "nvidia-cuda-nvrtc-cu" + std::to_string(driver_version() / 1000) + ", or " + cuda_surroundings().advice);
}

DeviceCode compile_for_gpu(const std::string& source, int major, int minor, bool verbose) {
  const auto [chosen, known, machine_code] = target_of(10 * major + minor);
  const Nvrtc& compiler = *chosen;
  const std::string target = std::string("--gpu-architecture=") + (machine_code ? "sm_" : "compute_") + std::to_string(known);
  const char* options[] = {target.c_str(), "--std=c++17", "--ptxas-options=-v"};
  Program program = nullptr;
  check(compiler, compiler.create(&program, source.c_str(), "equipot.cu", 0, nullptr, nullptr), "create program");
  const int result = compiler.compile(program, verbose ? 3 : 2, options);
  DeviceCode code;
  code.log = read(compiler, program, compiler.log_size, compiler.log);
  if (result == nvrtc_success)
    code.binary = machine_code ? read(compiler, program, compiler.cubin_size, compiler.cubin)
                               : read(compiler, program, compiler.ptx_size, compiler.ptx);
  compiler.destroy(&program);
  if (result != nvrtc_success)
    throw std::runtime_error("equipot: NVRTC " + text_of(compiler.version()) + ", " + target + ": " + compiler.message(result) + "\n" +
                             code.log.substr(0, 4000));
  return code;
}

}  // namespace equipot

// For tests: the size of the result, and the compiler's messages; -1 and an error's message if it fails.
extern "C" __attribute__((visibility("default"))) int64_t equipot_compile_for_gpu(const char* source, int major,
                                                                                  int minor, char* log,
                                                                                  size_t log_size) {
  std::string text;
  int64_t size = -1;
  try {
    const equipot::DeviceCode code = equipot::compile_for_gpu(source, major, minor, true);
    text = code.log, size = int64_t(code.binary.size());
  } catch (const std::exception& error) {
    text = error.what();
  }
  log[text.copy(log, log_size - 1)] = '\0';
  return size;
}
