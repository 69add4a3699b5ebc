// What the operators compute, on a GPU. Each sum has a fixed order: the same arguments give the same bits.
#pragma once

#include "inputs.h"

namespace equipot {

// Whether the GPU kernels take this tensor; tests send them tensors on the CPU (gpu_launcher.h).
bool on_gpu(const at::Tensor& tensor);

at::Tensor center_gradient_gpu(const Inputs& in, int64_t dim_out);
Gradients neighbor_gradients_gpu(const Inputs& in, const Wanted& wanted);

// As in atom_product.cpp; arguments checked and contiguous.
at::Tensor atom_product_gpu(const at::Tensor& matrices, const at::Tensor& x, const at::Tensor& center, bool transposed);
at::Tensor atom_outer_sum_gpu(const at::Tensor& left, const at::Tensor& right, const at::Tensor& center,
                              int64_t num_atoms);

}  // namespace equipot
