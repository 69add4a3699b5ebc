// The steps of NequIP: embedding, linear maps, exchange with other domains, interaction blocks.
#pragma once

#include <array>

#include "form.h"
#include "gate.h"
#include "linear.h"
#include "perceptron.h"
#include "plan.h"
#include "step.h"

namespace equipot::inline EQUIPOT_INSTRUCTIONS {

// Rows by the types of the atoms.
template <class T>
struct Embedding : Step<T> {
  std::vector<T> weights;
  int64_t width;

  Embedding(const Reader& reader, const Json& json, int64_t num_types)
      : weights(reader.program.values<T>(json["weights"].text)), width(int64_t(weights.size()) / num_types) {
    if (width < 1 || width * num_types != int64_t(weights.size()))
      throw std::runtime_error("the embedding does not have one row for each species");
    this->differentiable = false;
  }

  Shape shape(const std::vector<Shape>& in) const override { return {true, in.empty() ? width : 0, true}; }

  void forward(Context<T>& c) const override {
    const Array<T>& to = c.put(this->output, c.make(c.num_atoms, width));
    for_rows(c.num_atoms, 4096, [&](int64_t first, int64_t count) {
      for (int64_t i = first; i < first + count; ++i) std::copy_n(weights.data() + c.types[i] * width, width, to[i]);
    });
  }

  void backward(Context<T>&) const override {}
};

inline LinearMap read_map(const Reader& reader, const Json& json, const char* dim_in, const char* dim_out,
                          int64_t num_weights) {
  const auto numbers = json["blocks"].numbers<int64_t>();
  double weights = 0;  // which does not overflow
  bool right = numbers.size() % 5 == 0;
  for (size_t n = 0; right && n < numbers.size(); n += 5) {
    right = 0 < numbers[n] && numbers[n] < 1024;
    weights += double(numbers[n + 1]) * double(numbers[n + 2]);
  }
  if (!right || weights != double(num_weights)) throw std::runtime_error("a block of a linear map does not fit its weights");
  return make_linear_map(reinterpret_cast<const LinearBlock*>(numbers.data()), int64_t(numbers.size() / 5),
                         reader.integer(json, dim_in, 1), reader.integer(json, dim_out, 1), num_weights);
}

// A linear map with its weights, of each of `sets` types, as products read them.
template <class T>
struct PackedMap {
  LinearMap map;
  Numbers<T> weights;
  bool once;

  PackedMap(LinearMap of, const std::vector<T>& given, int64_t sets = 1)
      : map(std::move(of)), weights(given.size()), once(covers_once(map)) {
    if (map.num_weights * sets != int64_t(given.size())) throw std::runtime_error("a linear map lacks weights");
    int64_t at = 0;
    for (int64_t set = 0; set < sets; ++set)
      for (const LinearBlock& b : map.blocks) {
        pack(b.channels_in, b.channels_out, given.data() + at, weights.data() + at);
        at += b.channels_in * b.channels_out;
      }
  }

  // y += map(x) of rows that lie one after the other, or fresh: y = map(x).
  void apply(int64_t rows, const T* x, T* y, bool fresh, int64_t set = 0) const {
    if (fresh && !once) std::fill_n(y, rows * map.dim_out, T(0));
    add_linear(map, weights.data() + set * map.num_weights, rows, x, y, true, fresh && once);
  }
};

// The map and its transpose.
template <class T>
struct MapBothWays {
  PackedMap<T> forth, back;

  MapBothWays(const LinearMap& map, const std::vector<T>& weights, int64_t sets = 1)
      : forth(map, weights, sets), back(transposed(map), transposed_weights(map, weights.data(), sets), sets) {}
};

// Mixes the channels of each irrep; with weights for each type of atom, of the computed atoms only.
template <class T>
struct Linear : Step<T> {
  bool by_type;
  MapBothWays<T> map;
  std::vector<T> bias;

  Linear(const Reader& reader, const Json& json, int64_t num_types)
      : by_type(json["by_type"].number != 0), map(read(reader, json, by_type ? num_types : 1)) {
    if (json.has("bias")) bias = reader.program.values<T>(json["bias"].text);
  }

