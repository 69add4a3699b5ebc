// equipot::atom_product and equipot::atom_outer_sum as torch operators with derivatives of every order; the
// mathematics is in atom_product.h.
#include <ATen/Dispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "atom_product.h"
#include "parallel.h"
#include "gpu_passes.h"

namespace equipot {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

void check_edges(const char* name, const Tensor& features, const Tensor& other, const Tensor& center) {
  TORCH_CHECK(features.dim() == 3 && center.dim() == 1 && center.scalar_type() == at::kLong &&
                  center.size(0) == features.size(0),
              name, ": expected features (E, rows, channels) and center (E) int64, found ", features.sizes(), ", ",
              center.sizes(), " ", center.scalar_type());
  TORCH_CHECK(other.scalar_type() == features.scalar_type(), name, ": expected one dtype, found ",
              features.scalar_type(), " and ", other.scalar_type());
  TORCH_CHECK(other.device() == features.device() && center.device() == features.device(), name,
              ": expected one device, found ", features.device(), ", ", other.device(), " and ", center.device());
}

// Calls work(atom, edges, count) for the edges of every atom, from several threads.
template <class F>
void for_atoms(const Tensor& center, int64_t num_atoms, bool share_atoms, const F& work) {
  const auto* center_of = center.const_data_ptr<int64_t>();
  const EdgeGroups groups = group_edges(center_of, center.size(0), num_atoms);
  const auto run = [&](const int64_t* edges, int64_t count, int64_t) {
    for (int64_t first = 0, last = 0; first < count; first = last) {
      const int64_t atom = center_of[edges[first]];
      while (last < count && center_of[edges[last]] == atom) ++last;
      work(atom, edges + first, last - first);
    }
  };
  for_edge_ranges(groups, run, share_atoms);
}

// (N, K, I, C) matrices, x (E, I, C) -> (E, K, C); transposed: x (E, K, C) -> (E, I, C).
Tensor product_compute(const Tensor& matrices_, const Tensor& x_, const Tensor& center_, bool transposed) {
  check_edges("equipot::atom_product", x_, matrices_, center_);
  TORCH_CHECK(matrices_.dim() == 4 && x_.size(1) == matrices_.size(transposed ? 1 : 2) &&
                  x_.size(2) == matrices_.size(3),
              "equipot::atom_product: matrices (N, rows, columns, channels) ", matrices_.sizes(),
              transposed ? " transposed" : "", " do not act on features ", x_.sizes());
  const Tensor matrices = matrices_.contiguous(), x = x_.contiguous(), center = center_.contiguous();
  if (on_gpu(x)) return atom_product_gpu(matrices, x, center, transposed);
  const int64_t channels = x.size(2), rows = matrices.size(1), columns = matrices.size(2);
  const MatrixShape shape = transposed ? MatrixShape{columns, rows, channels, columns * channels, channels}
                                       : MatrixShape{rows, columns, columns * channels, channels, channels};
  Tensor y = at::empty({x.size(0), shape.rows, channels}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "equipot::atom_product", [&] {
    const auto* a = matrices.const_data_ptr<scalar_t>();
    const auto* from = x.const_data_ptr<scalar_t>();
    auto* to = y.mutable_data_ptr<scalar_t>();
    for_atoms(center, matrices.size(0), true, [&](int64_t atom, const int64_t* edges, int64_t count) {
      atom_product(a + atom * rows * columns * channels, shape, from, to, edges, count);
    });
  });
  return y;
}

// left (E, K, C), right (E, I, C) -> (N, K, I, C)
Tensor outer_sum_compute(const Tensor& left_, const Tensor& right_, const Tensor& center_, int64_t num_atoms) {
  check_edges("equipot::atom_outer_sum", left_, right_, center_);
  TORCH_CHECK(right_.dim() == 3 && left_.size(0) == right_.size(0) && left_.size(2) == right_.size(2),
              "equipot::atom_outer_sum: expected features (E, rows, channels) of the same edges and channels, found ",
              left_.sizes(), " and ", right_.sizes());
  const Tensor left = left_.contiguous(), right = right_.contiguous(), center = center_.contiguous();
  if (on_gpu(left)) return atom_outer_sum_gpu(left, right, center, num_atoms);
  const int64_t rows = left.size(1), columns = right.size(1), channels = left.size(2);
  const MatrixShape shape{rows, columns, columns * channels, channels, channels};
  Tensor matrices = at::zeros({num_atoms, rows, columns, channels}, left.options());  // atoms without edges
  AT_DISPATCH_FLOATING_TYPES(left.scalar_type(), "equipot::atom_outer_sum", [&] {
    const auto* l = left.const_data_ptr<scalar_t>();
    const auto* r = right.const_data_ptr<scalar_t>();
    auto* to = matrices.mutable_data_ptr<scalar_t>();
    for_atoms(center, num_atoms, false, [&](int64_t atom, const int64_t* edges, int64_t count) {
      atom_outer_sum(to + atom * rows * columns * channels, shape, l, r, edges, count);
    });
  });
  return matrices;
}

void implement(torch::Library& library) {
  library.impl("atom_product", product_compute);
  library.impl("atom_outer_sum", outer_sum_compute);
}

Tensor product_meta(const Tensor& matrices, const Tensor& x, const Tensor&, bool transposed) {
  return at::empty_symint({x.sym_size(0), matrices.sym_size(transposed ? 2 : 1), x.sym_size(2)}, x.options());
}

Tensor outer_sum_meta(const Tensor& left, const Tensor& right, const Tensor&, c10::SymInt num_atoms) {
  return at::empty_symint({num_atoms, left.sym_size(1), right.sym_size(1), left.sym_size(2)}, left.options());
}

// ---- derivatives: calls of the same operators, so there are derivatives of every order ---------------------

Tensor call_product(const Tensor& matrices, const Tensor& x, const Tensor& center, bool transposed) {
  static const auto handle = c10::Dispatcher::singleton()
                                 .findSchemaOrThrow("equipot::atom_product", "")
                                 .typed<Tensor(const Tensor&, const Tensor&, const Tensor&, bool)>();
  return handle.call(matrices, x, center, transposed);
}

Tensor call_outer_sum(const Tensor& left, const Tensor& right, const Tensor& center, c10::SymInt num_atoms) {
  static const auto handle = c10::Dispatcher::singleton()
                                 .findSchemaOrThrow("equipot::atom_outer_sum", "")
                                 .typed<Tensor(const Tensor&, const Tensor&, const Tensor&, c10::SymInt)>();
  return handle.call(left, right, center, num_atoms);
}

struct ProductFunction : public Function<ProductFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& matrices, const Tensor& x, const Tensor& center,
                        bool transposed) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({matrices, x, center});
    context->saved_data["transposed"] = transposed;
    return call_product(matrices, x, center, transposed);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &matrices = saved[0], &x = saved[1], &center = saved[2], &g = gradients[0];
    const bool transposed = context->saved_data["transposed"].toBool();
    Tensor for_matrices, for_x;
    if (context->needs_input_grad(0))
      for_matrices = call_outer_sum(transposed ? x : g, transposed ? g : x, center, matrices.sym_size(0));
    if (context->needs_input_grad(1)) for_x = call_product(matrices, g, center, !transposed);
    return {for_matrices, for_x, Tensor(), Tensor()};
  }
};

