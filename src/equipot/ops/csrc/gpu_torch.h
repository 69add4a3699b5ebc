// The GPU that torch's tensors are on, as gpu_launcher.h wants it.
#pragma once

#include "gpu_launcher.h"

namespace equipot {

// NVIDIA's driver on torch's current device and stream, or what tests have set. Throws an error that says what is missing.
GpuLauncher& gpu_launcher();

// Whether tests have set another launcher; then tensors on the CPU go to it too.
bool gpu_is_emulated();

}  // namespace equipot