  static MapBothWays<T> read(const Reader& reader, const Json& json, int64_t sets) {
    const auto weights = reader.program.values<T>(json["weights"].text);
    return {read_map(reader, json, "dim_in", "dim_out", int64_t(weights.size()) / sets), weights, sets};
  }

  Shape shape(const std::vector<Shape>& in) const override {
    const LinearMap& m = map.forth.map;
    const bool fits = in.size() == 1 && in[0].of_atoms && in[0].width == m.dim_in && int64_t(bias.size()) <= m.dim_out;
    return {true, fits ? m.dim_out : 0, fits && in[0].complete && !by_type};
  }

  void forward(Context<T>& c) const override {
    const Array<T>& x = c.values[this->inputs[0]];
    const int64_t rows = by_type ? c.num_computed : x.rows;
    Array<T> y = c.make(rows, map.forth.map.dim_out);
    apply(c, rows, map.forth, x, y, true);
    for (int64_t i = 0; i < rows && !bias.empty(); ++i)
      for (size_t k = 0; k < bias.size(); ++k) y[i][k] += bias[k];
    c.put(this->output, std::move(y));
  }

  void backward(Context<T>& c) const override {
    const Array<T>& to = c.grad(this->inputs[0]);
    apply(c, c.grads[this->output].rows, map.back, c.grads[this->output], to, false);
  }

  // y += map(x), or fresh: y = map(x).
  void apply(const Context<T>& c, int64_t rows, const PackedMap<T>& m, const Array<T>& x, const Array<T>& y,
             bool fresh) const {
    for_rows(rows, rows_at_once, [&](int64_t first, int64_t count) {
      if (!by_type || c.by_type == nullptr) return m.apply(count, x[first], y[first], fresh, by_type ? c.types[0] : 0);
      // Rows first ... first + count - 1 of the atoms in the order of their types.
      Numbers<T> in, out;
      for (int64_t at = first; at < first + count;) {
        const auto& start = c.by_type->start;
        const auto type = std::upper_bound(start.begin(), start.end(), at) - start.begin() - 1;
        const int64_t n = std::min(first + count, start[type + 1]) - at;
        in.resize(size_t(n * x.width)), out.resize(size_t(n * y.width));
        const int64_t* atoms = c.by_type->edges.data() + at;
        for (int64_t i = 0; i < n; ++i) std::copy_n(x[atoms[i]], x.width, in.data() + i * x.width);
        m.apply(n, in.data(), out.data(), true, type);
        for (int64_t i = 0; i < n; ++i) {
          T* to = y[atoms[i]];
          const T* from = out.data() + i * y.width;
          for (int64_t k = 0; k < y.width; ++k) to[k] = fresh ? from[k] : to[k] + from[k];
        }
        at += n;
      }
    });
  }
};

// Rows times the factor of the atom's type.
template <class T>
struct ElementFactors : Step<T> {
  std::vector<T> factors;

  ElementFactors(const Reader& reader, const Json& json, int64_t num_types)
      : factors(reader.program.values<T>(json["factors"].text, num_types)) {}

  Shape shape(const std::vector<Shape>& in) const override {
    const bool fits = in.size() == 1 && in[0].of_atoms;
    return {true, fits ? in[0].width : 0, fits && in[0].complete};
  }

  void forward(Context<T>& c) const override {
    const Array<T>& x = c.values[this->inputs[0]];
    Array<T> y = c.make(x.rows, x.width);
    std::fill_n(y.data(), y.size(), T(0));
    add(c, x, y);
    c.put(this->output, std::move(y));
  }

  void backward(Context<T>& c) const override { add(c, c.grads[this->output], c.grad(this->inputs[0])); }

  void add(const Context<T>& c, const Array<T>& x, const Array<T>& to) const {
    for_rows(x.rows, 1024, [&](int64_t first, int64_t count) {
      for (int64_t i = first; i < first + count; ++i)
        for (int64_t k = 0; k < x.width; ++k) to[i][k] += factors[size_t(c.types[i])] * x[i][k];
    });
  }
};

// x sigmoid(x) of every number.
template <class T>
struct Silu : Step<T> {
  Shape shape(const std::vector<Shape>& in) const override {
    const bool fits = in.size() == 1 && in[0].of_atoms;
    return {true, fits ? in[0].width : 0, fits && in[0].complete};
  }
  std::vector<int> read_back() const override { return this->inputs; }

