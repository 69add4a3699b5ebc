// equipot::convolution as a torch operator with first and second derivatives; the mathematics is in form.h.
#include <ATen/Dispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "edges.h"
#include "form.h"
#include "plan.h"

namespace equipot {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// ---- on the CPU -------------------------------------------------------------------------------------------

// The operators' arguments, made contiguous. Undefined ones are those an operator does not have.
struct Inputs {
  Tensor x, sh, weights, edge_index, paths, coefficients;
  Tensor gradient, x_cotangent, sh_cotangent, weights_cotangent;

  int64_t num_atoms() const { return x.size(0); }
  int64_t num_edges() const { return edge_index.size(1); }
};

void check_inputs(const Inputs& in) {
  TORCH_CHECK(in.edge_index.dim() == 2 && in.edge_index.size(0) == 2 && in.edge_index.scalar_type() == at::kLong,
              "equipot::convolution: expected edge_index (2, E) int64, found ", in.edge_index.sizes(), " ",
              in.edge_index.scalar_type());
  TORCH_CHECK(in.x.dim() == 2 && in.sh.dim() == 2 && in.weights.dim() == 2 &&
                  in.sh.size(0) == in.num_edges() && in.weights.size(0) == in.num_edges(),
              "equipot::convolution: expected x (N, dim), sh (E, dim), weights (E, dim) with E = ", in.num_edges(),
              ", found ", in.x.sizes(), ", ", in.sh.sizes(), ", ", in.weights.sizes());
  for (const Tensor* other : {&in.sh, &in.weights, &in.gradient, &in.x_cotangent, &in.sh_cotangent,
                              &in.weights_cotangent})
    TORCH_CHECK(!other->defined() || other->scalar_type() == in.x.scalar_type(),
                "equipot::convolution: x, sh, weights and gradients must have one dtype, found ",
                in.x.scalar_type(), " and ", other->scalar_type());
}

Tensor contiguous(const Tensor& tensor) { return tensor.defined() ? tensor.contiguous() : tensor; }

Inputs prepare(const Inputs& in) {
  check_inputs(in);
  return {contiguous(in.x), contiguous(in.sh), contiguous(in.weights), contiguous(in.edge_index), in.paths,
          in.coefficients, contiguous(in.gradient), contiguous(in.x_cotangent), contiguous(in.sh_cotangent),
          contiguous(in.weights_cotangent)};
}

template <class T>
const T* data(const Tensor& tensor) {
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
  return arrays;
}

// dF/dg, or that of the mixed form if there are cotangents.
Tensor center_gradient(const Inputs& in, int64_t dim_out) {
  Tensor grad_g = at::zeros({in.num_atoms(), dim_out}, in.x.options());
  AT_DISPATCH_FLOATING_TYPES(in.x.scalar_type(), "equipot::convolution", [&] {
    const auto plan = make_plan<scalar_t>(in.paths, in.coefficients, in.x.size(1), in.sh.size(1), dim_out,
                                          in.weights.size(1));
    auto arrays = arrays_of<scalar_t>(in);
    arrays.grad_g = grad_g.mutable_data_ptr<scalar_t>();
    check_range(arrays.neighbor, in.num_edges(), in.num_atoms());
    const EdgeGroups groups = group_edges(arrays.center, in.num_edges(), in.num_atoms());
    for_edge_ranges(groups, [&](const int64_t* edges, int64_t count) { center_pass(plan, arrays, edges, count); });
  });
  return grad_g;
}

// dF/dx, dF/dY, dF/dw, or those of the mixed form if there are cotangents.
std::tuple<Tensor, Tensor, Tensor> neighbor_gradients(const Inputs& in) {
  Tensor grad_x = at::zeros_like(in.x), grad_sh = at::empty_like(in.sh), grad_w = at::empty_like(in.weights);
  AT_DISPATCH_FLOATING_TYPES(in.x.scalar_type(), "equipot::convolution", [&] {
    const auto plan = make_plan<scalar_t>(in.paths, in.coefficients, in.x.size(1), in.sh.size(1),
                                          in.gradient.size(1), in.weights.size(1));
    auto arrays = arrays_of<scalar_t>(in);
    arrays.grad_x = grad_x.mutable_data_ptr<scalar_t>();
    arrays.grad_sh = grad_sh.mutable_data_ptr<scalar_t>();
    arrays.grad_w = grad_w.mutable_data_ptr<scalar_t>();
    check_range(arrays.center, in.num_edges(), in.num_atoms());
    const EdgeGroups groups = group_edges(arrays.neighbor, in.num_edges(), in.num_atoms());
    for_edge_ranges(groups, [&](const int64_t* edges, int64_t count) { neighbor_pass(plan, arrays, edges, count); });
  });
  return {grad_x, grad_sh, grad_w};
}

Tensor convolution_cpu(const Tensor& x, const Tensor& sh, const Tensor& weights, const Tensor& edge_index,
                       const Tensor& paths, const Tensor& coefficients, int64_t dim_out) {
  return center_gradient(prepare({x, sh, weights, edge_index, paths, coefficients, {}, {}, {}, {}}), dim_out);
}

std::tuple<Tensor, Tensor, Tensor> backward_cpu(const Tensor& x, const Tensor& sh, const Tensor& weights,
                                                const Tensor& gradient, const Tensor& edge_index,
                                                const Tensor& paths, const Tensor& coefficients) {
  return neighbor_gradients(
      prepare({x, sh, weights, edge_index, paths, coefficients, gradient, {}, {}, {}}));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> double_backward_cpu(
    const Tensor& x, const Tensor& sh, const Tensor& weights, const Tensor& gradient, const Tensor& x_cotangent,
    const Tensor& sh_cotangent, const Tensor& weights_cotangent, const Tensor& edge_index, const Tensor& paths,
    const Tensor& coefficients) {
  const Inputs in = prepare({x, sh, weights, edge_index, paths, coefficients, gradient, x_cotangent,
                             sh_cotangent, weights_cotangent});
  const auto [grad_x, grad_sh, grad_w] = neighbor_gradients(in);
  return {grad_x, grad_sh, grad_w, center_gradient(in, gradient.size(1))};
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

TORCH_LIBRARY_IMPL(equipot, CPU, library) {
  library.impl("convolution", convolution_cpu);
  library.impl("convolution_backward", backward_cpu);
  library.impl("convolution_double_backward", double_backward_cpu);
}

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
