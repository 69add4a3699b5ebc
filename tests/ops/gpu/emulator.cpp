// A GpuLauncher without a GPU: compiles a kernel's text as C++ and runs its blocks one after the other. Without a
// compiler it only keeps the text, and a list of what would be started; results are arbitrary.
#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <stdexcept>
#include <string>

#include "gpu_launcher.h"

namespace {

using Run = void (*)(const void* parameter, const int64_t* grid, int64_t threads);

class Emulator : public equipot::GpuLauncher {
 public:
  std::string directory, compiler;
  int64_t launches = 0;

  void* compile(const std::string& source, const char* name) override {
    const std::string stem = directory + "/" + std::to_string(std::hash<std::string>()(source));
    std::ofstream(stem + ".cu") << source;
    if (compiler.empty()) return new std::string(stem);  // kernels stay as long as the process
    std::ofstream(stem + ".cpp") << "#include \"cuda_on_cpu.h\"\n"
                                 << source << "\nextern \"C\" void run(const void* parameter, const long* grid, long "
                                 << "threads) { run_grid(" << name << ", parameter, grid, threads); }\n";
    const std::string command = compiler + " -o " + stem + ".so " + stem + ".cpp";
    if (std::system(command.c_str()) != 0) throw std::runtime_error("does not compile: " + command);
    void* library = dlopen((stem + ".so").c_str(), RTLD_NOW | RTLD_LOCAL);
    void* run = library == nullptr ? nullptr : dlsym(library, "run");
    if (run == nullptr) throw std::runtime_error(dlerror());
    return run;
  }

  void launch(void* kernel, const equipot::GpuGrid& grid, int64_t threads, void* parameter) override {
    ++launches;
    if (!compiler.empty()) return reinterpret_cast<Run>(kernel)(parameter, grid.data(), threads);
    const std::string stem = *static_cast<std::string*>(kernel);
    std::ofstream(directory + "/launches.txt", std::ios::app)
        << stem.substr(stem.rfind('/') + 1) << ' ' << grid[0] << ' ' << grid[1] << ' ' << grid[2] << ' ' << threads << '\n';
  }

  void* stream() override { return nullptr; }
};

}  // namespace

// How many kernels have been started.
extern "C" int64_t launches(const Emulator* emulator) { return emulator->launches; }

// Sources (.cu) and libraries go to `directory`.
extern "C" equipot::GpuLauncher* emulator(const char* directory, const char* compiler) {
  Emulator* emulator = new Emulator;  // its kernels are known by its address
  emulator->directory = directory, emulator->compiler = compiler;
  return emulator;
}
