// From edge vectors to distances and spherical harmonics, and back.
#pragma once

#include <array>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "lanes.h"
#include "program.h"

namespace equipot::inline EQUIPOT_INSTRUCTIONS {

// Harmonics as polynomials of the edge's direction: Y[j] = sum over terms of value x^a y^b z^c. Solid ones are those
// of the vector itself.
template <class T>
struct Harmonics {
  struct Monomial {
    int harmonic;
    std::array<int, 3> power;
    T value;
  };
  std::vector<Monomial> terms;
  int64_t dim = 0;
  int degree = 0;
  bool solid = false;

  static constexpr int max_power = 8;
  using Powers = Vector<T>[3][max_power + 1];

  explicit Harmonics(const Program& program) {
    const Json& json = program.json["harmonics"];
    const auto powers = json["powers"].numbers<int64_t>();
    const auto values = program.values<double>(json["coefficients"].text);
    const auto rows = int64_t(powers.size() / 3);
    solid = json.has("normalize") && json["normalize"].number == 0;
    dim = rows > 0 ? int64_t(values.size()) / rows : 0;
    if (rows == 0 || powers.size() % 3 != 0 || dim * rows != int64_t(values.size()) || dim < 1 || dim > 1024)
      throw std::runtime_error("its harmonics are damaged");
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t j = 0; j < dim; ++j) {
        const double value = values[row * dim + j];
        if (value == 0) continue;
        Monomial term{int(j), {}, T(value)};
        for (int a = 0; a < 3; ++a) {
          if (powers[3 * row + a] < 0 || powers[3 * row + a] > max_power)
            throw std::runtime_error("its harmonics are damaged");
          term.power[a] = int(powers[3 * row + a]);
          degree = std::max(degree, term.power[a]);
        }
        terms.push_back(term);
      }
  }

  // Calls work(first, count, direction, length) for a vector of edges at a time; absent edges point along x.
  template <class F>
  void for_edges(const double* edge_vec, int64_t first, int64_t last, const F& work) const {
    for (int64_t e = first; e < last; e += lanes<T>) {
      const int count = int(std::min<int64_t>(lanes<T>, last - e));
      Vector<T> vec[3] = {Vector<T>{} + T(1), Vector<T>{}, Vector<T>{}};
      for (int b = 0; b < count; ++b)
        for (int a = 0; a < 3; ++a) vec[a][b] = T(edge_vec[3 * (e + b) + a]);
      Vector<T> length = vec[0] * vec[0] + vec[1] * vec[1] + vec[2] * vec[2];
      for (int b = 0; b < lanes<T>; ++b) length[b] = std::sqrt(length[b]);
      if (!solid)
        for (auto& component : vec) component /= length;
      work(e, count, vec, length);
    }
  }

  void powers_of(const Vector<T>* direction, Powers& powers) const {
    for (int a = 0; a < 3; ++a) {
      powers[a][0] = Vector<T>{} + T(1);
      for (int p = 1; p <= degree; ++p) powers[a][p] = powers[a][p - 1] * direction[a];
    }
  }

  // length (E), sh (E, dim) of the edges first ... last - 1.
  void forward(const double* edge_vec, int64_t first, int64_t last, T* length, T* sh) const {
    std::vector<Vector<T>> y(static_cast<size_t>(dim));
    Powers powers;
    for_edges(edge_vec, first, last, [&](int64_t e, int count, const Vector<T>* direction, Vector<T> r) {
      powers_of(direction, powers);
      std::fill(y.begin(), y.end(), Vector<T>{});
      for (const Monomial& t : terms)
        y[t.harmonic] += t.value * (powers[0][t.power[0]] * powers[1][t.power[1]] * powers[2][t.power[2]]);
      for (int b = 0; b < count; ++b) {
        length[e + b] = r[b];
        for (int64_t j = 0; j < dim; ++j) sh[(e + b) * dim + j] = y[j][b];
      }
    });
  }

  // gradient (E, 3) by the edge vectors, from those by length and sh.
  void backward(const double* edge_vec, int64_t first, int64_t last, const T* grad_length, const T* grad_sh,
                double* gradient) const {
    Powers powers;
    for_edges(edge_vec, first, last, [&](int64_t e, int count, const Vector<T>* direction, Vector<T> r) {
      powers_of(direction, powers);
      Vector<T> g[3] = {};
      for (const Monomial& t : terms) {
        Vector<T> of_y{};
        for (int b = 0; b < count; ++b) of_y[b] = grad_sh[(e + b) * dim + t.harmonic];
        of_y *= t.value;
        for (int a = 0; a < 3; ++a) {
          if (t.power[a] == 0) continue;
          const int b = (a + 1) % 3, c = (a + 2) % 3;
          g[a] += of_y * (T(t.power[a]) * powers[a][t.power[a] - 1] * powers[b][t.power[b]] * powers[c][t.power[c]]);
        }
      }
      // Only what turns the direction changes the harmonics.
      const Vector<T> radial = g[0] * direction[0] + g[1] * direction[1] + g[2] * direction[2];
      Vector<T> of_length{};
      for (int b = 0; b < count; ++b) of_length[b] = grad_length[e + b];
      for (int a = 0; a < 3; ++a) {
        const Vector<T> of_vec = solid ? g[a] + of_length * direction[a] / r
                                       : (g[a] - radial * direction[a]) / r + of_length * direction[a];
        for (int b = 0; b < count; ++b) gradient[3 * (e + b) + a] = double(of_vec[b]);
      }
    });
  }
};

}  // namespace equipot
