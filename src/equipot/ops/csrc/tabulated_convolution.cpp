// equipot::tabulated_convolution: the convolution with weights read from a table of the distance, and its first and
// second derivatives, by the table too; the mathematics is in form.h.
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

Tensor tabulated_compute(const Tensor& x, const Tensor& sh, const Tensor& edge_length, const Tensor& table,
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

// The arguments that all derivatives keep.
struct Saved {
  static void save(AutogradContext* context, variable_list tensors, double cutoff) {
    context->save_for_backward(std::move(tensors));
    context->saved_data["cutoff"] = cutoff;
    context->set_materialize_grads(false);
  }

  static Inputs load(AutogradContext* context) {
    return inputs(context->get_saved_variables(), context->saved_data["cutoff"].toDouble());
  }

  static Inputs inputs(const variable_list& saved, double cutoff) {
    Inputs in{.x = saved[0], .sh = saved[1], .edge_length = saved[2], .table = saved[3], .edge_index = saved[4],
              .paths = saved[5], .coefficients = saved[6], .cutoff = cutoff};
    if (saved.size() > 7) in.gradient = saved[7];
    return in;
  }
};

struct TabulatedBackward : public Function<TabulatedBackward> {
  static variable_list forward(AutogradContext* context, const Tensor& x, const Tensor& sh, const Tensor& edge_length,
                               const Tensor& table, const Tensor& gradient, const Tensor& edge_index,
                               const Tensor& paths, const Tensor& coefficients, double cutoff, bool want_geometry,
                               bool want_table) {
    const variable_list tensors{x, sh, edge_length, table, edge_index, paths, coefficients, gradient};
    Saved::save(context, tensors, cutoff);
    const Inputs in = prepare(Saved::inputs(tensors, cutoff));
    const Gradients grad = neighbor_gradients(in, {want_geometry, want_table});
    // An output may not be undefined.
    const auto defined = [&](const Tensor& t) { return t.defined() ? t : at::empty({0}, in.x.options()); };
    return {grad.x, defined(grad.sh), defined(grad.radial), defined(grad.table)};
  }

  static variable_list backward(AutogradContext* context, const variable_list& cotangents) {
    TORCH_CHECK_NOT_IMPLEMENTED(!at::GradMode::is_enabled(),
                                "equipot::tabulated_convolution has first and second derivatives, not third ones. Set "
                                "EQUIPOT_KERNELS=off to differentiate further.");
    Inputs in = Saved::load(context);
    in.x_cotangent = cotangents[0].defined() ? cotangents[0] : at::zeros_like(in.x);
    in.sh_cotangent = cotangents[1].defined() ? cotangents[1] : at::zeros_like(in.sh);
    in.length_cotangent = cotangents[2];
    in.table_cotangent = cotangents[3];
    in = prepare(in);
    const bool geometry = context->needs_input_grad(1) || context->needs_input_grad(2);
    const Gradients grad = neighbor_gradients(in, {geometry, context->needs_input_grad(3)});
    Tensor for_gradient;
    if (context->needs_input_grad(4)) for_gradient = center_gradient(in, in.gradient.size(1));
    return {grad.x, grad.sh, grad.radial, grad.table, for_gradient, {}, {}, {}, {}, {}, {}};
  }
};

struct TabulatedFunction : public Function<TabulatedFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& sh, const Tensor& edge_length,
                        const Tensor& table, const Tensor& edge_index, const Tensor& paths,
                        const Tensor& coefficients, double cutoff, int64_t dim_out) {
    static const auto handle =
        c10::Dispatcher::singleton().findSchemaOrThrow("equipot::tabulated_convolution", "").typed<Signature>();
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    Saved::save(context, {x, sh, edge_length, table, edge_index, paths, coefficients}, cutoff);
    return handle.call(x, sh, edge_length, table, edge_index, paths, coefficients, cutoff, dim_out);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    if (!gradients[0].defined()) return variable_list(9);
    const Inputs in = Saved::load(context);
    const bool geometry = context->needs_input_grad(1) || context->needs_input_grad(2);
    const bool table = context->needs_input_grad(3);
    const auto grad = TabulatedBackward::apply(in.x, in.sh, in.edge_length, in.table, gradients[0], in.edge_index,
                                               in.paths, in.coefficients, in.cutoff, geometry, table);
    return {grad[0], geometry ? grad[1] : Tensor(), geometry ? grad[2] : Tensor(), table ? grad[3] : Tensor(),
            {}, {}, {}, {}, {}};
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

TORCH_LIBRARY_IMPL(equipot, CPU, library) { library.impl("tabulated_convolution", tabulated_compute); }

TORCH_LIBRARY_IMPL(equipot, CUDA, library) { library.impl("tabulated_convolution", tabulated_compute); }

TORCH_LIBRARY_IMPL(equipot, Meta, library) { library.impl("tabulated_convolution", tabulated_meta); }

TORCH_LIBRARY_IMPL(equipot, Autograd, library) { library.impl("tabulated_convolution", tabulated_autograd); }

}  // namespace equipot
