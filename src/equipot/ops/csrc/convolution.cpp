// equipot::convolution as a torch operator with first and second derivatives; the mathematics is in form.h.
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

// ---- on the CPU or a GPU -----------------------------------------------------------------------------------

Tensor convolution_compute(const Tensor& x, const Tensor& sh, const Tensor& weights, const Tensor& edge_index,
                       const Tensor& paths, const Tensor& coefficients, int64_t dim_out) {
  return center_gradient(prepare({.x = x, .sh = sh, .weights = weights, .edge_index = edge_index, .paths = paths,
                                  .coefficients = coefficients}),
                         dim_out);
}

std::tuple<Tensor, Tensor, Tensor> backward_compute(const Tensor& x, const Tensor& sh, const Tensor& weights,
                                                const Tensor& gradient, const Tensor& edge_index,
                                                const Tensor& paths, const Tensor& coefficients) {
  const Inputs in = prepare({.x = x, .sh = sh, .weights = weights, .edge_index = edge_index, .paths = paths,
                             .coefficients = coefficients, .gradient = gradient});
  const Gradients grad = neighbor_gradients(in, {});
  return {grad.x, grad.sh, grad.radial};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> double_backward_compute(
    const Tensor& x, const Tensor& sh, const Tensor& weights, const Tensor& gradient, const Tensor& x_cotangent,
    const Tensor& sh_cotangent, const Tensor& weights_cotangent, const Tensor& edge_index, const Tensor& paths,
    const Tensor& coefficients) {
  const Inputs in = prepare({.x = x, .sh = sh, .weights = weights, .edge_index = edge_index, .paths = paths,
                             .coefficients = coefficients, .gradient = gradient, .x_cotangent = x_cotangent,
                             .sh_cotangent = sh_cotangent, .weights_cotangent = weights_cotangent});
  const Gradients grad = neighbor_gradients(in, {});
  return {grad.x, grad.sh, grad.radial, center_gradient(in, gradient.size(1))};
}

void implement(torch::Library& library) {
  library.impl("convolution", convolution_compute);
  library.impl("convolution_backward", backward_compute);
  library.impl("convolution_double_backward", double_backward_compute);
}

// ---- shapes alone, for torch.compile and torch.export ------------------------------------------------------

Tensor convolution_meta(const Tensor& x, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                        int64_t dim_out) {
  return at::empty_symint({x.sym_size(0), c10::SymInt(dim_out)}, x.options());
}

std::tuple<Tensor, Tensor, Tensor> backward_meta(const Tensor& x, const Tensor& sh, const Tensor& weights,
                                                 const Tensor&, const Tensor&, const Tensor&, const Tensor&) {
  return {at::empty_like(x), at::empty_like(sh), at::empty_like(weights)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> double_backward_meta(const Tensor& x, const Tensor& sh,
                                                                const Tensor& weights, const Tensor& gradient,
                                                                const Tensor&, const Tensor&, const Tensor&,
                                                                const Tensor&, const Tensor&, const Tensor&) {
  return {at::empty_like(x), at::empty_like(sh), at::empty_like(weights), at::empty_like(gradient)};
}

// ---- derivatives: each operator's is the next one ----------------------------------------------------------

using Convolution = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                           int64_t);
using Backward = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                    const Tensor&, const Tensor&, const Tensor&);
using DoubleBackward = std::tuple<Tensor, Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                                                  const Tensor&, const Tensor&, const Tensor&,
                                                                  const Tensor&, const Tensor&, const Tensor&,
                                                                  const Tensor&);

template <class Signature>
c10::TypedOperatorHandle<Signature> find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

template <class... Arguments>
Tensor call_convolution(Arguments&&... arguments) {
  static const auto handle = find_operator<Convolution>("equipot::convolution");
  return handle.call(arguments...);
}

template <class... Arguments>
std::tuple<Tensor, Tensor, Tensor> call_backward(Arguments&&... arguments) {
  static const auto handle = find_operator<Backward>("equipot::convolution_backward");
  return handle.call(arguments...);
}

template <class... Arguments>
std::tuple<Tensor, Tensor, Tensor, Tensor> call_double_backward(Arguments&&... arguments) {
  static const auto handle = find_operator<DoubleBackward>("equipot::convolution_double_backward");
  return handle.call(arguments...);
}

