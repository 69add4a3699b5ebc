// The steps of Allegro: arrays with a row for each edge, products with what belongs to the center, sums over edges.
//
// A strictly local model is evaluated a few atoms at a time, so its arrays are small and each step runs in one thread.
#pragma once

#include "atom_product.h"
#include "form.h"
#include "perceptron.h"
#include "plan.h"
#include "step.h"

namespace equipot::inline EQUIPOT_INSTRUCTIONS {

// Functions of the distance: a Bessel basis (E, size), or the polynomial cutoff alone (E, 1).
template <class T>
struct BesselStep : Step<T> {
  Bessel<T> basis;

  BesselStep(const Reader& reader, const Json& json) : basis(reader, json["basis"]) {}

  Shape shape(const std::vector<Shape>& in) const override { return {false, in.empty() ? basis.size() : 0}; }

  void forward(Context<T>& c) const override {
    basis.forward(c.length, c.num_edges, c.put(this->output, c.make(c.num_edges, basis.size())).data());
  }

  void backward(Context<T>& c) const override {
    basis.backward(c.length, c.num_edges, c.grads[this->output].data(), c.grad_length);
  }
};

template <class T>
struct Envelope : Step<T> {
  T cutoff;
  int power;

  Envelope(const Reader& reader, const Json& json)
      : cutoff(T(json["cutoff"].number)), power(int(reader.integer(json, "power", 2, 64))) {
    if (!(cutoff > 0)) throw std::runtime_error("an envelope ends at no distance");
  }

  Shape shape(const std::vector<Shape>& in) const override { return {false, in.empty()}; }

  void forward(Context<T>& c) const override {
    T* u = c.put(this->output, c.make(c.num_edges, 1)).data();
    T slope;
    for (int64_t e = 0; e < c.num_edges; ++e) polynomial_cutoff(power, c.length[e] / cutoff, u[e], slope);
  }

  void backward(Context<T>& c) const override {
    const T* grad = c.grads[this->output].data();
    for (int64_t e = 0; e < c.num_edges; ++e) {
      T u, slope;
      polynomial_cutoff(power, c.length[e] / cutoff, u, slope);
      c.grad_length[e] += grad[e] * slope / cutoff;
    }
  }
};

// A perceptron of the first numbers of several arrays side by side, and perhaps of the types of both atoms before them;
// by_pair: of one array, the first layer with matrices of its own for each pair of types, one below the other.
template <class T>
struct EdgePerceptron : Step<T> {
  Perceptron<T> network;
  std::vector<int64_t> widths;  // taken of each input
  int64_t num_types = 0;  // 0: without types
  int64_t pair_types = 0;  // 0: not by pair

  EdgePerceptron(const Reader& reader, const Json& json, int64_t types)
      : network(reader, json["layers"]), widths(json["widths"].numbers<int64_t>()) {
    if (json["types"].number != 0) num_types = types;
    int64_t wanted = 2 * num_types;
    for (const int64_t width : widths) wanted += width;
    if (json.has("by_pair")) {
      pair_types = types;
      if (num_types > 0 || widths.size() != 1) throw std::runtime_error("a perceptron by pairs has one input");
      wanted *= types * types;
    }
    if (wanted != network.num_in() || widths.size() != json["inputs"].items.size())
      throw std::runtime_error("a perceptron of " + std::to_string(network.num_in()) + " numbers is given " +
                               std::to_string(wanted));
  }

  Shape shape(const std::vector<Shape>& in) const override {
    bool fits = in.size() == widths.size();
    for (size_t n = 0; fits && n < in.size(); ++n) fits = !in[n].of_atoms && 0 < widths[n] && widths[n] <= in[n].width;
    return {false, fits ? network.num_out() : 0};
  }

