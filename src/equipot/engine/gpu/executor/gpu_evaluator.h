// Evaluates the program of a model on a GPU.
#pragma once

#include <memory>

#include "evaluator.h"
#include "gpu_launcher.h"

namespace equipot {

// Of a program in which make_evaluator has found nothing wrong. Throws std::runtime_error, naming it, for what runs on a CPU
// only.
std::unique_ptr<Evaluator> make_gpu_evaluator(const Program& program, std::shared_ptr<GpuDevice> device);

// "cuda", "cuda:1": NVIDIA's driver, or what tests have set. Throws std::runtime_error that says what is missing, and
// std::invalid_argument for another name.
std::shared_ptr<GpuDevice> open_gpu(const std::string& name);

// How many there are. Throws std::runtime_error that says what is missing.
int count_gpus();

}  // namespace equipot
