// equipot::tabulated_convolution: the convolution with weights read from a table of the distance; the mathematics
// is in form.h. It is for inference: a first derivative, by all but the table.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "passes.h"

namespace equipot {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

Tensor tabulated_cpu(const Tensor& x, const Tensor& sh, const Tensor& edge_length, const Tensor& table,
                     const Tensor& edge_index, const Tensor& paths, const Tensor& coefficients, double cutoff,
                     int64_t dim_out) {
  return center_gradient(prepare({.x = x, .sh = sh, .edge_length = edge_length, .table = table,
                                  .edge_index = edge_index, .paths = paths, .coefficients = coefficients,
                                  .cutoff = cutoff}),
                         dim_out);
}

Tensor tabulated_meta(const Tensor& x, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                      const Tensor&, double, int64_t dim_out) {
  return at::empty_symint({x.sym_size(0), c10::SymInt(dim_out)}, x.options());
}

using Signature = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                         const Tensor&, double, int64_t);

struct TabulatedFunction : public Function<TabulatedFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& sh, const Tensor& edge_length,
                        const Tensor& table, const Tensor& edge_index, const Tensor& paths,
                        const Tensor& coefficients, double cutoff, int64_t dim_out) {
    static const auto handle =
        c10::Dispatcher::singleton().findSchemaOrThrow("equipot::tabulated_convolution", "").typed<Signature>();
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    TORCH_CHECK_NOT_IMPLEMENTED(!table.requires_grad(), "equipot::tabulated_convolution has no derivative by its "
                                                        "table. Train the network that the table was made from.");
    context->save_for_backward({x, sh, edge_length, table, edge_index, paths, coefficients});
    context->saved_data["cutoff"] = cutoff;
    return handle.call(x, sh, edge_length, table, edge_index, paths, coefficients, cutoff, dim_out);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    TORCH_CHECK_NOT_IMPLEMENTED(!at::GradMode::is_enabled(),
                                "equipot::tabulated_convolution has a first derivative only, for inference. Deploy "
                                "the model without tables to differentiate forces.");
    const auto saved = context->get_saved_variables();
    const auto [x, sh, length] = neighbor_gradients(
        prepare({.x = saved[0], .sh = saved[1], .edge_length = saved[2], .table = saved[3], .edge_index = saved[4],
                 .paths = saved[5], .coefficients = saved[6], .gradient = gradients[0],
                 .cutoff = context->saved_data["cutoff"].toDouble()}));
    return {x, sh, length, Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

Tensor tabulated_autograd(const Tensor& x, const Tensor& sh, const Tensor& edge_length, const Tensor& table,
                          const Tensor& edge_index, const Tensor& paths, const Tensor& coefficients, double cutoff,
                          int64_t dim_out) {
  return TabulatedFunction::apply(x, sh, edge_length, table, edge_index, paths, coefficients, cutoff, dim_out);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(equipot, library) {
  library.def(
      "tabulated_convolution(Tensor x, Tensor sh, Tensor edge_length, Tensor table, Tensor edge_index, Tensor paths, "
      "Tensor coefficients, float cutoff, int dim_out) -> Tensor");
}

TORCH_LIBRARY_IMPL(equipot, CPU, library) { library.impl("tabulated_convolution", tabulated_cpu); }

TORCH_LIBRARY_IMPL(equipot, Meta, library) { library.impl("tabulated_convolution", tabulated_meta); }

TORCH_LIBRARY_IMPL(equipot, Autograd, library) { library.impl("tabulated_convolution", tabulated_autograd); }

}  // namespace equipot
