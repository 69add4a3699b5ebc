// Preloaded by LAMMPS, it gives the engine beside the plugin an emulated GPU before the plugin asks for one.
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>

#include "gpu_launcher.h"

extern "C" equipot::GpuDevice* emulator(const char* directory, const char* compiler);

__attribute__((constructor)) static void set_device() {
  if (dlsym(RTLD_DEFAULT, "lammps_version") == nullptr) return;  // MPI's launcher, or a compiler
  const char *rank = std::getenv("EMULATOR_RANK"), *mine = std::getenv("PMI_RANK");
  if (rank != nullptr && mine != nullptr && std::strcmp(rank, mine) != 0) return;  // only that one has a GPU
  void* const engine = dlopen(std::getenv("EMULATOR_ENGINE"), RTLD_NOW | RTLD_LOCAL);
  const auto set = engine == nullptr ? nullptr : dlsym(engine, "equipot_set_gpu_device");
  if (set == nullptr) std::abort();
  reinterpret_cast<void (*)(equipot::GpuDevice*)>(set)(emulator(std::getenv("EMULATOR_FOLDER"), std::getenv("EMULATOR_COMPILER")));
}
