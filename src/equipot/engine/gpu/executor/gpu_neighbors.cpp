#include "gpu_neighbors.h"

#include "gpu_device.h"

namespace equipot {
namespace {

constexpr const char* text = R"(
// Calls work(neighbor, shift, squared distance) for each place within the limit of place i; the same order every time. Without
// `atoms` each atom has one place, and its number.
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
          if (a.atoms != nullptr && a.atoms[j] < 0) continue;
          int shift[3];
          for (int k = 0; k < 3; ++k) shift[k] = int(image[k]) + int(a.home[3 * i + k]) - int(a.home[3 * j + k]);
          double vec[3];
          const double squared = vector_of(a, i, j, shift, vec);
          if (squared > a.limit || (i == j && image[0] == 0 && image[1] == 0 && image[2] == 0)) continue;
          work(j, shift, squared);
        }
      }
}

__device__ __forceinline__ Index atom_at(const GpuNeighborArrays& a, Index place) {
  return a.atoms == nullptr ? place : a.atoms[place];
}

// How many neighbors each atom has; -1: one of them is too close. Of a domain, whether other domains own one of them.
extern "C" __global__ void __launch_bounds__(128) count_neighbors(const GpuNeighborArrays a) {
  const Index i = Index(blockIdx.x) * 128 + threadIdx.x;
  if (i >= a.num_centers || atom_at(a, i) < 0) return;
  Index count = 0;
  bool close = false, border = false;
  for_neighbors(a, i, [&](Index j, const int*, double squared) {
    ++count, close = close || squared < a.least, border = border || atom_at(a, j) >= a.num_owned;
  });
  a.counts[atom_at(a, i)] = close ? -1 : count;
  if (a.at_border != nullptr) a.at_border[atom_at(a, i)] = border;
}