struct OuterSumFunction : public Function<OuterSumFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& left, const Tensor& right, const Tensor& center,
                        c10::SymInt num_atoms) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({left, right, center});
    return call_outer_sum(left, right, center, std::move(num_atoms));
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    Tensor for_left, for_right;
    if (context->needs_input_grad(0)) for_left = call_product(gradients[0], saved[1], saved[2], false);
    if (context->needs_input_grad(1)) for_right = call_product(gradients[0], saved[0], saved[2], true);
    return {for_left, for_right, Tensor(), Tensor()};
  }
};

Tensor product_autograd(const Tensor& matrices, const Tensor& x, const Tensor& center, bool transposed) {
  return ProductFunction::apply(matrices, x, center, transposed);
}

Tensor outer_sum_autograd(const Tensor& left, const Tensor& right, const Tensor& center, c10::SymInt num_atoms) {
  return OuterSumFunction::apply(left, right, center, std::move(num_atoms));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(equipot, library) {
  library.def("atom_product(Tensor matrices, Tensor x, Tensor center, bool transposed=False) -> Tensor");
  library.def("atom_outer_sum(Tensor left, Tensor right, Tensor center, SymInt num_atoms) -> Tensor");
}

TORCH_LIBRARY_IMPL(equipot, CPU, library) { implement(library); }

TORCH_LIBRARY_IMPL(equipot, CUDA, library) { implement(library); }

TORCH_LIBRARY_IMPL(equipot, Meta, library) {
  library.impl("atom_product", product_meta);
  library.impl("atom_outer_sum", outer_sum_meta);
}

TORCH_LIBRARY_IMPL(equipot, Autograd, library) {
  library.impl("atom_product", product_autograd);
  library.impl("atom_outer_sum", outer_sum_autograd);
}

}  // namespace equipot