  void forward(Context<T>& c) const override {
    std::vector<Array<T>>& kept = c.kept[this->number];
    std::vector<T*> hidden;
    Array<T> out;
    for (const auto& layer : network.layers) {
      Array<T> to = c.make(c.num_edges, layer.out);
      hidden.push_back(to.data());
      if (&layer == &network.layers.back()) out = std::move(to);
      else kept.push_back(std::move(to));
    }
    const auto& first = network.layers[0];
    const T* weights = first.weights.data();
    std::fill_n(hidden[0], c.num_edges * first.out, T(0));
    if (num_types > 0) {
      for (int64_t e = 0; e < c.num_edges; ++e) {
        const T* of_center = weights + c.types[c.center[e]] * first.out;
        const T* of_neighbor = weights + (num_types + c.neighbor_type[e]) * first.out;
        for (int64_t k = 0; k < first.out; ++k) hidden[0][e * first.out + k] = of_center[k] + of_neighbor[k];
      }
      weights += 2 * num_types * first.out;
    }
    for (int64_t e = 0; pair_types > 0 && e < c.num_edges; ++e) {
      const T *x = c.values[this->inputs[0]][e], *w = weights + first_of_pair(c, e) * first.out;
      T* to = hidden[0] + e * first.out;
      for (int64_t k = 0; k < widths[0]; ++k)
        for (int64_t o = 0; o < first.out; ++o) to[o] += x[k] * w[k * first.out + o];
    }
    for (size_t n = 0; pair_types == 0 && n < widths.size(); ++n) {
      const Array<T>& x = c.values[this->inputs[n]];
      multiply(c.num_edges, x.data(), x.width, widths[n], weights, first.out, hidden[0], first.out);
      weights += widths[n] * first.out;
    }
    std::vector<T> scratch;
    network.forward_from_first(c.num_edges, hidden, hidden.back(), scratch);
    c.put(this->output, std::move(out));
  }

  // The row of the first layer with which the matrix of an edge's pair begins.
  int64_t first_of_pair(const Context<T>& c, int64_t e) const {
    return (c.types[c.center[e]] * pair_types + c.neighbor_type[e]) * widths[0];
  }

  void backward(Context<T>& c) const override {
    std::vector<T*> hidden;
    for (const Array<T>& one : c.kept[this->number]) hidden.push_back(one.data());
    std::vector<T> scratch, other;
    const T* grad = network.backward_to_first(c.num_edges, hidden, c.grads[this->output].data(), scratch, other);
    const auto& first = network.layers[0];
    int64_t column = 2 * num_types;
    for (int64_t e = 0; pair_types > 0 && e < c.num_edges; ++e) {
      const T *g = grad + e * first.out, *w = first.weights.data() + first_of_pair(c, e) * first.out;
      T* to = c.grad(this->inputs[0])[e];
      for (int64_t k = 0; k < widths[0]; ++k)
        for (int64_t o = 0; o < first.out; ++o) to[k] += g[o] * w[k * first.out + o];
    }
    for (size_t n = 0; pair_types == 0 && n < widths.size(); ++n) {
      const Array<T>& to = c.grad(this->inputs[n]);
      add_product<T>({.rows = c.num_edges, .depth = first.out, .columns = widths[n], .a = grad, .a_row = first.out,
                      .a_step = 1, .b = first.transposed.data() + column, .b_row = first.in, .c = to.data(),
                      .c_row = to.width});
      column += widths[n];
    }
  }
};

// y = factor (a x + u z): x, z (E, width), u (E, 1); without x: y = factor u z.
template <class T>
struct Blend : Step<T> {
  T factor;
  bool has_x;

  Blend(const Reader&, const Json& json) : factor(T(json["factor"].number)), has_x(json["inputs"].items.size() == 3) {}

  Shape shape(const std::vector<Shape>& in) const override {
    bool fits = (in.size() == 2 || in.size() == 3) && in[0].width == 1 && in.back().width == in[1].width;
    for (const Shape& one : in) fits = fits && !one.of_atoms;
    return {false, fits ? in[1].width : 0};
  }
  std::vector<int> read_back() const override { return {this->inputs[0], this->inputs[1]}; }

  void forward(Context<T>& c) const override {
    const Array<T>&u = c.values[this->inputs[0]], &z = c.values[this->inputs[1]];
    const Array<T>& y = c.put(this->output, c.make(c.num_edges, z.width));
    for (int64_t e = 0; e < c.num_edges; ++e) {
      const T scale = factor * *u[e];
      for (int64_t k = 0; k < z.width; ++k) y[e][k] = scale * z[e][k];
      if (has_x)
        for (int64_t k = 0; k < z.width; ++k) y[e][k] += factor * c.values[this->inputs[2]][e][k];
    }
  }

