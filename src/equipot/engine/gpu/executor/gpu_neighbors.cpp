#include "gpu_neighbors.h"

#include "gpu_device.h"

namespace equipot {
namespace {

constexpr const char* text = R"(
// Calls work(neighbor, shift, squared distance) for each atom within the limit of atom i; the same order every time.
template <class F>
__device__ __forceinline__ void for_neighbors(const GpuNeighborArrays& a, Index i, const F& work) {
  const Index* const at = a.along + 3 * i;
  for (Index x = -a.reach[0]; x <= a.reach[0]; ++x)
    for (Index y = -a.reach[1]; y <= a.reach[1]; ++y)
      for (Index z = -a.reach[2]; z <= a.reach[2]; ++z) {
        Index other[3] = {at[0] + x, at[1] + y, at[2] + z}, image[3] = {0, 0, 0};
        bool inside = true;
        for (int k = 0; k < 3; ++k) {
          if (a.periodic[k]) {
            image[k] = other[k] >= 0 ? other[k] / a.number[k] : -((a.number[k] - 1 - other[k]) / a.number[k]);
            other[k] -= image[k] * a.number[k];
          } else {
            inside = inside && other[k] >= 0 && other[k] < a.number[k];
          }
        }
        if (!inside) continue;
        const Index box = (other[0] * a.number[1] + other[1]) * a.number[2] + other[2];
        for (Index n = a.start[box]; n < a.start[box + 1]; ++n) {
          const Index j = a.members[n];
          int shift[3];
          for (int k = 0; k < 3; ++k) shift[k] = int(image[k]) + int(a.home[3 * i + k]) - int(a.home[3 * j + k]);
          double vec[3];
          const double squared = vector_of(a, i, j, shift, vec);
          if (squared > a.limit || (i == j && image[0] == 0 && image[1] == 0 && image[2] == 0)) continue;
          work(j, shift, squared);
        }
      }
}

// How many neighbors each atom has; -1: one of them is too close.
extern "C" __global__ void __launch_bounds__(128) count_neighbors(const GpuNeighborArrays a) {
  const Index i = Index(blockIdx.x) * 128 + threadIdx.x;
  if (i >= a.num_atoms) return;
  Index count = 0;
  bool close = false;
  for_neighbors(a, i, [&](Index, const int*, double squared) { ++count, close = close || squared < a.least; });
  a.counts[i] = close ? -1 : count;
}

extern "C" __global__ void __launch_bounds__(128) find_neighbors(const GpuNeighborArrays a) {
  const Index i = Index(blockIdx.x) * 128 + threadIdx.x;
  if (i >= a.num_atoms) return;
  Index e = a.first_edge[i];
  for_neighbors(a, i, [&](Index j, const int* shift, double) {
    a.center[e] = i, a.neighbor[e] = j;
    for (int k = 0; k < 3; ++k) a.shift[3 * e + k] = shift[k];
    ++e;
  });
}

// The edge back, among those of the neighbor.
extern "C" __global__ void __launch_bounds__(128) pair_up(const GpuNeighborArrays a) {
  const Index e = Index(blockIdx.x) * 128 + threadIdx.x;
  if (e >= a.num_edges) return;
  const Index i = a.center[e], j = a.neighbor[e];
  Index back = -1;
  for (Index n = a.first_edge[j]; n < a.first_edge[j + 1]; ++n)
    if (a.neighbor[n] == i && a.shift[3 * n] == -a.shift[3 * e] && a.shift[3 * n + 1] == -a.shift[3 * e + 1] &&
        a.shift[3 * n + 2] == -a.shift[3 * e + 2])
      back = n;
  a.order[e] = back;
}

extern "C" __global__ void __launch_bounds__(128) edge_vectors(const GpuNeighborArrays a) {
  const Index e = Index(blockIdx.x) * 128 + threadIdx.x;
  if (e >= a.num_edges) return;
  const double squared = vector_of(a, a.center[e], a.neighbor[e], a.shift + 3 * e, a.vec + 3 * e);
  if (!(squared >= a.least)) *a.close = 1;
}
)";

// The opposite edge has the opposite vector, to the last bit.
constexpr const char* vector_text = R"(
__device__ __forceinline__ double vector_of(const GpuNeighborArrays& a, Index i, Index j, const int* shift, double* vec) {
  double squared = 0;
  for (int k = 0; k < 3; ++k) {
    double sum = a.positions[3 * j + k] - a.positions[3 * i + k];
    for (int b = 0; b < 3; ++b) sum = fma(double(shift[b]), a.lattice[3 * b + k], sum);
    vec[k] = sum;
    squared = fma(sum, sum, squared);
  }
  return squared;
}
)";