struct DoubleBackwardFunction : public Function<DoubleBackwardFunction> {
  static variable_list forward(AutogradContext*, const Tensor& x, const Tensor& sh, const Tensor& weights,
                               const Tensor& gradient, const Tensor& x_cotangent, const Tensor& sh_cotangent,
                               const Tensor& weights_cotangent, const Tensor& edge_index, const Tensor& paths,
                               const Tensor& coefficients) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto [a, b, c, d] = call_double_backward(x, sh, weights, gradient, x_cotangent, sh_cotangent,
                                                   weights_cotangent, edge_index, paths, coefficients);
    return {a, b, c, d};
  }

  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, "equipot::convolution has first and second derivatives, not third ones. "
                                       "Set EQUIPOT_KERNELS=off to differentiate the reference further.");
    return {};
  }
};

struct BackwardFunction : public Function<BackwardFunction> {
  static variable_list forward(AutogradContext* context, const Tensor& x, const Tensor& sh, const Tensor& weights,
                               const Tensor& gradient, const Tensor& edge_index, const Tensor& paths,
                               const Tensor& coefficients) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({x, sh, weights, gradient, edge_index, paths, coefficients});
    const auto [a, b, c] = call_backward(x, sh, weights, gradient, edge_index, paths, coefficients);
    return {a, b, c};
  }

  static variable_list backward(AutogradContext* context, const variable_list& cotangents) {
    const auto saved = context->get_saved_variables();
    const auto [x, sh, weights, gradient] =
        call_double_backward(saved[0], saved[1], saved[2], saved[3], cotangents[0], cotangents[1], cotangents[2],
                             saved[4], saved[5], saved[6]);
    return {x, sh, weights, gradient, Tensor(), Tensor(), Tensor()};
  }
};

struct ConvolutionFunction : public Function<ConvolutionFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& sh, const Tensor& weights,
                        const Tensor& edge_index, const Tensor& paths, const Tensor& coefficients,
                        int64_t dim_out) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({x, sh, weights, edge_index, paths, coefficients});
    return call_convolution(x, sh, weights, edge_index, paths, coefficients, dim_out);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const auto [x, sh, weights] =
        call_backward(saved[0], saved[1], saved[2], gradients[0], saved[3], saved[4], saved[5]);
    return {x, sh, weights, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

Tensor convolution_autograd(const Tensor& x, const Tensor& sh, const Tensor& weights, const Tensor& edge_index,
                            const Tensor& paths, const Tensor& coefficients, int64_t dim_out) {
  return ConvolutionFunction::apply(x, sh, weights, edge_index, paths, coefficients, dim_out);
}

std::tuple<Tensor, Tensor, Tensor> backward_autograd(const Tensor& x, const Tensor& sh, const Tensor& weights,
                                                     const Tensor& gradient, const Tensor& edge_index,
                                                     const Tensor& paths, const Tensor& coefficients) {
  const auto out = BackwardFunction::apply(x, sh, weights, gradient, edge_index, paths, coefficients);
  return {out[0], out[1], out[2]};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> double_backward_autograd(
    const Tensor& x, const Tensor& sh, const Tensor& weights, const Tensor& gradient, const Tensor& x_cotangent,
    const Tensor& sh_cotangent, const Tensor& weights_cotangent, const Tensor& edge_index, const Tensor& paths,
    const Tensor& coefficients) {
  const auto out = DoubleBackwardFunction::apply(x, sh, weights, gradient, x_cotangent, sh_cotangent,
                                                 weights_cotangent, edge_index, paths, coefficients);
  return {out[0], out[1], out[2], out[3]};
}

}  // namespace

// A fragment, so that other libraries may add operators to the same namespace.
TORCH_LIBRARY_FRAGMENT(equipot, library) {
  library.def(
      "convolution(Tensor x, Tensor sh, Tensor weights, Tensor edge_index, Tensor paths, Tensor coefficients, "
      "int dim_out) -> Tensor");
  library.def(
      "convolution_backward(Tensor x, Tensor sh, Tensor weights, Tensor gradient, Tensor edge_index, "
      "Tensor paths, Tensor coefficients) -> (Tensor, Tensor, Tensor)");
  library.def(
      "convolution_double_backward(Tensor x, Tensor sh, Tensor weights, Tensor gradient, Tensor x_cotangent, "
      "Tensor sh_cotangent, Tensor weights_cotangent, Tensor edge_index, Tensor paths, Tensor coefficients) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(equipot, CPU, library) { implement(library); }

TORCH_LIBRARY_IMPL(equipot, CUDA, library) { implement(library); }

TORCH_LIBRARY_IMPL(equipot, Meta, library) {
  library.impl("convolution", convolution_meta);
  library.impl("convolution_backward", backward_meta);
  library.impl("convolution_double_backward", double_backward_meta);
}

TORCH_LIBRARY_IMPL(equipot, Autograd, library) {
  library.impl("convolution", convolution_autograd);
  library.impl("convolution_backward", backward_autograd);
  library.impl("convolution_double_backward", double_backward_autograd);
}

}  // namespace equipot
