#include "gpu_nvrtc.h"

#include <dlfcn.h>

#include <filesystem>
#include <stdexcept>
#include <vector>

namespace equipot {
namespace {

// NVRTC's interface, as its manual states it.
using Program = struct ProgramObject*;
enum : int { nvrtc_success = 0 };

struct Nvrtc {
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
};

// NVRTC opens its builtins by name when it first compiles, and where it was opened by its path alone does not find
// them: opened before it, they are there (seen with NVRTC 13.0).
void open_builtins(const std::filesystem::path& nvrtc) {
  std::error_code none;
  for (const auto& file : std::filesystem::directory_iterator(nvrtc.parent_path(), none))
    if (file.path().filename().string().rfind("libnvrtc-builtins.so", 0) == 0)
      dlopen(file.path().c_str(), RTLD_LAZY | RTLD_LOCAL);
}

std::vector<void*> open_libraries() {
  std::vector<std::string> names = cuda_surroundings().libraries;
  for (const char* name : {"libcuda.so.1", "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so"})
    names.push_back(name);
  std::vector<void*> found;
  for (const std::string& name : names)
    if (void* library = dlopen(name.c_str(), RTLD_LAZY | RTLD_LOCAL)) found.push_back(library);
  return found;
}

void* address_of(const std::vector<void*>& libraries, const char* name) {
  if (void* function = dlsym(RTLD_DEFAULT, name)) return function;
  for (void* library : libraries)
    if (void* function = dlsym(library, name)) return function;
  return nullptr;
}

template <class Function>
void find(Function*& function, const char* name) {
  function = reinterpret_cast<Function*>(find_cuda_function(name));
  if (function == nullptr)
    throw std::runtime_error(std::string("equipot: the kernels for GPUs are compiled by NVRTC (libnvrtc.so), in which ") + name +
                             " was not found; install the package nvidia-cuda-nvrtc, of the driver's or torch's version, or " +
                             cuda_surroundings().advice);
}

const Nvrtc& nvrtc() {
  static const Nvrtc functions = [] {
    Nvrtc f{};
    find(f.create, "nvrtcCreateProgram");
    find(f.compile, "nvrtcCompileProgram");
    find(f.destroy, "nvrtcDestroyProgram");
    find(f.log_size, "nvrtcGetProgramLogSize");
    find(f.log, "nvrtcGetProgramLog");
    find(f.cubin_size, "nvrtcGetCUBINSize");
    find(f.cubin, "nvrtcGetCUBIN");
    find(f.ptx_size, "nvrtcGetPTXSize");
    find(f.ptx, "nvrtcGetPTX");
    find(f.num_architectures, "nvrtcGetNumSupportedArchs");
    find(f.architectures, "nvrtcGetSupportedArchs");
    find(f.message, "nvrtcGetErrorString");
    return f;
  }();
  return functions;
}

void check(int result, const char* what) {
  if (result != nvrtc_success)
    throw std::runtime_error(std::string("equipot: NVRTC, ") + what + ": " + nvrtc().message(result));
}

// The newest architecture that the compiler knows and the device can run.
int architecture(int device) {
  int count = 0;
  check(nvrtc().num_architectures(&count), "architectures");
  std::vector<int> known(count);
  check(nvrtc().architectures(known.data()), "architectures");
  int best = 0;
  for (int each : known)
    if (each <= device && each > best) best = each;
  if (best == 0)
    throw std::runtime_error("equipot: this NVRTC does not compile for GPUs of compute capability " +
                             std::to_string(device / 10) + "." + std::to_string(device % 10) + " any more; " +
                             cuda_surroundings().advice);
  return best;
}

std::string read(Program program, int (*get_size)(Program, size_t*), int (*get)(Program, char*)) {
  size_t size = 0;
  check(get_size(program, &size), "size of the result");
  std::string text(size, '\0');
  if (size > 0) check(get(program, text.data()), "result");
  return text;
}

}  // namespace

CudaSurroundings& cuda_surroundings() {
  static CudaSurroundings surroundings;
  return surroundings;
}

void* find_cuda_function(const char* name) {
  static const std::vector<void*> libraries = [] {
    const auto opened = open_libraries();
    Dl_info nvrtc{};
    if (void* function = address_of(opened, "nvrtcVersion"); function != nullptr && dladdr(function, &nvrtc) != 0)
      open_builtins(nvrtc.dli_fname);
    return opened;
  }();
  return address_of(libraries, name);
}

void find_compiler() { nvrtc(); }

DeviceCode compile_for_gpu(const std::string& source, int major, int minor) {
  const int device = 10 * major + minor, known = architecture(device);
  // Machine code runs on later devices of the same generation; for another one the driver translates PTX.
  const bool machine_code = known / 10 == major;
  const std::string kind = machine_code ? "sm_" : "compute_";
  const std::string target = "--gpu-architecture=" + kind + std::to_string(known);
  const char* options[] = {target.c_str(), "--std=c++17", "--ptxas-options=-v"};
  Program program = nullptr;
  check(nvrtc().create(&program, source.c_str(), "equipot.cu", 0, nullptr, nullptr), "create program");
  const int result = nvrtc().compile(program, 3, options);
  DeviceCode code;
  code.log = read(program, nvrtc().log_size, nvrtc().log);
  if (result == nvrtc_success)
    code.binary = machine_code ? read(program, nvrtc().cubin_size, nvrtc().cubin)
                               : read(program, nvrtc().ptx_size, nvrtc().ptx);
  nvrtc().destroy(&program);
  if (result != nvrtc_success)
    throw std::runtime_error("equipot: NVRTC, " + target + ": " + nvrtc().message(result) + "\n" + code.log.substr(0, 4000));
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
    const equipot::DeviceCode code = equipot::compile_for_gpu(source, major, minor);
    text = code.log, size = int64_t(code.binary.size());
  } catch (const std::exception& error) {
    text = error.what();
  }
  log[text.copy(log, log_size - 1)] = '\0';
  return size;
}
