// Functions of the distance, and perceptrons: dense layers with SiLU between them, no biases.
#pragma once

#include <cmath>
#include <vector>

#include "linear.h"
#include "sigmoid.h"
#include "step.h"

namespace equipot::inline EQUIPOT_INSTRUCTIONS {

// u(x) = 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2), and du/dx; 0 from x = 1 on.
template <class T>
inline void polynomial_cutoff(int p, T x, T& value, T& slope) {
  if (!(x < T(1))) {
    value = slope = 0;
    return;
  }
  T below = 1;  // x^(p-1)
  for (int k = 1; k < p; ++k) below *= x;
  const T a = T(0.5) * (p + 1) * (p + 2), b = T(p) * (p + 2), c = T(0.5) * p * (p + 1);
  value = 1 + below * x * (-a + x * (b - x * c));
  slope = below * (-a * p + x * (b * (p + 1) - x * (c * (p + 2))));
}

// u(x) = (1 - x^2)^2 (1 + 2 x^2 - 3 s^2) / (1 - s^2)^3 from x = s on, 1 below, and du/dx; 0 from x = 1 on.
template <class T>
inline void xplor_cutoff(T start, T x, T& value, T& slope) {
  value = x < start, slope = 0;
  if (x < start || !(x < T(1))) return;
  const T x2 = x * x, s2 = start * start, left = 1 - x2, scale = 1 / ((1 - s2) * (1 - s2) * (1 - s2));
  value = left * left * (1 + 2 * x2 - 3 * s2) * scale;
  slope = 12 * x * left * (s2 - x2) * scale;
}

// B_n(r) = factor sin(f_n x) u(x) / x, x = r / cutoff.
template <class T>
struct Bessel {
  std::vector<T> frequencies;
  T cutoff = 0, factor = 0, start = 0;
  int power = 0;  // of the polynomial envelope; 0: X-PLOR's

  Bessel() = default;
  Bessel(const Reader& reader, const Json& json)
      : frequencies(reader.program.values<T>(json["frequencies"].text)), cutoff(T(json["cutoff"].number)),
        factor(T(json["factor"].number)) {
    if (json.has("start")) start = T(json["start"].number);
    else power = int(reader.integer(json, "power", 2, 64));
    if (!(cutoff > 0) || frequencies.empty() || !(start >= 0 && start < 1))
      throw std::runtime_error("a radial basis is damaged");
  }

  void envelope(T x, T& value, T& slope) const {
    if (power > 0) polynomial_cutoff(power, x, value, slope);
    else xplor_cutoff(start, x, value, slope);
  }

  int64_t size() const { return int64_t(frequencies.size()); }

  // (count) distances -> (count, size).
  void forward(const T* length, int64_t count, T* to) const {
    for (int64_t e = 0; e < count; ++e, to += size()) {
      const T x = length[e] / cutoff;
      T u, slope;
      envelope(x, u, slope);
      const T scale = factor * u / x;
      for (int64_t n = 0; n < size(); ++n) to[n] = u == 0 ? T(0) : std::sin(frequencies[n] * x) * scale;
    }
  }

  // grad_length += what follows from grad (count, size).
  void backward(const T* length, int64_t count, const T* grad, T* grad_length) const {
    for (int64_t e = 0; e < count; ++e, grad += size()) {
      const T x = length[e] / cutoff;
      T u, slope;
      envelope(x, u, slope);
      if (u == 0) continue;
      const T scale = factor * u / x, scale_slope = factor * (slope - u / x) / x;
      T sum = 0;
      for (int64_t n = 0; n < size(); ++n) {
        const T at = frequencies[n] * x;
        sum += grad[n] * (frequencies[n] * std::cos(at) * scale + std::sin(at) * scale_slope);
      }
      grad_length[e] += sum / cutoff;
    }
  }
};

// One factor of a product of matrices and rows: y (rows, out) += x (rows, in) w (in, out).
template <class T>
void multiply(int64_t rows, const T* x, int64_t x_row, int64_t in, const T* w, int64_t out, T* y, int64_t y_row) {
  add_product<T>({.rows = rows, .depth = in, .columns = out, .a = x, .a_row = x_row, .a_step = 1, .b = w, .b_row = out,
                  .c = y, .c_row = y_row});
}

template <class T>
struct Perceptron {
  struct Layer {
    int64_t in = 0, out = 0;
    std::vector<T> weights, transposed;
  };
  std::vector<Layer> layers;

  Perceptron() = default;
  Perceptron(const Reader& reader, const Json& names) {
    for (const Json& name : names.items) {
      const auto found = reader.program.weights.find(name.text);
      if (found == reader.program.weights.end() || found->second.shape.size() != 2)
        throw std::runtime_error("the weights '" + name.text + "' must be a matrix");
      Layer layer{found->second.shape[0], found->second.shape[1], reader.program.values<T>(name.text), {}};
      if (!layers.empty() && layers.back().out != layer.in)
        throw std::runtime_error("the weights '" + name.text + "' do not follow the layer before");
      layer.transposed.resize(layer.weights.size());
      for (int64_t i = 0; i < layer.in; ++i)
        for (int64_t o = 0; o < layer.out; ++o) layer.transposed[o * layer.in + i] = layer.weights[i * layer.out + o];
      layers.push_back(std::move(layer));
    }
    if (layers.empty()) throw std::runtime_error("a perceptron has no layers");
  }

  int64_t num_in() const { return layers.front().in; }
  int64_t num_out() const { return layers.back().out; }

  // From what the first layer gives, before SiLU, on: `hidden` holds (rows, out) of each layer but the last.
  void forward_from_first(int64_t rows, const std::vector<T*>& hidden, T* out, std::vector<T>& scratch) const {
    for (size_t k = 1; k < layers.size(); ++k) {
      const Layer& layer = layers[k];
      T* to = k + 1 == layers.size() ? out : hidden[k];
      scratch.resize(size_t(rows * layer.in));
      silus(hidden[k - 1], scratch.data(), rows * layer.in);
      std::fill_n(to, rows * layer.out, T(0));
      multiply(rows, scratch.data(), layer.in, layer.in, layer.weights.data(), layer.out, to, layer.out);
    }
  }

  // From the gradient (rows, num_out) to that by what the first layer gives, which comes to lie in `scratch` or is
  // `grad` itself.
  const T* backward_to_first(int64_t rows, const std::vector<T*>& hidden, const T* grad, std::vector<T>& scratch,
                             std::vector<T>& other) const {
    for (size_t k = layers.size() - 1; k > 0; --k) {
      const Layer& layer = layers[k];
      other.assign(size_t(rows * layer.in), T(0));
      multiply(rows, grad, layer.out, layer.out, layer.transposed.data(), layer.in, other.data(), layer.in);
      multiply_by_silu_slopes(hidden[k - 1], other.data(), rows * layer.in);
      std::swap(scratch, other);
      grad = scratch.data();
    }
    return grad;
  }
};

}  // namespace equipot