extern "C" __global__ void __launch_bounds__(128) find_neighbors(const GpuNeighborArrays a) {
  const Index i = Index(blockIdx.x) * 128 + threadIdx.x;
  if (i >= a.num_centers || atom_at(a, i) < 0) return;
  Index e = a.first_edge[atom_at(a, i)];
  for_neighbors(a, i, [&](Index j, const int* shift, double) {
    a.center[e] = atom_at(a, i), a.neighbor[e] = atom_at(a, j);
    a.from[e] = i, a.to[e] = j;
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

// How many centers have each place among their neighbors.
extern "C" __global__ void __launch_bounds__(128) count_centers(const GpuNeighborArrays a) {
  const Index p = Index(blockIdx.x) * 128 + threadIdx.x;
  if (p >= a.num_places) return;
  Index count = 0;
  if (a.atoms[p] >= 0) for_neighbors(a, p, [&](Index i, const int*, double) { count += i < a.num_centers; });
  a.back_counts[p] = count;
}

// The edges to each place.
extern "C" __global__ void __launch_bounds__(128) find_centers(const GpuNeighborArrays a) {
  const Index p = Index(blockIdx.x) * 128 + threadIdx.x;
  if (p >= a.num_places || a.atoms[p] < 0) return;
  Index n = a.first_back[p];
  for_neighbors(a, p, [&](Index i, const int*, double) {
    if (i >= a.num_centers) return;
    Index e = a.first_edge[a.atoms[i]];
    while (a.to[e] != p) ++e;
    a.order[n++] = e;
  });
}

extern "C" __global__ void __launch_bounds__(128) edge_vectors(const GpuNeighborArrays a) {
  const Index e = Index(blockIdx.x) * 128 + threadIdx.x;
  if (e >= a.num_edges) return;
  const double squared = vector_of(a, a.from[e], a.to[e], a.shift + 3 * e, a.vec + 3 * e);
  if (!(squared >= a.least)) a.close[0] = 1;
  if (a.watched != nullptr && squared < a.watched[a.types[a.center[e]] * a.num_types + a.types[a.neighbor[e]]]) a.close[1] = 1;
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
  count_back_ = device.compile(source, "count_centers"), find_back_ = device.compile(source, "find_centers");
  close_ = model_.memory().keep(2 * sizeof(double));
}

void GpuNeighbors::launch(void* kernel, int64_t threads, GpuNeighborArrays& arrays) const {
  if (threads > 0) model_.device().launch(kernel, {(threads + 127) / 128, 1, 1}, 128, &arrays);
}

namespace {

long long* numbers(const GpuMemory::Buffer& buffer) { return static_cast<long long*>(buffer.get()); }

}  // namespace

void GpuNeighbors::update(const Structure& structure, const long long* types) {
  GpuMemory& memory = model_.memory();
  GpuNeighborArrays arrays{};
  arrays.num_centers = structure.num_atoms, arrays.least = least_distance * least_distance;
  const GpuMemory::Buffer positions = memory.up(structure.positions, size_t(3 * structure.num_atoms) * sizeof(double));
  arrays.positions = static_cast<const double*>(positions.get());
  if (!is_complete(structure)) build(structure, arrays);
  const Lattice lattice = completed(structure.cell, structure.periodic);
  for (int k = 0; k < 9; ++k) arrays.lattice[k] = structure.periodic[k / 3] ? lattice[size_t(k / 3)][size_t(k % 3)] : 0;
  find_vectors(arrays, types, structure.watched);
}

void GpuNeighbors::update(const Domain& domain, const int64_t* ids, const long long* types) {
  GpuMemory& memory = model_.memory();
  GpuNeighborArrays arrays{};
  arrays.num_centers = domain.num_local, arrays.num_places = domain.num_places, arrays.num_owned = domain.num_owned;
  arrays.least = least_distance * least_distance;
  const GpuMemory::Buffer positions = memory.up(domain.positions, size_t(3 * domain.num_places) * sizeof(double));
  arrays.positions = static_cast<const double*>(positions.get());
  if (!is_complete(domain)) build(domain, ids, arrays);
  find_vectors(arrays, types, domain.watched);
}

void GpuNeighbors::find_vectors(GpuNeighborArrays& arrays, const long long* types, const double* watched) {
  if (watched != nullptr) {
    const int64_t num_types = model_.num_types();
    std::vector<double> squares(watched, watched + num_types * num_types);
    for (double& distance : squares) distance *= distance;
    if (squares != watched_squares_) watched_ = model_.memory().keep(squares), watched_squares_ = squares;
    arrays.watched = static_cast<const double*>(watched_.get()), arrays.types = types, arrays.num_types = num_types;
  }
  arrays.center = numbers(center_), arrays.neighbor = numbers(neighbor_), arrays.shift = static_cast<int*>(shift_.get());
  arrays.from = of_domain_ ? numbers(from_) : arrays.center, arrays.to = of_domain_ ? numbers(to_) : arrays.neighbor;
  arrays.vec = static_cast<double*>(vec_.get()), arrays.close = static_cast<double*>(close_.get());
  arrays.num_edges = num_edges_;
  model_.device().zero(close_.get(), 2 * sizeof(double));
  launch(vectors_, num_edges_, arrays);
}

// Whether no pair outside of the list can have come within the cutoff. Of the change of cell and positions, a deformation D
// shortens distances by no more than |D - 1|, what is left moves two atoms by no more than twice the farthest.
bool GpuNeighbors::is_complete(const Structure& structure) const {
  if (!built_ || of_domain_ || structure.anew || structure.num_atoms == 0 || positions_.size() != size_t(3 * structure.num_atoms)) return false;
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

bool GpuNeighbors::is_complete(const Domain& domain) const {
  if (!built_ || !of_domain_ || !domain.moved || positions_.size() != size_t(3 * domain.num_places)) return false;
  double farthest = 0;
  for (size_t n = 0; n < positions_.size(); n += 3) {
    double squared = 0;
    for (size_t k = 0; k < 3; ++k) squared += (domain.positions[n + k] - positions_[n + k]) * (domain.positions[n + k] - positions_[n + k]);
    if (!(squared < 1e12)) return false;  // no number
    farthest = std::max(farthest, squared);
  }
  return 2 * std::sqrt(farthest) < skin - 1e-9;
}

void GpuNeighbors::refuse(const Structure& structure) const {
  find_neighbors(structure.num_atoms, structure.positions, structure.cell, structure.periodic, cutoff_);  // says of which atoms
  throw std::domain_error("two atoms are closer than " + short_text(least_distance) + " A, or positions are not finite");
}

void GpuNeighbors::refuse(const Domain& domain, const int64_t* ids) const {
  find_neighbors(domain, ids, cutoff_);
  throw std::domain_error("two atoms are closer than " + short_text(least_distance) + " A, or positions are not finite");
}

// The boxes are filled on the host, pairs are found on the device; the host waits once, to know how many there are.
void GpuNeighbors::build(const Structure& structure, GpuNeighborArrays& arrays) {
  built_ = false;
  const Boxes boxes(structure.num_atoms, structure.positions, structure.cell, structure.periodic, cutoff_ + skin);
  of_domain_ = false;
  const DeviceBoxes sent = send(boxes, structure.periodic, arrays);
  find(structure.num_atoms, arrays, [&] { refuse(structure); });
  launch(pair_up_, num_edges_, arrays);
  positions_.assign(structure.positions, structure.positions + 3 * structure.num_atoms);
  lattice_ = boxes.lattice;
  for (int a = 0; a < 3; ++a) periodic_[size_t(a)] = structure.periodic[a] != 0;
  built_ = true;
}

// Edges lead from owned atoms only, so those to an atom are not those back: they are looked for from its places.
void GpuNeighbors::build(const Domain& domain, const int64_t* ids, GpuNeighborArrays& arrays) {
  built_ = false;
  GpuMemory& memory = model_.memory();
  const Boxes boxes = boxes_of(domain, ids, cutoff_ + skin);
  of_domain_ = true;
  const auto places = size_t(domain.num_places);
  const GpuMemory::Buffer atoms = memory.up(domain.atoms, places * sizeof(int64_t));
  arrays.atoms = numbers(atoms);
  const DeviceBoxes sent = send(boxes, open_space, arrays);
  const std::vector<int64_t> counts = find(domain.num_atoms, arrays, [&] { refuse(domain, ids); });
  // Where the edges to each place begin: those to an atom's places lie one behind the other.
  std::vector<int64_t> first(size_t(domain.num_atoms) + 1, 0), first_back(places);
  for (size_t p = 0; p < places; ++p)
    if (domain.atoms[p] >= 0) first[size_t(domain.atoms[p]) + 1] += counts[p];
  for (size_t i = 1; i < first.size(); ++i) first[i] += first[i - 1];
  first_in_ = memory.keep(first);
  for (size_t p = 0; p < places; ++p)
    if (domain.atoms[p] >= 0) first_back[p] = first[size_t(domain.atoms[p])], first[size_t(domain.atoms[p])] += counts[p];
  const GpuMemory::Buffer begin = memory.up(first_back);
  arrays.first_back = numbers(begin);
  launch(find_back_, domain.num_places, arrays);
  positions_.assign(domain.positions, domain.positions + 3 * domain.num_places);
  built_ = true;
}

GpuNeighbors::DeviceBoxes GpuNeighbors::send(const Boxes& boxes, const int32_t* periodic, GpuNeighborArrays& arrays) {
  GpuMemory& memory = model_.memory();
  DeviceBoxes sent{memory.up(boxes.home), memory.up(boxes.start), memory.up(boxes.members), memory.up(boxes.along)};
  arrays.home = static_cast<const double*>(sent.home.get());
  arrays.start = numbers(sent.start), arrays.members = numbers(sent.members), arrays.along = numbers(sent.along);
  for (int a = 0; a < 3; ++a) {
    arrays.number[a] = boxes.number[size_t(a)], arrays.reach[a] = boxes.reach[size_t(a)];
    arrays.periodic[a] = periodic[a] != 0;
    for (int k = 0; k < 3; ++k) arrays.lattice[3 * a + k] = arrays.periodic[a] ? boxes.lattice[size_t(a)][size_t(k)] : 0;
  }
  arrays.limit = (cutoff_ + skin) * (cutoff_ + skin);
  return sent;
}

template <class F>
std::vector<int64_t> GpuNeighbors::find(int64_t num_atoms, GpuNeighborArrays& arrays, const F& refuse) {
  GpuMemory& memory = model_.memory();
  const auto n = size_t(num_atoms), places = size_t(arrays.num_places);
  const GpuMemory::Buffer counts = memory.take(n * sizeof(long long)), back = memory.take(places * sizeof(long long));
  const GpuMemory::Buffer at_border = memory.take(of_domain_ ? size_t(arrays.num_owned) * sizeof(long long) : 0);
  arrays.counts = numbers(counts), arrays.back_counts = numbers(back), arrays.at_border = of_domain_ ? numbers(at_border) : nullptr;
  if (of_domain_ && n > 0) model_.device().zero(counts.get(), n * sizeof(long long));  // of atoms that are not owned
  launch(count_, arrays.num_centers, arrays), launch(count_back_, arrays.num_places, arrays);
  const auto fetch = [&](const GpuMemory::Buffer& from, size_t count) {
    auto* const to = static_cast<long long*>(memory.host(std::max<size_t>(count, 1) * sizeof(long long)));
    if (count > 0) memory.down(to, from.get(), count * sizeof(long long));
    return to;
  };
  const long long *found = fetch(counts, n), *found_back = fetch(back, places);
  const long long* const found_border = fetch(at_border, of_domain_ ? size_t(arrays.num_owned) : 0);
  memory.synchronize();
  if (of_domain_) inner_first_.set(model_, std::vector<bool>(found_border, found_border + arrays.num_owned));
  first_.assign(n + 1, 0);
  for (size_t i = 0; i < n; ++i) {
    if (found[i] < 0) refuse();
    first_[i + 1] = first_[i] + found[i];
  }
  num_edges_ = first_.back();
  first_edge_ = memory.keep(first_);
  const size_t size = size_t(num_edges_) * sizeof(long long);
  center_ = memory.keep(size), neighbor_ = memory.keep(size), order_ = memory.keep(size);
  if (of_domain_) from_ = memory.keep(size), to_ = memory.keep(size);
  shift_ = memory.keep(3 * size_t(num_edges_) * sizeof(int)), vec_ = memory.keep(3 * size_t(num_edges_) * sizeof(double));
  arrays.first_edge = numbers(first_edge_), arrays.center = numbers(center_), arrays.neighbor = numbers(neighbor_);
  arrays.from = of_domain_ ? numbers(from_) : arrays.center, arrays.to = of_domain_ ? numbers(to_) : arrays.neighbor;
  arrays.order = numbers(order_), arrays.shift = static_cast<int*>(shift_.get()), arrays.num_edges = num_edges_;
  launch(find_, arrays.num_centers, arrays);
  return {found_back, found_back + places};
}

}  // namespace equipot
