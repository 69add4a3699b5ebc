// What the operators compute, on a GPU. Each sum has a fixed order: the same arguments give the same bits.
#pragma once

#include <tuple>

#include "gate.h"
#include "inputs.h"

namespace equipot {

// Whether the GPU kernels take this tensor; tests send them tensors on the CPU (gpu_torch.h).
bool on_gpu(const at::Tensor& tensor);

at::Tensor center_gradient_gpu(const Inputs& in, int64_t dim_out);
Gradients neighbor_gradients_gpu(const Inputs& in, const Wanted& wanted);

// As in atom_product.cpp; arguments checked and contiguous.
at::Tensor atom_product_gpu(const at::Tensor& matrices, const at::Tensor& x, const at::Tensor& center, bool transposed);
at::Tensor atom_outer_sum_gpu(const at::Tensor& left, const at::Tensor& right, const at::Tensor& center,
                              int64_t num_atoms);

// As in segment_sum.cpp; values (E, columns) contiguous. Edges of a graph are grouped once for all sums and passes.
at::Tensor segment_sum_gpu(const at::Tensor& values, const at::Tensor& index, int64_t row, int64_t num_segments);

// The gate on rows x (N, dim_in), contiguous; `blocks` is the tensor that its shape follows from.
at::Tensor gate_gpu(const GateShape& gate, const at::Tensor& blocks, const at::Tensor& x);
// Its gradient by x, from that by its result.
at::Tensor gate_gradient_gpu(const GateShape& gate, const at::Tensor& blocks, const at::Tensor& x,
                             const at::Tensor& gradient);
// The gradients by x and by `gradient` of <cotangent, that>.
std::tuple<at::Tensor, at::Tensor> gate_second_gpu(const GateShape& gate, const at::Tensor& blocks, const at::Tensor& x,
                                                   const at::Tensor& gradient, const at::Tensor& cotangent);

}  // namespace equipot