  void backward(Context<T>& c) const override {
    const Array<T>&u = c.values[this->inputs[0]], &z = c.values[this->inputs[1]], &grad = c.grads[this->output];
    const Array<T>&for_u = c.grad(this->inputs[0]), &for_z = c.grad(this->inputs[1]);
    for (int64_t e = 0; e < c.num_edges; ++e) {
      const T scale = factor * *u[e];
      T sum = 0;
      for (int64_t k = 0; k < z.width; ++k) {
        sum += grad[e][k] * z[e][k];
        for_z[e][k] += scale * grad[e][k];
      }
      *for_u[e] += factor * sum;
    }
    if (!has_x) return;
    const Array<T>& for_x = c.grad(this->inputs[2]);
    for (int64_t n = 0; n < grad.size(); ++n) for_x.data()[n] += factor * grad.data()[n];
  }
};

// V[e, j, :] = w[e, l(j), :] Y_j: harmonics times a weight for each degree and channel.
template <class T>
struct WeightedHarmonics : Step<T> {
  int64_t channels, degrees, dim_sh;

  WeightedHarmonics(const Reader& reader, const Json& json, int64_t harmonics)
      : channels(reader.integer(json, "channels", 1)), degrees(reader.integer(json, "degrees", 1, 16)),
        dim_sh(harmonics) {}

  Shape shape(const std::vector<Shape>& in) const override {
    const bool fits = in.size() == 1 && !in[0].of_atoms && in[0].width == degrees * channels && degrees * degrees <= dim_sh;
    return {false, fits ? degrees * degrees * channels : 0};
  }
  std::vector<int> read_back() const override { return {this->inputs[0]}; }

  void forward(Context<T>& c) const override {
    const Array<T>& w = c.values[this->inputs[0]];
    const Array<T>& to = c.put(this->output, c.make(c.num_edges, degrees * degrees * channels));
    each(c, [&](int64_t e, int64_t l, int64_t j, T y) {
      for (int64_t k = 0; k < channels; ++k) to[e][j * channels + k] = w[e][l * channels + k] * y;
    });
  }

  void backward(Context<T>& c) const override {
    const Array<T>&w = c.values[this->inputs[0]], &grad = c.grads[this->output], &for_w = c.grad(this->inputs[0]);
    each(c, [&](int64_t e, int64_t l, int64_t j, T y) {
      T sum = 0;
      const T *from = grad[e] + j * channels, *of = w[e] + l * channels;
      T* to = for_w[e] + l * channels;
      for (int64_t k = 0; k < channels; ++k) {
        to[k] += from[k] * y;
        sum += from[k] * of[k];
      }
      c.grad_sh[e * c.dim_sh + j] += sum;
    });
  }

  template <class F>
  void each(const Context<T>& c, const F& work) const {
    for (int64_t e = 0; e < c.num_edges; ++e)
      for (int64_t l = 0; l < degrees; ++l)
        for (int64_t j = l * l; j < (l + 1) * (l + 1); ++j) work(e, l, j, c.sh[e * c.dim_sh + j]);
  }
};

// Sum over the edges of each atom of harmonics times weights: the convolution in which every neighbor sends ones.
template <class T>
struct Environment : Step<T> {
  Plan<T> plan;

  Environment(const Reader& reader, const Json& json, int64_t dim_sh) {
    const auto rows = json["paths"].numbers<int64_t>();
    const auto coefficients = reader.program.values<double>(json["coefficients"].text);
    if (rows.size() % 9 != 0) throw std::runtime_error("the paths of an environment are damaged");
    plan = make_plan<T>(reinterpret_cast<const PathRow*>(rows.data()), int64_t(rows.size() / 9), coefficients.data(),
                        int64_t(coefficients.size()), 1e-6, reader.integer(json, "channels", 1), dim_sh,
                        reader.integer(json, "dim_out", 1), reader.integer(json, "num_weights", 1));
  }

  Shape shape(const std::vector<Shape>& in) const override {
    return {true, in.size() == 1 && !in[0].of_atoms && in[0].width == plan.num_weights ? plan.dim_out : 0};
  }
  std::vector<int> read_back() const override { return {this->inputs[0]}; }

  void forward(Context<T>& c) const override {
    const Array<T>& to = c.put(this->output, c.make(c.num_computed, plan.dim_out));
    std::fill_n(to.data(), to.size(), T(0));
    run(c, [&](Arrays<T>& arrays, const int64_t* edges) {
      arrays.grad_g = to.data();
      center_pass(plan, arrays, edges, c.num_edges);
    });
  }

