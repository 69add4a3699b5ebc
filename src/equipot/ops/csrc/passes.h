// The two passes of form.h over torch tensors, on the CPU.
#pragma once

#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <tuple>

#include "edges.h"
#include "form.h"
#include "plan.h"

namespace equipot {

// The operators' arguments. Undefined ones are those an operator does not have: it has either `weights`, or
// `edge_length`, `table` and `cutoff`.
struct Inputs {
  at::Tensor x, sh, weights, edge_length, table, edge_index, paths, coefficients;
  at::Tensor gradient, x_cotangent, sh_cotangent, weights_cotangent, length_cotangent, table_cotangent;
  double cutoff = 0;

  int64_t num_atoms() const { return x.size(0); }
  int64_t num_edges() const { return edge_index.size(1); }
  // What there is one row of for each edge: the weights themselves, or the distance that they follow from.
  const at::Tensor& radial() const { return table.defined() ? edge_length : weights; }
  int64_t num_weights() const { return table.defined() ? table.size(1) : weights.size(1); }
};

inline void check_inputs(const Inputs& in) {
  TORCH_CHECK(in.edge_index.dim() == 2 && in.edge_index.size(0) == 2 && in.edge_index.scalar_type() == at::kLong,
              "equipot::convolution: expected edge_index (2, E) int64, found ", in.edge_index.sizes(), " ",
              in.edge_index.scalar_type());
  TORCH_CHECK(in.x.dim() == 2 && in.sh.dim() == 2 && in.radial().dim() == 2 &&
                  in.sh.size(0) == in.num_edges() && in.radial().size(0) == in.num_edges(),
              "equipot::convolution: expected x (N, dim), sh (E, dim), weights (E, dim) with E = ", in.num_edges(),
              ", found ", in.x.sizes(), ", ", in.sh.sizes(), ", ", in.radial().sizes());
  TORCH_CHECK(!in.table.defined() || (in.table.dim() == 2 && in.table.size(0) > 5 && in.radial().size(1) == 1),
              "equipot::convolution: expected edge_length (E, 1) and table (intervals + 5, dim), found ",
              in.radial().sizes(), " and ", in.table.defined() ? in.table.sizes() : at::IntArrayRef{});
  for (const at::Tensor* other : {&in.sh, &in.weights, &in.edge_length, &in.table, &in.gradient, &in.x_cotangent,
                                  &in.sh_cotangent, &in.weights_cotangent, &in.length_cotangent,
                                  &in.table_cotangent})
    TORCH_CHECK(!other->defined() || other->scalar_type() == in.x.scalar_type(),
                "equipot::convolution: x, sh, weights and gradients must have one dtype, found ",
                in.x.scalar_type(), " and ", other->scalar_type());
}

// Checked and made contiguous.
inline Inputs prepare(Inputs in) {
  check_inputs(in);
  for (at::Tensor* tensor : {&in.x, &in.sh, &in.weights, &in.edge_length, &in.table, &in.edge_index, &in.gradient,
                             &in.x_cotangent, &in.sh_cotangent, &in.weights_cotangent, &in.length_cotangent,
                             &in.table_cotangent})
    if (tensor->defined()) *tensor = tensor->contiguous();
  return in;
}

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
inline at::Tensor center_gradient(const Inputs& in, int64_t dim_out) {
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

// Which gradients of neighbor_gradients are wanted; the others come undefined.
struct Wanted {
  bool geometry = true;  // by sh, and with a table by length
  bool table = false;
};

struct Gradients {
  at::Tensor x, sh, radial;  // radial: by the weights, or with a table by length
  at::Tensor table;
};

// dF/dx, dF/dY, dF/dw or dF/dlength, dF/dtable, or those of the mixed form if there are cotangents.
inline Gradients neighbor_gradients(const Inputs& in, const Wanted& wanted) {
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

}  // namespace equipot