constexpr double least_distance = 0.1;  // Å, of require_distance

}  // namespace

GpuNeighbors::GpuNeighbors(GpuModel& model, double cutoff) : model_(model), cutoff_(cutoff) {
  const std::string source = std::string(gpu_precision_text(false)) + gpu_common_text + gpu_neighbor_arrays_text + vector_text + text;
  GpuDevice& device = model_.device();
  count_ = device.compile(source, "count_neighbors"), find_ = device.compile(source, "find_neighbors");
  pair_up_ = device.compile(source, "pair_up"), vectors_ = device.compile(source, "edge_vectors");
  close_ = model_.memory().take(sizeof(double));
}

void GpuNeighbors::launch(void* kernel, int64_t threads, GpuNeighborArrays& arrays) const {
  if (threads > 0) model_.device().launch(kernel, {(threads + 127) / 128, 1, 1}, 128, &arrays);
}

void GpuNeighbors::update(const Structure& structure) {
  GpuMemory& memory = model_.memory();
  GpuNeighborArrays arrays{};
  arrays.num_atoms = structure.num_atoms, arrays.least = least_distance * least_distance;
  const GpuMemory::Buffer positions = memory.up(structure.positions, size_t(3 * structure.num_atoms) * sizeof(double));
  arrays.positions = static_cast<const double*>(positions.get());
  if (!is_complete(structure)) build(structure, arrays);
  const Lattice lattice = completed(structure.cell, structure.periodic);
  for (int k = 0; k < 9; ++k) arrays.lattice[k] = structure.periodic[k / 3] ? lattice[size_t(k / 3)][size_t(k % 3)] : 0;
  const auto numbers = [](const GpuMemory::Buffer& buffer) { return static_cast<long long*>(buffer.get()); };
  arrays.center = numbers(center_), arrays.neighbor = numbers(neighbor_), arrays.shift = static_cast<int*>(shift_.get());
  arrays.vec = static_cast<double*>(vec_.get()), arrays.close = static_cast<double*>(close_.get());
  arrays.num_edges = num_edges_;
  model_.device().zero(close_.get(), sizeof(double));
  launch(vectors_, num_edges_, arrays);
}

// Whether no pair outside of the list can have come within the cutoff. Of the change of cell and positions, a deformation D
// shortens distances by no more than |D - 1|, what is left moves two atoms by no more than twice the farthest.
bool GpuNeighbors::is_complete(const Structure& structure) const {
  if (!built_ || structure.num_atoms == 0 || positions_.size() != size_t(3 * structure.num_atoms)) return false;
  for (int a = 0; a < 3; ++a)
    if (periodic_[size_t(a)] != (structure.periodic[a] != 0)) return false;
  const Lattice now = completed(structure.cell, structure.periodic);
  std::array<double, 9> deformation{};  // positions before times it are those now
  double strain = 0;
  const double volume = dot(lattice_[0], cross(lattice_[1], lattice_[2]));
  for (int k = 0; k < 3; ++k)
    for (int b = 0; b < 3; ++b) {
      for (size_t a = 0; a < 3; ++a)
        deformation[size_t(3 * k + b)] += cross(lattice_[(a + 1) % 3], lattice_[(a + 2) % 3])[size_t(k)] / volume * now[a][size_t(b)];
      const double off = deformation[size_t(3 * k + b)] - (k == b);
      strain += off * off;
    }
  double farthest = 0;
  for (int64_t i = 0; i < structure.num_atoms; ++i) {
    double squared = 0;
    for (int b = 0; b < 3; ++b) {
      double moved = structure.positions[3 * i + b];
      for (int k = 0; k < 3; ++k) moved -= positions_[size_t(3 * i + k)] * deformation[size_t(3 * k + b)];
      squared += moved * moved;
    }
    if (!(squared < 1e12)) return false;  // no number
    farthest = std::max(farthest, squared);
  }
  return (1 - std::sqrt(strain)) * (cutoff_ + skin) - 2 * std::sqrt(farthest) > cutoff_ + 1e-9;
}