  void backward(Context<T>& c) const override {
    std::vector<T> for_ones(size_t(plan.dim_in));
    const Array<T>& for_w = c.grad(this->inputs[0]);
    Array<T> own = c.make(for_w.rows, for_w.width);
    run(c, [&](Arrays<T>& arrays, const int64_t* edges) {
      arrays.g = c.grads[this->output].data(), arrays.grad_x = for_ones.data(), arrays.grad_w = own.data();
      arrays.grad_sh = c.grad_sh, arrays.add_geometry = true;
      neighbor_pass(plan, arrays, edges, c.num_edges);
    });
    for (int64_t n = 0; n < own.size(); ++n) for_w.data()[n] += own.data()[n];
    c.release(own);
  }

  template <class F>
  void run(const Context<T>& c, const F& pass) const {
    const std::vector<T> ones(size_t(plan.dim_in), T(1));
    std::vector<int64_t> edges(size_t(c.num_edges)), sender(size_t(c.num_edges), 0);
    std::iota(edges.begin(), edges.end(), 0);
    Arrays<T> arrays;
    arrays.x = ones.data(), arrays.sh = c.sh, arrays.w = c.values[this->inputs[0]].data();
    arrays.center = c.center, arrays.neighbor = sender.data();
    pass(arrays, edges.data());
  }
};

// Allegro's tensor product: tensors (E, I, C) of the edges, environment (N, J, C) of their centers -> (E, K, C).
template <class T>
struct EdgeProduct : Step<T> {
  std::vector<T> coupling;  // (K I, J, C)
  int64_t rows, columns, environment_rows, channels;

  EdgeProduct(const Reader& reader, const Json& json)
      : rows(reader.integer(json, "rows", 1, 256)), columns(reader.integer(json, "columns", 1, 256)),
        environment_rows(reader.integer(json, "environment_rows", 1, 256)), channels(reader.integer(json, "channels", 1)) {
    coupling = reader.program.values<T>(json["weights"].text, rows * columns * environment_rows * channels);
  }

  MatrixShape couplings() const {
    return {rows * columns, environment_rows, environment_rows * channels, channels, channels};
  }
  MatrixShape couplings_back() const {
    return {environment_rows, rows * columns, channels, environment_rows * channels, channels};
  }
  MatrixShape matrix() const { return {rows, columns, columns * channels, channels, channels}; }
  MatrixShape matrix_back() const { return {columns, rows, channels, columns * channels, channels}; }

  Shape shape(const std::vector<Shape>& in) const override {
    const bool fits = in.size() == 2 && !in[0].of_atoms && in[1].of_atoms && in[0].width == columns * channels &&
                      in[1].width == environment_rows * channels;
    return {false, fits ? rows * channels : 0};
  }
  std::vector<int> read_back() const override { return {this->inputs[0]}; }

  void forward(Context<T>& c) const override {
    const Array<T>&tensors = c.values[this->inputs[0]], &environment = c.values[this->inputs[1]];
    Array<T> matrices = c.make(c.num_computed, rows * columns * channels);
    const std::vector<int64_t> all = counting(std::max(c.num_edges, c.num_computed));
    atom_product(coupling.data(), couplings(), environment.data(), matrices.data(), all.data(), c.num_computed);
    const Array<T>& to = c.put(this->output, c.make(c.num_edges, rows * channels));
    for (int64_t i = 0; i < c.num_computed; ++i)
      atom_product(matrices[i], matrix(), tensors.data(), to.data(), all.data() + c.first_edge[i],
                   c.first_edge[i + 1] - c.first_edge[i]);
    c.kept[this->number].push_back(std::move(matrices));
  }

  void backward(Context<T>& c) const override {
    const Array<T>&tensors = c.values[this->inputs[0]], &grad = c.grads[this->output];
    const Array<T>& matrices = c.kept[this->number][0];
    Array<T> own = c.make(c.num_edges, columns * channels);
    Array<T> for_matrices = c.make(c.num_computed, rows * columns * channels);
    const std::vector<int64_t> all = counting(std::max(c.num_edges, c.num_computed));
    for (int64_t i = 0; i < c.num_computed; ++i) {
      const int64_t* edges = all.data() + c.first_edge[i];
      const int64_t count = c.first_edge[i + 1] - c.first_edge[i];
      atom_product(matrices[i], matrix_back(), grad.data(), own.data(), edges, count);
      atom_outer_sum(for_matrices[i], matrix(), grad.data(), tensors.data(), edges, count);
    }
    const Array<T>& for_tensors = c.grad(this->inputs[0]);
    for (int64_t n = 0; n < own.size(); ++n) for_tensors.data()[n] += own.data()[n];
    const Array<T>& for_environment = c.grad(this->inputs[1]);  // which has no other use
    atom_product(coupling.data(), couplings_back(), for_matrices.data(), for_environment.data(), all.data(),
                 c.num_computed);
    c.release(own), c.release(for_matrices);
  }