  void forward(Context<T>& c) const override {
    const Array<T>& x = c.values[this->inputs[0]];
    const Array<T>& y = c.put(this->output, c.make(x.rows, x.width));
    for_rows(x.rows, 1024, [&](int64_t first, int64_t count) { silus(x[first], y[first], count * x.width); });
  }

  void backward(Context<T>& c) const override {
    const Array<T>&x = c.values[this->inputs[0]], &from = c.grads[this->output], &to = c.grad(this->inputs[0]);
    for_rows(from.rows, 1024, [&](int64_t first, int64_t count) {
      std::vector<T> of_x(from[first], from[first] + count * from.width);
      multiply_by_silu_slopes(x[first], of_x.data(), int64_t(of_x.size()));
      for (size_t k = 0; k < of_x.size(); ++k) to[first][k] += of_x[k];
    });
  }
};

// Rows of atoms that other domains own come from there.
template <class T>
struct Exchange : Step<T> {
  Shape shape(const std::vector<Shape>& in) const override {
    return {true, in.size() == 1 && in[0].of_atoms ? in[0].width : 0, true};
  }
  std::vector<int> takes() const override { return this->inputs; }

  void forward(Context<T>& c) const override {
    Array<T>& x = c.values[this->inputs[0]];
    if (c.exchange == nullptr) {
      c.put(this->output, std::move(x));
      x = {};
      return;
    }
    Array<T> y = c.make(c.num_atoms, x.width);
    std::copy_n(x.data(), c.num_computed * x.width, y.data());
    const auto sent = c.exchange->sent();
    Array<T> rows = c.make(int64_t(sent.size()), x.width);
    for_rows(rows.rows, 1024, [&](int64_t first, int64_t count) {
      for (int64_t n = first; n < first + count; ++n) std::copy_n(x[sent[size_t(n)]], x.width, rows[n]);
    });
    c.exchange->to_ghosts(rows.data(), y[c.num_computed], x.width * int64_t(sizeof(T)));
    c.release(rows);
    c.put(this->output, std::move(y));
  }

  void backward(Context<T>& c) const override {
    Array<T>& from = c.grad(this->output);
    if (c.exchange != nullptr) {
      const auto sent = c.exchange->sent();
      Array<T> rows = c.make(int64_t(sent.size()), from.width);
      c.exchange->to_owners(from[c.num_computed], rows.data(), from.width * int64_t(sizeof(T)));
      for (int64_t n = 0; n < rows.rows; ++n) {
        T* const to = from[sent[size_t(n)]];
        for (int64_t k = 0; k < from.width; ++k) to[k] += rows[n][k];
      }
      c.release(rows);
    }
    from.rows = c.values_rows[this->inputs[0]];
    c.grads[this->inputs[0]] = std::move(from);
    from = {};
  }
};

// The weights of messages: splines, or a perceptron of Bessel functions at every edge.
template <class T>
struct Radial {
  Numbers<T> rows;  // (intervals + 5, num_weights)
  RadialTable<T> table;
  Bessel<T> basis;
  Perceptron<T> network;
  int64_t num_weights = 0;

  Radial(const Reader& reader, const Json& json) {
    if (json.has("table")) {
      const std::string& name = json["table"].text;
      rows = aligned(reader.program.values<T>(name));
      const auto& shape = reader.program.weights.at(name).shape;
      if (shape.size() != 2 || shape[0] < 6) throw std::runtime_error("the table '" + name + "' is damaged");
      num_weights = shape[1];
      table = {rows.data(), shape[0] - 5, T(json["cutoff"].number)};
      if (!(table.cutoff > 0)) throw std::runtime_error("the table '" + name + "' ends at no distance");
      return;
    }
    basis = Bessel<T>(reader, json["basis"]);
    network = Perceptron<T>(reader, json["layers"]);
    num_weights = network.num_out();
    if (basis.size() != network.num_in()) throw std::runtime_error("a radial network does not fit its basis");
  }
  Radial(const Radial&) = delete;