void GpuNeighbors::refuse(const Structure& structure) const {
  find_neighbors(structure.num_atoms, structure.positions, structure.cell, structure.periodic, cutoff_);  // says of which atoms
  throw std::domain_error("two atoms are closer than " + short_text(least_distance) + " A, or positions are not finite");
}

// The boxes are filled on the host, pairs are found on the device; the host waits once, to know how many there are.
void GpuNeighbors::build(const Structure& structure, GpuNeighborArrays& arrays) {
  built_ = false;
  GpuMemory& memory = model_.memory();
  const double reach = cutoff_ + skin;
  const Boxes boxes(structure.num_atoms, structure.positions, structure.cell, structure.periodic, reach);
  const GpuMemory::Buffer home = memory.up(boxes.home), start = memory.up(boxes.start);
  const GpuMemory::Buffer members = memory.up(boxes.members), along = memory.up(boxes.along);
  const auto numbers = [](const GpuMemory::Buffer& buffer) { return static_cast<long long*>(buffer.get()); };
  arrays.home = static_cast<const double*>(home.get());
  arrays.start = numbers(start), arrays.members = numbers(members), arrays.along = numbers(along);
  for (int a = 0; a < 3; ++a) {
    arrays.number[a] = boxes.number[size_t(a)], arrays.reach[a] = boxes.reach[size_t(a)];
    arrays.periodic[a] = structure.periodic[a] != 0;
    for (int k = 0; k < 3; ++k) arrays.lattice[3 * a + k] = arrays.periodic[a] ? boxes.lattice[size_t(a)][size_t(k)] : 0;
  }
  arrays.limit = reach * reach;
  const std::vector<int64_t> first = count(structure, arrays);
  num_edges_ = first.back();
  first_edge_ = memory.up(first);
  const size_t size = size_t(num_edges_) * sizeof(long long);
  center_ = memory.take(size), neighbor_ = memory.take(size), order_ = memory.take(size);
  shift_ = memory.take(3 * size_t(num_edges_) * sizeof(int)), vec_ = memory.take(3 * size_t(num_edges_) * sizeof(double));
  arrays.first_edge = numbers(first_edge_), arrays.center = numbers(center_), arrays.neighbor = numbers(neighbor_);
  arrays.order = numbers(order_), arrays.shift = static_cast<int*>(shift_.get()), arrays.num_edges = num_edges_;
  launch(find_, structure.num_atoms, arrays);
  launch(pair_up_, num_edges_, arrays);
  positions_.assign(structure.positions, structure.positions + 3 * structure.num_atoms);
  lattice_ = boxes.lattice;
  for (int a = 0; a < 3; ++a) periodic_[size_t(a)] = structure.periodic[a] != 0;
  built_ = true;
}

// The first edge of each atom, and behind the last.
std::vector<int64_t> GpuNeighbors::count(const Structure& structure, GpuNeighborArrays& arrays) {
  GpuMemory& memory = model_.memory();
  const auto n = size_t(structure.num_atoms);
  const GpuMemory::Buffer counts = memory.take(n * sizeof(long long));
  arrays.counts = static_cast<long long*>(counts.get());
  launch(count_, structure.num_atoms, arrays);
  auto* const found = static_cast<long long*>(memory.host(n * sizeof(long long)));
  if (n > 0) memory.down(found, counts.get(), n * sizeof(long long));
  memory.synchronize();
  std::vector<int64_t> first(n + 1, 0);
  for (size_t i = 0; i < n; ++i) {
    if (found[i] < 0) refuse(structure);
    first[i + 1] = first[i] + found[i];
  }
  return first;
}

}  // namespace equipot
