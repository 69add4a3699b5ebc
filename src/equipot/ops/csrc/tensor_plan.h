// From the operator's `paths` and `coefficients` tensors to a Plan.
#pragma once

#include <torch/library.h>

#include "plan.h"

namespace equipot {

template <class T>
Plan<T> make_plan(const at::Tensor& paths, const at::Tensor& coefficients, int64_t dim_in, int64_t dim_sh,
                  int64_t dim_out, int64_t num_weights) {
  TORCH_CHECK(paths.dim() == 2 && paths.size(1) == 9 && paths.scalar_type() == at::kLong && paths.is_cpu(),
              "equipot::convolution: expected paths (P, 9) int64 on the CPU, found ", paths.sizes());
  TORCH_CHECK(coefficients.dim() == 1 && coefficients.is_cpu(),
              "equipot::convolution: expected flat coefficients on the CPU, found ", coefficients.sizes());
  const at::Tensor table = paths.contiguous();
  const at::Tensor values = coefficients.to(at::kDouble).contiguous();
  // Zeros of the coefficients carry round-off, of single precision if the module was ever converted to it.
  const double tolerance = coefficients.scalar_type() == at::kDouble ? 1e-13 : 1e-6;
  return make_plan<T>(reinterpret_cast<const PathRow*>(table.const_data_ptr<int64_t>()), table.size(0),
                      values.const_data_ptr<double>(), values.numel(), tolerance, dim_in, dim_sh, dim_out, num_weights);
}

}  // namespace equipot
