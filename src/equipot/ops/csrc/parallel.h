// Edges shared out among torch's threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>

#include "edges.h"

namespace equipot {

// Below this, waking threads costs more than it saves.
constexpr int64_t edges_per_thread = 64;

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
