// Edges grouped by an atom they touch.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "instructions.h"

namespace equipot::inline EQUIPOT_INSTRUCTIONS {

// Throws std::out_of_range if an edge refers to an atom that is not there.
inline void check_range(const int64_t* atom_of_edge, int64_t num_edges, int64_t num_atoms) {
  for (int64_t e = 0; e < num_edges; ++e)
    if (atom_of_edge[e] < 0 || atom_of_edge[e] >= num_atoms)
      throw std::out_of_range("equipot: edge " + std::to_string(e) + " refers to atom " +
                              std::to_string(atom_of_edge[e]) + " of " + std::to_string(num_atoms));
}

// Edges ordered by one of their atoms; edges of atom a are edges[start[a]] ... edges[start[a + 1] - 1], in
// their original order. A counting sort: its cost is small beside one pass, so nothing is cached.
struct EdgeGroups {
  std::vector<int64_t> start;
  std::vector<int64_t> edges;
};

inline EdgeGroups group_edges(const int64_t* atom_of_edge, int64_t num_edges, int64_t num_atoms) {
  check_range(atom_of_edge, num_edges, num_atoms);
  EdgeGroups groups{std::vector<int64_t>(num_atoms + 1, 0), std::vector<int64_t>(num_edges)};
  for (int64_t e = 0; e < num_edges; ++e) ++groups.start[atom_of_edge[e] + 1];
  for (int64_t a = 0; a < num_atoms; ++a) groups.start[a + 1] += groups.start[a];
  std::vector<int64_t> next(groups.start.begin(), groups.start.end() - 1);
  for (int64_t e = 0; e < num_edges; ++e) groups.edges[next[atom_of_edge[e]]++] = e;
  return groups;
}

}  // namespace equipot