  bool is_table() const { return table.rows != nullptr; }
};

// What the radial network gives for some edges, and its way back.
template <class T>
struct RadialRows {
  std::vector<T> basis, weights, grad_weights, scratch, other;
  std::vector<std::vector<T>> hidden;
  std::vector<T*> pointers;

  void forward(const Radial<T>& radial, const T* length, int64_t count) {
    const auto& layers = radial.network.layers;
    basis.resize(size_t(count * radial.basis.size()));
    radial.basis.forward(length, count, basis.data());
    hidden.resize(layers.size()), pointers.resize(layers.size());
    for (size_t k = 0; k < layers.size(); ++k) {
      hidden[k].assign(size_t(count * layers[k].out), T(0));
      pointers[k] = hidden[k].data();
    }
    multiply(count, basis.data(), radial.basis.size(), layers[0].in, layers[0].weights.data(), layers[0].out,
             pointers[0], layers[0].out);
    radial.network.forward_from_first(count, pointers, pointers.back(), scratch);
    std::swap(weights, hidden.back());
  }

  // From grad_weights to grad_length, which is added to.
  void backward(const Radial<T>& radial, const T* length, int64_t count, T* grad_length) {
    const auto& first = radial.network.layers[0];
    const T* grad = radial.network.backward_to_first(count, pointers, grad_weights.data(), scratch, other);
    basis.assign(size_t(count * first.in), T(0));
    multiply(count, grad, first.out, first.out, first.transposed.data(), first.in, basis.data(), first.in);
    radial.basis.backward(length, count, basis.data(), grad_length);
  }
};

// Convolution, mixing of its paths, and gate; inputs: what neighbors send, and what is added before the gate.
template <class T>
struct Interaction : Step<T> {
  Radial<T> radial;
  Plan<T> plan;
  MapBothWays<T> mixing;
  GateShape gate;
  std::vector<int64_t> counting;  // 0, 1, 2, ...: edges that lie one after the other

  static constexpr int64_t edges_at_once = 2048;

  Interaction(const Reader& reader, const Json& json, int64_t dim_sh)
      : radial(reader, json["radial"]), mixing(read_mixing(reader, json)) {
    const auto rows = json["paths"].numbers<int64_t>();
    const auto coefficients = reader.program.values<double>(json["coefficients"].text);
    const int64_t dim_in = reader.integer(json, "dim_in", 1), dim_messages = reader.integer(json, "dim_messages", 1);
    if (rows.size() % 9 != 0) throw std::runtime_error("the paths of an interaction are damaged");
    plan = make_plan<T>(reinterpret_cast<const PathRow*>(rows.data()), int64_t(rows.size() / 9), coefficients.data(),
                        int64_t(coefficients.size()), 1e-6, dim_in, dim_sh, dim_messages, radial.num_weights);
    const int64_t even = reader.integer(json, "num_even", 0), odd = reader.integer(json, "num_odd", 0);
    gate = make_gate(mixing.forth.map, even, odd, json["even_factor"].number, json["odd_factor"].number);
    counting.resize(edges_at_once);
    std::iota(counting.begin(), counting.end(), 0);
  }

  static MapBothWays<T> read_mixing(const Reader& reader, const Json& json) {
    const auto weights = reader.program.values<T>(json["mixing"].text);
    return {read_map(reader, json, "dim_messages", "dim_gate", int64_t(weights.size())), weights};
  }

  Arrays<T> arrays_of(const Context<T>& c) const {
    Arrays<T> arrays;
    arrays.x = c.values[this->inputs[0]].data();
    arrays.sh = c.sh, arrays.center = c.center, arrays.neighbor = c.neighbor, arrays.length = c.length;
    arrays.table = radial.table;
    return arrays;
  }

