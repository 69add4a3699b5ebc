// Outputs beside the energy, in float64: value = Q (scale row + shift of the type), softplus of it where it must be positive;
// see equipot/models/outputs.py. In a uniform field F an atom's energy has -p F - F alpha F / 2 more, its p and alpha being
// such values, and p becomes p + alpha F; see `FieldTerm` in equipot/models/terms.py.
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
  struct Derivative {  // by positions, of the vector that begins with this value
    int64_t of;
    double factor;
  };
  int array = 0;  // rows of irreps
  int64_t num_rows = 0, num_values = 0;
  std::vector<double> scale, shift;  // (types, num_rows)
  std::vector<Entry> basis;
  std::vector<bool> positive;
  std::vector<Derivative> derivatives;
  int64_t vector = -1, tensor = -1;  // first values of p and alpha; -1: there is none
  double vector_unit = 1, tensor_unit = 1;  // e Å, e² Å² / eV

  Outputs(const Reader& reader, const Json& program, const std::vector<Shape>& shapes, int64_t num_types) {
    const Json& json = program["outputs"];
    array = reader.find(json["array"].text);
    num_rows = shapes[array].width;
    const auto all = output_facts(program);
    const auto first_of = [&](const std::string& name, int64_t width) {
      for (const OutputFacts& facts : all)
        if (facts.name == name && facts.width == width && facts.derivative_of.empty() && !facts.positive) return facts.first;
      throw std::runtime_error("it has no output '" + name + "' of " + std::to_string(width) + " numbers");
    };
    for (const OutputFacts& facts : all) {
      if (facts.derivative_of.empty()) {
        positive.insert(positive.end(), size_t(facts.width), facts.positive);
        num_values += facts.width;
      } else {
        derivatives.push_back({first_of(facts.derivative_of, 3), facts.factor});
      }
    }
    scale = reader.program.values<double>(json["scale"].text, num_types * num_rows);
    shift = reader.program.values<double>(json["shift"].text, num_types * num_rows);
    const auto dense = reader.program.values<double>(json["basis"].text, num_rows * num_values);
    for (int64_t n = 0; n < int64_t(dense.size()); ++n)
      if (dense[size_t(n)] != 0) basis.push_back({n / num_values, n % num_values, dense[size_t(n)]});
    if (!shapes[array].of_atoms || num_values < 1) throw std::runtime_error("its outputs beside the energy are damaged");
    if (!program.has("field")) return;
    const Json& field = program["field"];
    vector = first_of(field["vector"].text, 3), vector_unit = field["vector_unit"].number;
    if (field["tensor"].text.empty()) return;
    tensor = first_of(field["tensor"].text, 9), tensor_unit = field["tensor_unit"].number;
  }

  // (num_values) of a row, without a field.
  void values(const T* row, int64_t type, double* to) const {
    std::fill_n(to, num_values, 0.0);
    const double *factors = scale.data() + type * num_rows, *constants = shift.data() + type * num_rows;
    for (const Entry& e : basis) to[e.value] += (double(row[e.row]) * factors[e.row] + constants[e.row]) * e.factor;
    for (int64_t v = 0; v < num_values; ++v)
      if (positive[size_t(v)]) to[v] = std::max(to[v], 0.0) + std::log1p(std::exp(-std::abs(to[v])));
  }

  // eV, what the field (3) V/Å adds to the energy of an atom with these values, which become those in the field.
  double apply(const double* field, double* values) const {
    double energy = 0, induced[3] = {};
    for (int a = 0; a < 3; ++a) {
      for (int b = 0; b < 3 && tensor >= 0; ++b) induced[a] += tensor_unit * values[tensor + 3 * a + b] * field[b];
      energy -= (vector_unit * values[vector + a] + 0.5 * induced[a]) * field[a];
    }
    for (int a = 0; a < 3; ++a) values[vector + a] += induced[a] / vector_unit;
    return energy;
  }

  // (types, num_rows) The derivative of that energy by the row of an atom.
  std::vector<T> energy_slopes(const double* field) const {
    std::vector<double> by_value(size_t(num_values), 0.0);
    for (int a = 0; a < 3; ++a) {
      by_value[size_t(vector + a)] = -vector_unit * field[a];
      for (int b = 0; b < 3 && tensor >= 0; ++b) by_value[size_t(tensor + 3 * a + b)] = -0.5 * tensor_unit * field[a] * field[b];
    }
    return by_row(by_value);
  }

  // The derivative by the row of a component of the vector, in the field (null: none), times the factor.
  std::vector<T> vector_slopes(const Derivative& derivative, int axis, const double* field) const {
    std::vector<double> by_value(size_t(num_values), 0.0);
    by_value[size_t(derivative.of + axis)] = derivative.factor;
    for (int b = 0; b < 3 && field != nullptr && tensor >= 0 && derivative.of == vector; ++b)
      by_value[size_t(tensor + 3 * axis + b)] = derivative.factor * tensor_unit / vector_unit * field[b];
    return by_row(by_value);
  }

 private:
  // Of values that need not be positive.
  std::vector<T> by_row(const std::vector<double>& by_value) const {
    std::vector<double> sums(size_t(num_rows), 0.0);
    for (const Entry& e : basis) sums[size_t(e.row)] += by_value[size_t(e.value)] * e.factor;
    std::vector<T> slopes;
    for (size_t n = 0; n < scale.size(); ++n) slopes.push_back(T(sums[n % size_t(num_rows)] * scale[n]));
    return slopes;
  }
};

}  // namespace equipot
