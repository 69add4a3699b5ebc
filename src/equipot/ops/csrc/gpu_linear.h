// Linear maps of rows on a GPU, by the matrix products of torch; see linear.h. Nothing here waits for the GPU, but for
// the numbers of atoms of each species: once for a tensor of types that `know_types` has not been told of.
#pragma once

#include <torch/library.h>

#include "linear.h"

namespace equipot {

// As make_linear_map, from the operators' `blocks` (B, 5) on any device; on a GPU they are fetched once.
LinearMap linear_map_of(const at::Tensor& blocks, int64_t dim_in, int64_t dim_out, int64_t num_weights);

// Says of types on a GPU what they are, before linear_gpu has to ask.
void know_types(const at::Tensor& types, const at::Tensor& types_on_host, int64_t num_species);

// y += map(x), or for `fresh` y = map(x); x (N, dim_in), y (N, dim_out) with contiguous rows, weights (W).
void add_linear_gpu(const LinearMap& map, const at::Tensor& weights, const at::Tensor& x, const at::Tensor& y,
                    bool fresh);

// The same by the transposed map: x (N, dim_out), y (N, dim_in).
void add_transposed_linear_gpu(const LinearMap& map, const at::Tensor& weights, const at::Tensor& x,
                               const at::Tensor& y, bool fresh);

// As linear_compute and outer_sum_compute of linear.cpp; arguments checked and contiguous. `map` is that of the
// weights, from x to y, or if `transpose` from y to x.
at::Tensor linear_gpu(const LinearMap& map, const at::Tensor& x, const at::Tensor& weights, const at::Tensor& types,
                      bool transpose);
at::Tensor linear_outer_sum_gpu(const LinearMap& map, const at::Tensor& x, const at::Tensor& g, const at::Tensor& types,
                                int64_t num_species);

}  // namespace equipot
