// Edges by center.
#pragma once

#include <algorithm>
#include <vector>

#include "edges.h"
#include "evaluator.h"

namespace equipot::inline EQUIPOT_INSTRUCTIONS {

// As they were given, or sorted copies.
struct SortedEdges {
  const int64_t *center, *neighbor;
  const double* vec;
  std::vector<int64_t> first;  // of each center
  std::vector<int64_t> centers, neighbors;
  std::vector<double> vectors;

  explicit SortedEdges(const Edges& given) : center(given.center), neighbor(given.neighbor), vec(given.edge_vec) {
    const int64_t n = given.num_edges;
    if (std::is_sorted(center, center + n)) {
      first.assign(size_t(given.num_atoms + 1), 0);
      for (int64_t e = 0; e < n; ++e) ++first[center[e] + 1];
      for (int64_t i = 0; i < given.num_atoms; ++i) first[i + 1] += first[i];
      return;
    }
    EdgeGroups groups = group_edges(center, n, given.num_atoms);
    centers.resize(n), neighbors.resize(n), vectors.resize(3 * n);
    for (int64_t k = 0; k < n; ++k) {
      const int64_t e = groups.edges[k];
      centers[k] = center[e], neighbors[k] = neighbor[e];
      std::copy_n(vec + 3 * e, 3, vectors.data() + 3 * k);
    }
    first = std::move(groups.start);
    center = centers.data(), neighbor = neighbors.data(), vec = vectors.data();
  }
};

}  // namespace equipot
