// Last-layer features of atoms, and how uncertain the energies are that follow from them.
//
// Energies are linear in what the last layer is given: E = w f + constants. With the features F of the training set and
// a regulariser s^2, the variance of E is alpha^2 f (F^T F + s^2)^-1 f (F. Bigi, S. Chong, M. Ceriotti, F. Grasselli,
// Mach. Learn.: Sci. Technol. 5, 045018 (2024), eq. 24). A file holds R with R^T R = alpha^2 (F^T F + s^2)^-1.
#pragma once

#include <cmath>
#include <optional>

#include "sigmoid.h"
#include "step.h"
#include "strictly_local.h"

namespace equipot::inline EQUIPOT_INSTRUCTIONS {

// Where an evaluation has the features: some numbers of an array of atoms; or, of one of edges, factor times the sum over
// the edges of an atom of the last hidden layer of the perceptron that makes it.
template <class T>
struct LastLayer {
  int array = 0;
  int64_t first = 0, width = 0;
  bool of_atoms = false;
  double factor = 1;
  std::vector<double> columns;  // of R, one after the other

  LastLayer(const Reader& reader, const Json& json, const std::vector<Shape>& shapes,
            const std::vector<std::unique_ptr<Step<T>>>& steps)
      : array(reader.find(json["array"].text)), first(reader.integer(json, "first", 0)),
        width(reader.integer(json, "width", 1)), of_atoms(shapes[array].of_atoms), factor(json["factor"].number) {
    int64_t there = shapes[array].width;
    if (!of_atoms) {
      const auto* perceptron = dynamic_cast<const EdgePerceptron<T>*>(steps[array].get());
      there = perceptron == nullptr || perceptron->network.layers.size() < 2 ? 0 : perceptron->network.layers.back().in;
    }
    if (first + width > there)
      throw std::runtime_error("its last layer has " + std::to_string(there) + " features, expected " +
                               std::to_string(first + width));
    const auto rows = reader.program.values<double>(json["weights"].text, width * width);
    columns.resize(rows.size());
    for (int64_t n = 0; n < width; ++n)
      for (int64_t k = 0; k < width; ++k) columns[size_t(k * width + n)] = rows[size_t(n * width + k)];
  }

  // sigma (rows) eV: |R f| of each row of features (rows, width) eV.
  void deviations(int64_t rows, const double* features, double* sigma) const {
    for_rows(rows, rows_at_once, [&](int64_t begin, int64_t count) {
      std::vector<double> whitened(static_cast<size_t>(width));
      for (int64_t n = begin; n < begin + count; ++n) {
        std::fill(whitened.begin(), whitened.end(), 0.0);
        for (int64_t k = 0; k < width; ++k) {  // R is lower triangular
          const double f = features[n * width + k], *column = columns.data() + k * width;
          for (int64_t row = k; row < width; ++row) whitened[size_t(row)] += f * column[row];
        }
        double square = 0;
        for (const double y : whitened) square += y * y;
        sigma[n] = std::sqrt(square);
      }
    });
  }

  // (width) of a computed atom, before the scale of its species; while the arrays of the forward pass are there.
  void copy(const Context<T>& c, int64_t atom, double* to) const {
    if (of_atoms) {
      const T* row = c.values[array][atom] + first;
      for (int64_t k = 0; k < width; ++k) to[k] = double(row[k]);
      return;
    }
    const Array<T>& rows = c.kept[array].back();
    std::vector<T> activated(static_cast<size_t>(width));
    std::fill_n(to, width, 0.0);
    for (int64_t e = c.first_edge[atom]; e < c.first_edge[atom + 1]; ++e) {
      silus(rows[e] + first, activated.data(), width);
      for (int64_t k = 0; k < width; ++k) to[k] += double(activated[size_t(k)]);
    }
    for (int64_t k = 0; k < width; ++k) to[k] *= factor;
  }
};

}  // namespace equipot
