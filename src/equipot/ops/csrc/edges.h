// Edges grouped by an atom they touch, and shared out among threads.
#pragma once

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace equipot {

// Below this, waking threads costs more than it saves.
constexpr int64_t edges_per_thread = 64;

inline void check_range(const int64_t* atom_of_edge, int64_t num_edges, int64_t num_atoms) {
  for (int64_t e = 0; e < num_edges; ++e)
    TORCH_CHECK_INDEX(atom_of_edge[e] >= 0 && atom_of_edge[e] < num_atoms, "equipot: edge ", e,
                      " refers to atom ", atom_of_edge[e], " of ", num_atoms);
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

// Into how many parts for_edge_ranges cuts the edges.
inline int64_t num_parts(int64_t num_edges) {
  const int64_t available = at::in_parallel_region() ? 1 : at::get_num_threads();
  return std::clamp<int64_t>(num_edges / edges_per_thread, 1, available);
}

// Calls work(edges, count, part) from several threads. All edges of an atom go to one thread, in their order, so
// sums over them do not depend on the number of threads; `share_atoms` if there are no such sums.
template <class F>
void for_edge_ranges(const EdgeGroups& groups, const F& work, bool share_atoms = false) {
  const auto num_edges = int64_t(groups.edges.size());
  const int64_t parts = num_parts(num_edges);
  const auto boundary = [&](int64_t part) {
    const int64_t equal = num_edges * part / parts;
    return share_atoms ? equal : *std::lower_bound(groups.start.begin(), groups.start.end(), equal);
  };
  const auto run = [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part)
      work(groups.edges.data() + boundary(part), boundary(part + 1) - boundary(part), part);
  };
  if (parts == 1) return run(0, 1);
  at::parallel_for(0, parts, 1, run);
}

}  // namespace equipot
