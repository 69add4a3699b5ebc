// The equivariant nonlinearity on rows of features, its gradient and the gradients of that; see equipot/nn/gate.py. No torch here.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "linear.h"

namespace equipot::inline EQUIPOT_INSTRUCTIONS {

// An irrep whose channels are each multiplied by a nonlinear scalar; offsets of its first element and first gate.
struct GatedBlock {
  int64_t components, channels, in_offset, out_offset, gate_offset;
};

// Rows in: even scalars, their gates, odd scalars, gated irreps. Rows out: the same without gates.
struct GateShape {
  int64_t num_even, num_gates, num_odd;
  double even_factor, odd_factor;
  std::vector<GatedBlock> gated;
  int64_t dim_in, dim_out;

  int64_t num_sigmoid() const { return num_even + num_gates; }
};

// The gate of what a linear map gives: even scalars with gates, odd scalars if there are any, then gated irreps.
// Throws std::runtime_error if they do not fit together.
inline GateShape make_gate(const LinearMap& map, int64_t num_even, int64_t num_odd, double even_factor,
                           double odd_factor) {
  GateShape gate{.num_even = num_even, .num_gates = 0, .num_odd = num_odd, .even_factor = even_factor,
                 .odd_factor = odd_factor, .gated = {}, .dim_in = map.dim_out, .dim_out = num_even + num_odd};
  for (size_t n = num_odd > 0 ? 2 : 1; n < map.blocks.size(); ++n) {
    const LinearBlock& b = map.blocks[n];
    gate.gated.push_back({b.components, b.channels_out, b.out_offset, gate.dim_out, gate.num_even + gate.num_gates});
    gate.num_gates += b.channels_out;
    gate.dim_out += b.components * b.channels_out;
  }
  if (map.blocks.empty() || map.blocks[0].channels_out != gate.num_sigmoid() ||
      map.dim_out != gate.dim_out + gate.num_gates)
    throw std::runtime_error("equipot: the map gives " + std::to_string(map.dim_out) +
                                " numbers, the gate needs " + std::to_string(gate.dim_out + gate.num_gates));
  return gate;
}

// Rows of one array, `dim` apart.
template <class T>
struct Rows {
  T* first;
  int64_t dim;
  T* operator[](int64_t n) const { return first + n * dim; }
};

// `sigmoid` of the even scalars and gates, `tanh` of the odd scalars of x.
template <class T>
void gate_rows(const GateShape& gate, int64_t rows, Rows<const T> x, Rows<const T> sigmoid, Rows<const T> tanh,
               Rows<T> y) {
  const T even_factor = T(gate.even_factor), odd_factor = T(gate.odd_factor);
  std::vector<T> scalars(size_t(gate.num_sigmoid()));
  for (int64_t n = 0; n < rows; ++n) {
    const T *in = x[n], *s = sigmoid[n];
    T* out = y[n];
    for (int64_t c = 0; c < gate.num_sigmoid(); ++c) scalars[c] = even_factor * in[c] * s[c];
    for (int64_t c = 0; c < gate.num_even; ++c) out[c] = scalars[c];
    for (int64_t c = 0; c < gate.num_odd; ++c) out[gate.num_even + c] = odd_factor * tanh[n][c];
    for (const GatedBlock& block : gate.gated)
      for (int64_t m = 0; m < block.components; ++m) {
        const T *from = in + block.in_offset + m * block.channels, *factor = scalars.data() + block.gate_offset;
        T* to = out + block.out_offset + m * block.channels;
        for (int64_t c = 0; c < block.channels; ++c) to[c] = from[c] * factor[c];
      }
  }
}

// The gradient by x, from that by y.
template <class T>
void gate_gradient_rows(const GateShape& gate, int64_t rows, Rows<const T> x, Rows<const T> sigmoid,
                        Rows<const T> tanh, Rows<const T> grad_y, Rows<T> grad_x) {
  const T even_factor = T(gate.even_factor), odd_factor = T(gate.odd_factor);
  std::vector<T> grad_scalars(size_t(gate.num_sigmoid())), scalars(size_t(gate.num_sigmoid()));
  for (int64_t n = 0; n < rows; ++n) {
    const T *in = x[n], *s = sigmoid[n], *grad_out = grad_y[n];
    T* grad_in = grad_x[n];
    for (int64_t c = 0; c < gate.num_sigmoid(); ++c) scalars[c] = even_factor * in[c] * s[c], grad_scalars[c] = 0;
    for (int64_t c = 0; c < gate.num_even; ++c) grad_scalars[c] = grad_out[c];
    for (const GatedBlock& block : gate.gated)
      for (int64_t m = 0; m < block.components; ++m) {
        const int64_t at_in = block.in_offset + m * block.channels, at_out = block.out_offset + m * block.channels;
        const T *from = in + at_in, *grad = grad_out + at_out, *factor = scalars.data() + block.gate_offset;
        T *to = grad_in + at_in, *sum = grad_scalars.data() + block.gate_offset;
        for (int64_t c = 0; c < block.channels; ++c) {
          to[c] = grad[c] * factor[c];
          sum[c] += grad[c] * from[c];
        }
      }
    for (int64_t c = 0; c < gate.num_sigmoid(); ++c)
      grad_in[c] = grad_scalars[c] * even_factor * s[c] * (1 + in[c] * (1 - s[c]));
    for (int64_t c = 0; c < gate.num_odd; ++c) {
      const T t = tanh[n][c];
      grad_in[gate.num_sigmoid() + c] = grad_out[gate.num_even + c] * odd_factor * (1 - t * t);
    }
  }
}

// The gradients of <cotangent, gradient by x> by x and by grad_y. `sigmoid` and `tanh` of x, as above.
template <class T>
void gate_second_rows(const GateShape& gate, int64_t rows, Rows<const T> x, Rows<const T> sigmoid, Rows<const T> tanh,
                      Rows<const T> grad_y, Rows<const T> cotangent, Rows<T> by_x, Rows<T> by_grad_y) {
  const T even_factor = T(gate.even_factor), odd_factor = T(gate.odd_factor);
  const auto size = size_t(gate.num_sigmoid());
  std::vector<T> scalars(size), slopes(size), along(size);  // along: how the scalars change along the cotangent
  std::vector<T> products(size), sums(size);
  for (int64_t n = 0; n < rows; ++n) {
    const T *in = x[n], *s = sigmoid[n], *grad_out = grad_y[n], *v = cotangent[n];
    T *to_x = by_x[n], *to_grad = by_grad_y[n];
    for (int64_t c = 0; c < gate.num_sigmoid(); ++c) {
      scalars[c] = even_factor * in[c] * s[c];
      slopes[c] = even_factor * s[c] * (1 + in[c] * (1 - s[c]));
      along[c] = slopes[c] * v[c];
      const T curvature = even_factor * s[c] * (1 - s[c]) * (2 + in[c] * (1 - 2 * s[c]));
      to_x[c] = curvature * v[c];  // times the gradient by the scalar
    }
    for (int64_t c = 0; c < gate.num_even; ++c) to_grad[c] = along[c], to_x[c] *= grad_out[c];
    for (int64_t c = 0; c < gate.num_odd; ++c) {
      const int64_t at_in = gate.num_sigmoid() + c, at_out = gate.num_even + c;
      const T t = tanh[n][c], slope = odd_factor * (1 - t * t);
      to_grad[at_out] = slope * v[at_in];
      to_x[at_in] = -2 * t * slope * grad_out[at_out] * v[at_in];
    }
    for (const GatedBlock& block : gate.gated) {
      const int64_t first = block.gate_offset;
      std::fill_n(products.begin(), block.channels, T(0)), std::fill_n(sums.begin(), block.channels, T(0));
      for (int64_t m = 0; m < block.components; ++m) {
        const int64_t at_in = block.in_offset + m * block.channels, at_out = block.out_offset + m * block.channels;
        for (int64_t c = 0; c < block.channels; ++c) {
          to_grad[at_out + c] = scalars[first + c] * v[at_in + c] + along[first + c] * in[at_in + c];
          to_x[at_in + c] = along[first + c] * grad_out[at_out + c];
          products[c] += grad_out[at_out + c] * in[at_in + c];
          sums[c] += grad_out[at_out + c] * v[at_in + c];
        }
      }
      for (int64_t c = 0; c < block.channels; ++c)
        to_x[first + c] = to_x[first + c] * products[c] + slopes[first + c] * sums[c];
    }
  }
}

}  // namespace equipot
