// equipot::gate, with derivatives of every order: the first two by kernels, as a training on forces needs them, further ones by
// torch's own operators. The mathematics is in gate.h.
#include "gate.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "gpu_linear.h"
#include "gpu_passes.h"
#include "sigmoid.h"

namespace equipot {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

constexpr int64_t rows_at_once = 48;

// The arguments beside rows; `blocks` (B, 5) as of a linear map that nothing goes into and x comes out of.
struct Gate {
  Tensor blocks;
  int64_t num_even, num_odd;
  double even_factor, odd_factor;

  GateShape shape(const Tensor& x) const {
    TORCH_CHECK(x.dim() == 2, "equipot::gate: expected x (N, dim), found ", x.sizes());
    return make_gate(linear_map_of(blocks, 0, x.size(1), 0), num_even, num_odd, even_factor, odd_factor);
  }
};

void check_rows(const Tensor& x, const Tensor& rows, int64_t width) {
  TORCH_CHECK(rows.dim() == 2 && rows.size(0) == x.size(0) && rows.size(1) == width && rows.scalar_type() == x.scalar_type(),
              "equipot::gate: expected (", x.size(0), ", ", width, ") ", x.scalar_type(), ", found ", rows.sizes(), " ",
              rows.scalar_type());
}

template <class T>
Rows<const T> rows_of(const Tensor& t, int64_t first) {
  return {t.const_data_ptr<T>() + first * t.size(1), t.size(1)};
}

template <class T>
Rows<T> rows_to(const Tensor& t, int64_t first) {
  return {t.mutable_data_ptr<T>() + first * t.size(1), t.size(1)};
}

// Calls work(T(), first, count, sigmoid, tanh) for some rows of x at a time.
template <class F>
void for_rows(const GateShape& gate, const Tensor& x, const F& work) {
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "equipot::gate", [&] {
    at::parallel_for(0, x.size(0), rows_at_once, [&](int64_t begin, int64_t end) {
      const int64_t even = gate.num_sigmoid(), odd = gate.num_odd;
      std::vector<scalar_t> sigmoid(size_t(rows_at_once * even)), tanh(size_t(rows_at_once * odd));
      for (int64_t first = begin; first < end; first += rows_at_once) {
        const int64_t count = std::min(rows_at_once, end - first);
        const auto rows = rows_of<scalar_t>(x, first);
        for (int64_t n = 0; n < count; ++n) {
          sigmoids(rows[n], sigmoid.data() + n * even, even);
          if (odd > 0) tanhs(rows[n] + even, tanh.data() + n * odd, odd);
        }
        work(scalar_t(), first, count, Rows<const scalar_t>{sigmoid.data(), even}, Rows<const scalar_t>{tanh.data(), odd});
      }
    });
  });
}

Tensor value(const Tensor& x_, const Gate& given) {
  const Tensor x = x_.contiguous();
  const GateShape gate = given.shape(x);
  if (on_gpu(x)) return gate_gpu(gate, given.blocks, x);
  const Tensor out = at::empty({x.size(0), gate.dim_out}, x.options());
  for_rows(gate, x, [&](auto number, int64_t first, int64_t count, const auto& sigmoid, const auto& tanh) {
    using T = decltype(number);
    gate_rows<T>(gate, count, rows_of<T>(x, first), sigmoid, tanh, rows_to<T>(out, first));
  });
  return out;
}

Tensor gradient(const Tensor& x_, const Tensor& by_out_, const Gate& given) {
  const Tensor x = x_.contiguous(), by_out = by_out_.contiguous();
  const GateShape gate = given.shape(x);
  check_rows(x, by_out, gate.dim_out);
  if (on_gpu(x)) return gate_gradient_gpu(gate, given.blocks, x, by_out);
  const Tensor by_x = at::empty_like(x);
  for_rows(gate, x, [&](auto number, int64_t first, int64_t count, const auto& sigmoid, const auto& tanh) {
    using T = decltype(number);
    gate_gradient_rows<T>(gate, count, rows_of<T>(x, first), sigmoid, tanh, rows_of<T>(by_out, first), rows_to<T>(by_x, first));
  });
  return by_x;
}

std::tuple<Tensor, Tensor> second(const Tensor& x_, const Tensor& by_out_, const Tensor& cotangent_, const Gate& given) {
  const Tensor x = x_.contiguous(), by_out = by_out_.contiguous(), cotangent = cotangent_.contiguous();
  const GateShape gate = given.shape(x);
  check_rows(x, by_out, gate.dim_out), check_rows(x, cotangent, gate.dim_in);
  if (on_gpu(x)) return gate_second_gpu(gate, given.blocks, x, by_out, cotangent);
  const Tensor by_x = at::empty_like(x), by_by_out = at::empty_like(by_out);
  for_rows(gate, x, [&](auto number, int64_t first, int64_t count, const auto& sigmoid, const auto& tanh) {
    using T = decltype(number);
    gate_second_rows<T>(gate, count, rows_of<T>(x, first), sigmoid, tanh, rows_of<T>(by_out, first), rows_of<T>(cotangent, first),
                        rows_to<T>(by_x, first), rows_to<T>(by_by_out, first));
  });
  return {by_x, by_by_out};
}

// ---- by torch's operators -------------------------------------------------------------------------------------