  static std::vector<int64_t> counting(int64_t count) {
    std::vector<int64_t> numbers(static_cast<size_t>(count));
    std::iota(numbers.begin(), numbers.end(), 0);
    return numbers;
  }
};

// y[i, j, :] = factor sum_e w[e, b(j), :] V[e, j, :]: tensors of an atom's edges, each irrep and channel with a weight, summed.
template <class T>
struct WeightedSum : Step<T> {
  std::vector<int64_t> blocks;  // b, of each component
  int64_t channels, num_blocks = 0;
  T factor;

  WeightedSum(const Reader& reader, const Json& json)
      : blocks(json["blocks"].numbers<int64_t>()), channels(reader.integer(json, "channels", 1)),
        factor(T(json["factor"].number)) {
    for (const int64_t block : blocks) {
      if (block < 0 || block > 255) throw std::runtime_error("the irreps of a weighted sum are damaged");
      num_blocks = std::max(num_blocks, block + 1);
    }
  }

  Shape shape(const std::vector<Shape>& in) const override {
    const auto dim = int64_t(blocks.size()) * channels;
    const bool fits = in.size() == 2 && !in[0].of_atoms && !in[1].of_atoms && in[0].width == num_blocks * channels &&
                      in[1].width == dim;
    return {true, fits ? dim : 0};
  }
  std::vector<int> read_back() const override { return this->inputs; }

  void forward(Context<T>& c) const override {
    const Array<T>&w = c.values[this->inputs[0]], &x = c.values[this->inputs[1]];
    const Array<T>& to = c.put(this->output, c.make(c.num_computed, x.width));
    std::fill_n(to.data(), to.size(), T(0));
    each(c, [&](int64_t e, int64_t in, int64_t at) {
      for (int64_t k = 0; k < channels; ++k) to[c.center[e]][at + k] += w[e][in + k] * x[e][at + k];
    });
    for (int64_t n = 0; n < to.size(); ++n) to.data()[n] *= factor;
  }

  void backward(Context<T>& c) const override {
    const Array<T>&w = c.values[this->inputs[0]], &x = c.values[this->inputs[1]], &grad = c.grads[this->output];
    const Array<T>&for_w = c.grad(this->inputs[0]), &for_x = c.grad(this->inputs[1]);
    each(c, [&](int64_t e, int64_t in, int64_t at) {
      for (int64_t k = 0; k < channels; ++k) {
        const T g = factor * grad[c.center[e]][at + k];
        for_w[e][in + k] += g * x[e][at + k];
        for_x[e][at + k] += g * w[e][in + k];
      }
    });
  }

  template <class F>
  void each(const Context<T>& c, const F& work) const {
    for (int64_t e = 0; e < c.num_edges; ++e)
      for (size_t j = 0; j < blocks.size(); ++j) work(e, blocks[j] * channels, int64_t(j) * channels);
  }
};

// Rows of atoms: factor times the sum over their edges.
template <class T>
struct SumOverEdges : Step<T> {
  T factor;

  SumOverEdges(const Reader&, const Json& json) : factor(T(json["factor"].number)) {}

  Shape shape(const std::vector<Shape>& in) const override {
    return {true, in.size() == 1 && !in[0].of_atoms ? in[0].width : 0};
  }

  void forward(Context<T>& c) const override {
    const Array<T>& x = c.values[this->inputs[0]];
    const Array<T>& to = c.put(this->output, c.make(c.num_computed, x.width));
    std::fill_n(to.data(), to.size(), T(0));
    for (int64_t e = 0; e < c.num_edges; ++e)
      for (int64_t k = 0; k < x.width; ++k) to[c.center[e]][k] += x[e][k];
    for (int64_t n = 0; n < to.size(); ++n) to.data()[n] *= factor;
  }

  void backward(Context<T>& c) const override {
    const Array<T>&grad = c.grads[this->output], &for_x = c.grad(this->inputs[0]);
    for (int64_t e = 0; e < c.num_edges; ++e)
      for (int64_t k = 0; k < grad.width; ++k) for_x[e][k] += factor * grad[c.center[e]][k];
  }
};

}  // namespace equipot
