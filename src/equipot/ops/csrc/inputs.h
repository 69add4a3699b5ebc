// The arguments of the convolution's operators, checked, and what is computed from them.
#pragma once

#include <torch/library.h>

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
                                  &in.table_cotangent}) {
    if (!other->defined()) continue;
    TORCH_CHECK(other->scalar_type() == in.x.scalar_type(),
                "equipot::convolution: x, sh, weights and gradients must have one dtype, found ",
                in.x.scalar_type(), " and ", other->scalar_type());
    TORCH_CHECK(other->device() == in.x.device() && in.edge_index.device() == in.x.device(),
                "equipot::convolution: x, sh, weights, gradients and edges must be on one device, found ",
                in.x.device(), ", ", other->device(), " and ", in.edge_index.device());
  }
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

// Which gradients of neighbor_gradients are wanted; the others come undefined.
struct Wanted {
  bool geometry = true;  // by sh, and with a table by length
  bool table = false;
};

struct Gradients {
  at::Tensor x, sh, radial;  // radial: by the weights, or with a table by length
  at::Tensor table;
};

}  // namespace equipot