Tensor plain_value(const Tensor& x, const Gate& given) {
  const GateShape gate = given.shape(x);
  const Tensor scalars = at::silu(x.narrow(1, 0, gate.num_sigmoid())) * gate.even_factor;
  std::vector<Tensor> parts{scalars.narrow(1, 0, gate.num_even),
                            at::tanh(x.narrow(1, gate.num_sigmoid(), gate.num_odd)) * gate.odd_factor};
  for (const GatedBlock& b : gate.gated) {
    const Tensor block = x.narrow(1, b.in_offset, b.components * b.channels).reshape({-1, b.components, b.channels});
    parts.push_back((block * scalars.narrow(1, b.gate_offset, b.channels).unsqueeze(1)).flatten(1));
  }
  return at::cat(parts, 1);
}

// As `second`, with derivatives.
variable_list plain_second(const Tensor& x, const Tensor& by_out, const Tensor& cotangent, const Gate& given) {
  const auto here = [](const Tensor& t) { return t.requires_grad() ? t.view_as(t) : t.detach().requires_grad_(); };
  const Tensor from = here(x), along = here(by_out);
  const Tensor by_x = torch::autograd::grad({plain_value(from, given)}, {from}, {along}, true, true)[0];
  return torch::autograd::grad({by_x}, {from, along}, {cotangent}, true, true);
}

// ---- the operators --------------------------------------------------------------------------------------------

#define GATE const Tensor &blocks, int64_t num_even, int64_t num_odd, double even_factor, double odd_factor
#define GIVEN blocks, num_even, num_odd, even_factor, odd_factor

Tensor gate_compute(const Tensor& x, GATE) { return value(x, {GIVEN}); }

Tensor gradient_compute(const Tensor& x, const Tensor& by_out, GATE) { return gradient(x, by_out, {GIVEN}); }

Tensor call_gate(const Tensor& x, const Gate& g) {
  static const auto handle = c10::Dispatcher::singleton().findSchemaOrThrow("equipot::gate", "").typed<decltype(gate_compute)>();
  return handle.call(x, g.blocks, g.num_even, g.num_odd, g.even_factor, g.odd_factor);
}

Tensor call_gradient(const Tensor& x, const Tensor& by_out, const Gate& g) {
  static const auto handle =
      c10::Dispatcher::singleton().findSchemaOrThrow("equipot::gate_gradient", "").typed<decltype(gradient_compute)>();
  return handle.call(x, by_out, g.blocks, g.num_even, g.num_odd, g.even_factor, g.odd_factor);
}

void keep(AutogradContext* context, const Gate& g) {
  context->saved_data["sizes"] = std::vector<int64_t>{g.num_even, g.num_odd};
  context->saved_data["factors"] = std::vector<double>{g.even_factor, g.odd_factor};
}

Gate kept(AutogradContext* context, const Tensor& blocks) {
  const auto sizes = context->saved_data["sizes"].toIntVector();
  const auto factors = context->saved_data["factors"].toDoubleVector();
  return {blocks, sizes[0], sizes[1], factors[0], factors[1]};
}

struct GateFunction : public Function<GateFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& x, GATE) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({x, blocks});
    keep(context, {GIVEN});
    return call_gate(x, {GIVEN});
  }
  static variable_list backward(AutogradContext* context, const variable_list& by_out) {
    const auto saved = context->get_saved_variables();
    return {call_gradient(saved[0], by_out[0], kept(context, saved[1])), {}, {}, {}, {}, {}};
  }
};

struct GradientFunction : public Function<GradientFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& by_out, GATE) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({x, by_out, blocks});
    keep(context, {GIVEN});
    return call_gradient(x, by_out, {GIVEN});
  }
  static variable_list backward(AutogradContext* context, const variable_list& cotangent) {
    const auto saved = context->get_saved_variables();
    const Gate given = kept(context, saved[2]);
    if (at::GradMode::is_enabled()) {
      const auto found = plain_second(saved[0], saved[1], cotangent[0], given);
      return {found[0], found[1], {}, {}, {}, {}, {}};
    }
    const auto [by_x, by_by_out] = second(saved[0], saved[1], cotangent[0], given);
    return {by_x, by_by_out, {}, {}, {}, {}, {}};
  }
};

Tensor gate_autograd(const Tensor& x, GATE) { return GateFunction::apply(x, GIVEN); }

Tensor gradient_autograd(const Tensor& x, const Tensor& by_out, GATE) { return GradientFunction::apply(x, by_out, GIVEN); }

}  // namespace

TORCH_LIBRARY_FRAGMENT(equipot, library) {
  library.def("gate(Tensor x, Tensor blocks, int num_even, int num_odd, float even_factor, float odd_factor) -> Tensor");
  library.def(
      "gate_gradient(Tensor x, Tensor by_out, Tensor blocks, int num_even, int num_odd, float even_factor, "
      "float odd_factor) -> Tensor");
}

TORCH_LIBRARY_IMPL(equipot, CPU, library) {
  library.impl("gate", gate_compute);
  library.impl("gate_gradient", gradient_compute);
}

TORCH_LIBRARY_IMPL(equipot, CUDA, library) {
  library.impl("gate", gate_compute);
  library.impl("gate_gradient", gradient_compute);
}

TORCH_LIBRARY_IMPL(equipot, Autograd, library) {
  library.impl("gate", gate_autograd);
  library.impl("gate_gradient", gradient_autograd);
}

}  // namespace equipot
