// All pairs of atoms within the cutoff, found on a GPU from positions: a list that reaches farther by a skin stays while no
// atom has moved far enough to make it incomplete, and only positions are sent. Edges beyond the cutoff remain in it: the
// functions of the distance are zero there.
#pragma once

#include "gpu_step.h"
#include "neighbors.h"

namespace equipot {

EQUIPOT_DECLARE_AND_QUOTE(gpu_neighbor_arrays_text,
struct GpuNeighborArrays {
  const double *positions, *home;
  const long long *start, *members, *along, *first_edge;
  long long *counts, *center, *neighbor, *order;
  int* shift;
  double *vec, *close;
  double lattice[9], limit, least;
  long long num_atoms, num_edges, number[3], reach[3];
  int periodic[3];
};)

class GpuNeighbors {
 public:
  GpuNeighbors(GpuModel& model, double cutoff);

  // Finds the edges of a structure, or only their vectors. Throws as find_neighbors.
  void update(const Structure& structure);

  int64_t num_edges() const { return num_edges_; }
  // On the device, sorted by center; `order` leads from each edge to the one back, so it has edges by neighbor.
  const void* center() const { return center_.get(); }
  const void* neighbor() const { return neighbor_.get(); }
  const void* first_edge() const { return first_edge_.get(); }
  const void* order() const { return order_.get(); }
  const double* vec() const { return static_cast<const double*>(vec_.get()); }
  // (1) on the device, not zero once two atoms are as close as they must not be.
  const void* close() const { return close_.get(); }
  [[noreturn]] void refuse(const Structure& structure) const;

  static constexpr double skin = 0.5;  // Å

 private:
  bool is_complete(const Structure& structure) const;
  void build(const Structure& structure, GpuNeighborArrays& arrays);
  std::vector<int64_t> count(const Structure& structure, GpuNeighborArrays& arrays);
  void launch(void* kernel, int64_t threads, GpuNeighborArrays& arrays) const;

  GpuModel& model_;
  double cutoff_;
  void *count_, *find_, *pair_up_, *vectors_;
  GpuMemory::Buffer center_, neighbor_, first_edge_, order_, shift_, vec_, close_;
  int64_t num_edges_ = 0;
  // What the list was built for.
  bool built_ = false;
  std::vector<double> positions_;
  Lattice lattice_{};
  std::array<bool, 3> periodic_{};
};

}  // namespace equipot
