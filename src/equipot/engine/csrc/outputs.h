// Outputs beside the energy, in float64: value = Q (scale row + shift of the type), softplus of it where it must be positive;
// see equipot/models/outputs.py. A uniform field F adds -p F - F alpha F / 2 to an atom's energy, p and alpha being its values.
#pragma once

#include <cmath>

#include "output_facts.h"
#include "step.h"

namespace equipot::inline EQUIPOT_INSTRUCTIONS {

template <class T>
struct Outputs {
  struct Entry {  // of Q, which is sparse
    int64_t row, value;
    double factor;
  };
  int array = 0;  // rows of irreps
  int64_t num_rows = 0, num_values = 0;
  std::vector<double> scale, shift;  // (num_rows), (types, num_rows)
  std::vector<Entry> basis;
  std::vector<bool> positive;
  int64_t vector = -1, tensor = -1;  // first values of p and alpha; -1: there is none

  Outputs(const Reader& reader, const Json& program, const std::vector<Shape>& shapes, int64_t num_types) {
    const Json& json = program["outputs"];
    array = reader.find(json["array"].text);
    num_rows = shapes[array].width;
    for (const OutputFacts& facts : output_facts(program)) {
      positive.insert(positive.end(), size_t(facts.width), facts.positive);
      num_values += facts.width;
      if (!program.has("field")) continue;
      if (program["field"]["vector"].text == facts.name && facts.width == 3) vector = facts.first;
      if (program["field"]["tensor"].text == facts.name && facts.width == 9) tensor = facts.first;
    }
    scale = reader.program.values<double>(json["scale"].text, num_rows);
    shift = reader.program.values<double>(json["shift"].text, num_types * num_rows);
    const auto dense = reader.program.values<double>(json["basis"].text, num_rows * num_values);
    for (int64_t n = 0; n < int64_t(dense.size()); ++n)
      if (dense[size_t(n)] != 0) basis.push_back({n / num_values, n % num_values, dense[size_t(n)]});
    if (!shapes[array].of_atoms || num_values < 1) throw std::runtime_error("its outputs beside the energy are damaged");
    if (program.has("field") && vector < 0) throw std::runtime_error("it is said to feel a field, but has no dipole");
  }

  // (num_values) of a row.
  void values(const T* row, int64_t type, double* to) const {
    std::fill_n(to, num_values, 0.0);
    const double* constants = shift.data() + type * num_rows;
    for (const Entry& e : basis) to[e.value] += (double(row[e.row]) * scale[e.row] + constants[e.row]) * e.factor;
    for (int64_t v = 0; v < num_values; ++v)
      if (positive[size_t(v)]) to[v] = std::max(to[v], 0.0) + std::log1p(std::exp(-std::abs(to[v])));
  }

  // eV, of an atom in a field (3) V/Å; `slopes` (num_rows) is its derivative by the row.
  double in_field(const double* field, const double* found, T* slopes) const {
    std::vector<double> by_value(size_t(num_values), 0.0), by_row(size_t(num_rows), 0.0);
    double energy = 0;
    for (int a = 0; a < 3; ++a) {
      energy -= found[vector + a] * field[a], by_value[size_t(vector + a)] = -field[a];
      for (int b = 0; b < 3 && tensor >= 0; ++b) {
        energy -= 0.5 * field[a] * found[tensor + 3 * a + b] * field[b];
        by_value[size_t(tensor + 3 * a + b)] = -0.5 * field[a] * field[b];
      }
    }
    for (const Entry& e : basis) by_row[size_t(e.row)] += by_value[size_t(e.value)] * e.factor * scale[e.row];
    for (int64_t k = 0; k < num_rows; ++k) slopes[k] = T(by_row[size_t(k)]);
    return energy;
  }
};

}  // namespace equipot