  Shape shape(const std::vector<Shape>& in) const override {
    const bool fits = in.size() == 2 && in[0].complete && in[1].of_atoms && in[0].width == plan.dim_in &&
                      in[1].width == gate.dim_in && this->inputs[0] != this->inputs[1];
    return {true, fits ? gate.dim_out : 0};
  }
  std::vector<int> takes() const override { return {this->inputs[1]}; }
  std::vector<int> read_back() const override { return {this->inputs[0]}; }

  void forward(Context<T>& c) const override {
    Array<T> out = c.make(c.num_computed, gate.dim_out);
    Array<T> update = std::move(c.values[this->inputs[1]]);
    c.values[this->inputs[1]] = {};
    for_rows(c.num_computed, rows_at_once, [&](int64_t first, int64_t count) {
      Numbers<T> messages(size_t(count * plan.dim_out), T(0)), nonlinear(size_t(count * (gate.num_sigmoid() + gate.num_odd)));
      send(c, first, count, messages.data());
      mixing.forth.apply(count, messages.data(), update[first], false);
      const auto [sigmoid, tanh] = nonlinearities(count, update[first], nonlinear);
      gate_rows<T>(gate, count, {update[first], gate.dim_in}, sigmoid, tanh, {out[first], gate.dim_out});
    });
    c.kept[this->number].push_back(std::move(update));
    c.put(this->output, std::move(out));
  }

  // The messages to atoms first ... first + count - 1; zeros before.
  void send(const Context<T>& c, int64_t first, int64_t count, T* messages) const {
    const int64_t last = c.first_edge[first + count];
    RadialRows<T> of_edges;
    for (int64_t e = c.first_edge[first]; e < last; e += edges_at_once) {
      const int64_t edges = std::min(edges_at_once, last - e);
      Arrays<T> here = arrays_of(c);
      here.sh += e * c.dim_sh, here.center += e, here.neighbor += e, here.length += e;
      here.grad_g = messages, here.first_center = first;
      if (!radial.is_table()) {
        of_edges.forward(radial, here.length, edges);
        here.w = of_edges.weights.data();
      }
      center_pass(plan, here, counting.data(), edges);
    }
  }

  // Sigmoids of even scalars and gates, tanh of odd scalars.
  std::pair<Rows<const T>, Rows<const T>> nonlinearities(int64_t count, const T* update, Numbers<T>& to) const {
    const int64_t even = gate.num_sigmoid(), odd = gate.num_odd;
    for (int64_t n = 0; n < count; ++n) {
      sigmoids(update + n * gate.dim_in, to.data() + n * even, even);
      if (odd > 0) tanhs(update + n * gate.dim_in + even, to.data() + count * even + n * odd, odd);
    }
    return {{to.data(), even}, {to.data() + count * even, odd}};
  }

  void backward(Context<T>& c) const override {
    const Array<T>& gradient = c.grads[this->output];
    std::vector<Array<T>>& kept = c.kept[this->number];  // what was given to the gate, and perhaps the energy's messages
    const bool last = c.moment + 1 == c.num_moments;
    Array<T> for_update = last ? std::move(kept[0]) : c.make(c.num_computed, gate.dim_in);
    const Array<T>& update = last ? for_update : kept[0];
    Array<T> for_messages = c.make(c.num_computed, plan.dim_out);
    for_rows(c.num_computed, rows_at_once, [&](int64_t first, int64_t count) {
      Numbers<T> nonlinear(size_t(count * (gate.num_sigmoid() + gate.num_odd))), for_rows(size_t(count * gate.dim_in));
      const auto [sigmoid, tanh] = nonlinearities(count, update[first], nonlinear);
      gate_gradient_rows<T>(gate, count, {update[first], gate.dim_in}, sigmoid, tanh, {gradient[first], gate.dim_out},
                            {for_rows.data(), gate.dim_in});
      std::copy(for_rows.begin(), for_rows.end(), for_update[first]);
      mixing.back.apply(count, for_rows.data(), for_messages[first], true);
    });
    c.release(c.grads[this->output]);  // the memory may become that of grad_x
    c.grads[this->inputs[1]] = std::move(for_update);
    T* grad_x = c.grad(this->inputs[0]).data();
    const std::vector<int64_t>& start = c.by_neighbor->start;
    const std::vector<int64_t> bounds = parts_of(start);
    Threads::pool().run(int64_t(bounds.size()) - 1, [&](int64_t part, int) {
      const int64_t* edges = c.by_neighbor->edges.data() + start[bounds[part]];
      const int64_t count = start[bounds[part + 1]] - start[bounds[part]];
      Arrays<T> here = arrays_of(c);
      here.g = for_messages.data(), here.grad_x = grad_x;
      if (radial.is_table() && !c.is_about_center()) {
        here.add_geometry = true, here.grad_sh = c.grad_sh, here.grad_length = c.grad_length;
        neighbor_pass(plan, here, edges, count);
      } else {
        backward_with_copies(c, here, edges, count);
      }
    });
    if (c.moment == 0 && c.num_about_center > 0) kept.push_back(std::move(for_messages));
    else c.release(for_messages);
  }

