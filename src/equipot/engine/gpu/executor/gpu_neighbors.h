// All pairs of atoms within the cutoff, found on a GPU from positions: a list that reaches farther by a skin stays while no
// atom has moved far enough to make it incomplete, and only positions are sent. Edges beyond the cutoff remain in it: the
// functions of the distance are zero there. Of a domain the atoms are at places, and some at several.
#pragma once

#include "gpu_exchange.h"
#include "gpu_step.h"
#include "neighbors.h"

namespace equipot {

EQUIPOT_DECLARE_AND_QUOTE(gpu_neighbor_arrays_text,
struct GpuNeighborArrays {
  const double *positions, *home, *watched;
  const long long *start, *members, *along, *first_edge, *atoms, *first_back, *types;
  long long *counts, *back_counts, *at_border, *center, *neighbor, *from, *to, *order;
  int* shift;
  double *vec, *close;
  double lattice[9], limit, least;
  long long num_centers, num_places, num_owned, num_edges, num_types, number[3], reach[3];
  int periodic[3];
};)

class GpuNeighbors {
 public:
  GpuNeighbors(GpuModel& model, double cutoff);

  // Finds the edges, or only their vectors; `types` on the device. Throws as find_neighbors.
  void update(const Structure& structure, const long long* types);
  void update(const Domain& domain, const int64_t* ids, const long long* types);

  void forget() { built_ = false; }

  int64_t num_edges() const { return num_edges_; }
  // On the device, sorted by center; edges by neighbor are `order`, from `start` on.
  const void* center() const { return center_.get(); }
  const void* neighbor() const { return neighbor_.get(); }
  const void* first_edge() const { return first_edge_.get(); }
  const std::vector<int64_t>& first_edge_on_host() const { return first_; }
  const void* order() const { return order_.get(); }
  const void* start() const { return of_domain_ ? first_in_.get() : first_edge_.get(); }
  GpuInnerFirst inner_first() const { return inner_first_.get(); }  // of a domain
  const double* vec() const { return static_cast<const double*>(vec_.get()); }
  // (2) on the device, not zero: two atoms are as close as they must not be; closer than what is watched.
  const void* close() const { return close_.get(); }
  [[noreturn]] void refuse(const Structure& structure) const;
  [[noreturn]] void refuse(const Domain& domain, const int64_t* ids) const;

  static constexpr double skin = 0.5;  // Å

 private:
  bool is_complete(const Structure& structure) const;
  bool is_complete(const Domain& domain) const;
  void build(const Structure& structure, GpuNeighborArrays& arrays);
  void build(const Domain& domain, const int64_t* ids, GpuNeighborArrays& arrays);
  struct DeviceBoxes {
    GpuMemory::Buffer home, start, members, along;
  };
  DeviceBoxes send(const Boxes& boxes, const int32_t* periodic, GpuNeighborArrays& arrays);
  // Edges; calls refuse() if two atoms are too close. How many edges lead to each place of a domain.
  template <class F>
  std::vector<int64_t> find(int64_t num_atoms, GpuNeighborArrays& arrays, const F& refuse);
  void find_vectors(GpuNeighborArrays& arrays, const long long* types, const double* watched);
  void launch(void* kernel, int64_t threads, GpuNeighborArrays& arrays) const;

  GpuModel& model_;
  double cutoff_;
  void *count_, *find_, *pair_up_, *count_back_, *find_back_, *vectors_;
  GpuMemory::Buffer center_, neighbor_, first_edge_, order_, shift_, vec_, close_;
  GpuMemory::Buffer from_, to_, first_in_, watched_;  // of a domain: the places of edges, the first one to each atom
  GpuAtomOrder inner_first_;
  std::vector<double> watched_squares_;
  std::vector<int64_t> first_;  // edge of each atom
  int64_t num_edges_ = 0;
  // What the list was built for.
  bool built_ = false, of_domain_ = false;
  std::vector<double> positions_;
  Lattice lattice_{};
  std::array<bool, 3> periodic_{};
};

}  // namespace equipot
