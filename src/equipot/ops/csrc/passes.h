// The two passes of form.h over torch tensors, where these are: on the CPU, or by gpu_passes.h on a GPU.
#pragma once

#include <ATen/Dispatch.h>
#include <torch/library.h>

#include "parallel.h"
#include "form.h"
#include "gpu_passes.h"
#include "inputs.h"
#include "tensor_plan.h"

namespace equipot {

template <class T>
const T* data(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

template <class T>
Arrays<T> arrays_of(const Inputs& in) {
  Arrays<T> arrays;
  arrays.x = data<T>(in.x), arrays.sh = data<T>(in.sh), arrays.w = data<T>(in.weights);
  arrays.g = data<T>(in.gradient);
  arrays.x_cotangent = data<T>(in.x_cotangent);
  arrays.sh_cotangent = data<T>(in.sh_cotangent);
  arrays.w_cotangent = data<T>(in.weights_cotangent);
  arrays.center = data<int64_t>(in.edge_index);
  arrays.neighbor = arrays.center + in.num_edges();
  arrays.length = data<T>(in.edge_length);
  arrays.length_cotangent = data<T>(in.length_cotangent);
  arrays.table_cotangent = data<T>(in.table_cotangent);
  if (in.table.defined()) arrays.table = {data<T>(in.table), in.table.size(0) - 5, T(in.cutoff)};
  return arrays;
}

// dF/dg, or that of the mixed form if there are cotangents.
inline at::Tensor center_gradient_cpu(const Inputs& in, int64_t dim_out) {
  at::Tensor grad_g = at::zeros({in.num_atoms(), dim_out}, in.x.options());
  AT_DISPATCH_FLOATING_TYPES(in.x.scalar_type(), "equipot::convolution", [&] {
    const auto plan = make_plan<scalar_t>(in.paths, in.coefficients, in.x.size(1), in.sh.size(1), dim_out,
                                          in.num_weights());
    auto arrays = arrays_of<scalar_t>(in);
    arrays.grad_g = grad_g.mutable_data_ptr<scalar_t>();
    check_range(arrays.neighbor, in.num_edges(), in.num_atoms());
    const EdgeGroups groups = group_edges(arrays.center, in.num_edges(), in.num_atoms());
    for_edge_ranges(groups, [&](const int64_t* edges, int64_t count, int64_t) {
      center_pass(plan, arrays, edges, count);
    });
  });
  return grad_g;
}

// dF/dx, dF/dY, dF/dw or dF/dlength, dF/dtable, or those of the mixed form if there are cotangents.
inline Gradients neighbor_gradients_cpu(const Inputs& in, const Wanted& wanted) {
  const bool tabulated = in.table.defined();
  Gradients grad{.x = at::zeros_like(in.x)};
  if (wanted.geometry) grad.sh = at::empty_like(in.sh);
  if (wanted.geometry || !tabulated) grad.radial = at::empty_like(in.radial());
  // A table for each thread: their sum depends on the number of threads, but not on which is faster.
  at::Tensor tables;
  if (wanted.table) tables = at::zeros({num_parts(in.num_edges()), in.table.size(0), in.table.size(1)}, in.x.options());
  AT_DISPATCH_FLOATING_TYPES(in.x.scalar_type(), "equipot::convolution", [&] {
    const auto plan = make_plan<scalar_t>(in.paths, in.coefficients, in.x.size(1), in.sh.size(1),
                                          in.gradient.size(1), in.num_weights());
    auto arrays = arrays_of<scalar_t>(in);
    const auto pointer = [](const at::Tensor& t) { return t.defined() ? t.mutable_data_ptr<scalar_t>() : nullptr; };
    arrays.grad_x = pointer(grad.x);
    arrays.grad_sh = pointer(grad.sh);
    (tabulated ? arrays.grad_length : arrays.grad_w) = pointer(grad.radial);
    check_range(arrays.center, in.num_edges(), in.num_atoms());
    const EdgeGroups groups = group_edges(arrays.neighbor, in.num_edges(), in.num_atoms());
    for_edge_ranges(groups, [&](const int64_t* edges, int64_t count, int64_t part) {
      auto own = arrays;
      if (tables.defined()) own.grad_table = pointer(tables) + part * in.table.numel();
      neighbor_pass(plan, own, edges, count);
    });
  });
  if (wanted.table) grad.table = tables.size(0) == 1 ? tables.squeeze(0) : tables.sum(0);
  return grad;
}

inline at::Tensor center_gradient(const Inputs& in, int64_t dim_out) {
  return on_gpu(in.x) ? center_gradient_gpu(in, dim_out) : center_gradient_cpu(in, dim_out);
}

inline Gradients neighbor_gradients(const Inputs& in, const Wanted& wanted) {
  return on_gpu(in.x) ? neighbor_gradients_gpu(in, wanted) : neighbor_gradients_cpu(in, wanted);
}

}  // namespace equipot