  // The same with copies of what belongs to the edges, a few at a time: for weights from a network, and for moments,
  // which are taken about the center and are wanted about the neighbor: less edge_vec[a] times what the energy has.
  void backward_with_copies(const Context<T>& c, Arrays<T> here, const int64_t* edges, int64_t count) const {
    const T* g = here.g;
    const int64_t at_once = c.is_about_center() ? 64 : edges_at_once;  // rows of messages stay in a cache
    RadialRows<T> of_edges;
    std::vector<T> length, grad_length, sh, grad_sh;
    Numbers<T> about_neighbor;
    std::vector<int64_t> center, neighbor;
    for (int64_t first = 0; first < count; first += at_once) {
      const int64_t n = std::min(at_once, count - first);
      length.resize(n), grad_length.assign(n, T(0)), center.resize(n), neighbor.resize(n);
      sh.resize(n * c.dim_sh), grad_sh.resize(n * c.dim_sh);
      for (int64_t k = 0; k < n; ++k) {
        const int64_t e = edges[first + k];
        length[k] = c.length[e], center[k] = c.center[e], neighbor[k] = c.neighbor[e];
        std::copy_n(c.sh + e * c.dim_sh, c.dim_sh, sh.data() + k * c.dim_sh);
      }
      if (c.is_about_center()) {
        about_neighbor.resize(size_t(n * plan.dim_out));
        for (int64_t k = 0; k < n; ++k) {
          const T shift = T(c.edge_vec[3 * edges[first + k] + c.moment - 1]);
          const T *of_energy = c.kept[this->number][1][center[k]], *from = g + center[k] * plan.dim_out;
          T* to = about_neighbor.data() + k * plan.dim_out;
          for (int64_t d = 0; d < plan.dim_out; ++d) to[d] = from[d] - shift * of_energy[d];
          center[k] = k;
        }
        here.g = about_neighbor.data();
      }
      here.sh = sh.data(), here.center = center.data(), here.neighbor = neighbor.data(), here.length = length.data();
      here.grad_sh = grad_sh.data(), here.grad_length = grad_length.data();
      if (!radial.is_table()) {
        of_edges.forward(radial, length.data(), n);
        of_edges.grad_weights.resize(size_t(n * radial.num_weights));
        here.w = of_edges.weights.data(), here.grad_w = of_edges.grad_weights.data();
      }
      neighbor_pass(plan, here, counting.data(), n);
      if (!radial.is_table()) of_edges.backward(radial, length.data(), n, grad_length.data());
      for (int64_t k = 0; k < n; ++k) {
        const int64_t e = edges[first + k];
        c.grad_length[e] += grad_length[k];
        for (int64_t j = 0; j < c.dim_sh; ++j) c.grad_sh[e * c.dim_sh + j] += grad_sh[k * c.dim_sh + j];
      }
    }
  }

  // Whole atoms with about 1,024 edges each, the same for any number of threads.
  static std::vector<int64_t> parts_of(const std::vector<int64_t>& start) {
    std::vector<int64_t> bounds{0};
    const auto atoms = int64_t(start.size()) - 1;
    for (int64_t atom = 1; atom <= atoms; ++atom)
      if (start[atom] - start[bounds.back()] >= 1024 || atom == atoms) bounds.push_back(atom);
    return bounds;
  }
};

}  // namespace equipot
