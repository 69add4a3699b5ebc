// From gradients by the edges to what an evaluation gives of atoms.
#pragma once

#include <algorithm>

#include "context.h"
#include "sorted_edges.h"

namespace equipot::inline EQUIPOT_INSTRUCTIONS {

struct Gradients {
  const SortedEdges& edges;
  int64_t computed, num_edges;  // centers of edges that count, and these
  const EdgeGroups& by_neighbor;
  const std::vector<double>& values;  // (moments, num_edges, 3)
  bool has_heat;  // moments for the heat flux follow that of the energy; without messages they are zero about the center
  int64_t num_derivatives;  // numbers of an atom, of the last moments

  // With g the gradient by an edge: the force of its center is +g, of its neighbor -g, the virial -edge_vec g there.
  void write(int64_t num_atoms, const std::vector<double>& energies, const Results& results) const {
    for_rows(num_atoms, 1024, [&](int64_t first, int64_t count) {
      for (int64_t i = first; i < first + count; ++i) {
        double force[3] = {}, virial[9] = {};
        sum(values.data(), i, force);
        for (int64_t k = by_neighbor.start[i]; k < by_neighbor.start[i + 1]; ++k) {
          const int64_t e = by_neighbor.edges[k];
          for (int a = 0; a < 3; ++a)
            for (int b = 0; b < 3; ++b) virial[3 * a + b] -= edges.vec[3 * e + a] * values[3 * e + b];
        }
        if (results.atom_energies != nullptr) results.atom_energies[i] = energies[i];
        if (results.forces != nullptr) std::copy_n(force, 3, results.forces + 3 * i);
        if (results.atom_virials != nullptr) std::copy_n(virial, 9, results.atom_virials + 9 * i);
        if (results.derivatives != nullptr) write_derivatives(i, results.derivatives + i * num_derivatives);
        if (results.atom_heat_virials == nullptr) continue;
        if (has_heat) heat_virial(i, virial);
        std::copy_n(virial, 9, results.atom_heat_virials + 9 * i);
      }
    });
  }

 private:
  // What pulls atom i: of its own edges, less of those to it.
  void sum(const double* gradient, int64_t i, double* to) const {
    double own[3] = {}, sent[3] = {};
    for (int64_t e = edges.first[i]; e < edges.first[i + 1] && i < computed; ++e)
      for (int a = 0; a < 3; ++a) own[a] += gradient[3 * e + a];
    for (int64_t k = by_neighbor.start[i]; k < by_neighbor.start[i + 1]; ++k)
      for (int a = 0; a < 3; ++a) sent[a] += gradient[3 * by_neighbor.edges[k] + a];
    for (int a = 0; a < 3; ++a) to[a] = own[a] - sent[a];
  }

  // (derivatives, 3, 3) of atom i: of each component by its position.
  void write_derivatives(int64_t i, double* to) const {
    const double* gradient = values.data() + int64_t(values.size()) - num_edges * num_derivatives;
    for (int64_t n = 0; n < num_derivatives / 3; ++n, gradient += 3 * num_edges, to += 3) {
      sum(gradient, i, to);
      for (int b = 0; b < 3; ++b) to[b] = -to[b];
    }
  }

  // Moments about the neighbor of the edges to atom i, less moments about the center of its own edges. Repulsion, of
  // which both atoms have half, adds no moments: it is counted at the centers, which is the same.
  void heat_virial(int64_t i, double* to) const {
    std::fill_n(to, 9, 0.0);
    for (int a = 0; a < 3; ++a) {
      const double* moment = values.data() + 3 * (a + 1) * num_edges;
      for (int64_t k = by_neighbor.start[i]; k < by_neighbor.start[i + 1]; ++k)
        for (int b = 0; b < 3; ++b) to[3 * a + b] += moment[3 * by_neighbor.edges[k] + b];
      for (int64_t e = edges.first[i]; e < edges.first[i + 1] && i < computed; ++e)
        for (int b = 0; b < 3; ++b)
          to[3 * a + b] -= moment[3 * e + b] + edges.vec[3 * e + a] * values[3 * e + b];
    }
  }
};

}  // namespace equipot
