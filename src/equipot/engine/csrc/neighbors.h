// All pairs of atoms within a distance, images included: a cell list for any lattice.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "evaluator.h"
#include "text.h"

namespace equipot {

struct NeighborList {
  std::vector<int64_t> center, neighbor;
  std::vector<double> edge_vec;  // (E, 3) Å
};

using Lattice = std::array<std::array<double, 3>, 3>;  // rows are vectors

inline std::array<double, 3> cross(const std::array<double, 3>& a, const std::array<double, 3>& b) {
  return {a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]};
}

inline double dot(const std::array<double, 3>& a, const std::array<double, 3>& b) {
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

inline void require_places(const Domain& domain) {
  std::vector<uint8_t> seen(size_t(domain.num_owned), 0);
  for (int64_t place = 0; place < domain.num_places; ++place) {
    const int64_t atom = domain.atoms[place], end = place < domain.num_local ? domain.num_owned : domain.num_atoms;
    if (atom < -1 || atom >= end || (place < domain.num_local && atom >= 0 && seen[size_t(atom)]++))
      throw std::invalid_argument("place " + std::to_string(place) + " has atom " + std::to_string(atom) + "; of " +
                                  std::to_string(domain.num_atoms) + " atoms, each of the " + std::to_string(domain.num_owned) +
                                  " owned ones must be at one of the first " + std::to_string(domain.num_local) + " places, no other there");
  }
  if (std::find(seen.begin(), seen.end(), 0) != seen.end())
    throw std::invalid_argument("an owned atom is at none of the first " + std::to_string(domain.num_local) + " places");
}

// Throws std::domain_error for an edge of this squared length between two atoms.
inline void require_distance(int64_t center, int64_t neighbor, double squared) {
  constexpr double least = 0.1;  // Å, MIN_DISTANCE of equipot/data/frames.py
  if (squared >= least * least && squared < 1e12) return;
  throw std::domain_error("atoms " + std::to_string(center) + " and " + std::to_string(neighbor) + " are " +
                          short_text(std::sqrt(squared), 4) + " A apart; expected at least " + short_text(least));
}

// Directions that are not periodic get a unit vector across the others, to count boxes along.
inline Lattice completed(const double* cell, const int32_t* periodic) {
  Lattice lattice{};
  int fixed = 0;
  for (int a = 0; a < 3; ++a)
    if (periodic[a]) std::copy_n(cell + 3 * a, 3, lattice[a].begin()), ++fixed;
  for (int a = 0; a < 3; ++a) {
    if (periodic[a]) continue;
    std::array<double, 3> best{};
    if (fixed == 2) {
      best = cross(lattice[(a + 1) % 3], lattice[(a + 2) % 3]);
    } else {
      // Of the axes, the one that sticks out most from what is there.
      double most = -1;
      for (int axis = 0; axis < 3; ++axis) {
        std::array<double, 3> unit{};
        unit[axis] = 1;
        for (int b = 0; b < 3; ++b)
          if (const double norm = dot(lattice[b], lattice[b]); norm > 0) {
            const double part = dot(unit, lattice[b]) / norm;
            for (int k = 0; k < 3; ++k) unit[k] -= part * lattice[b][k];
          }
        if (dot(unit, unit) > most) most = dot(unit, unit), best = unit;
      }
    }
    const double norm = std::sqrt(dot(best, best));
    for (int k = 0; k < 3; ++k) lattice[a][k] = norm > 0 ? best[k] / norm : 0;
    ++fixed;
  }
  return lattice;
}

// Atoms in boxes, so that those within a cutoff are found in a few of them.
struct Boxes {
  Lattice lattice;
  std::array<int64_t, 3> number{}, reach{};  // along each vector; how many the cutoff reaches over
  std::vector<int64_t> start, members;  // atoms of box b are members[start[b]] ... members[start[b + 1] - 1]
  std::vector<int64_t> along;  // (num_atoms, 3) of each atom's box
  std::vector<double> home;  // (num_atoms, 3) the lattice translation that brings an atom into the cell, where it is periodic

  // Throws std::domain_error for a cell without volume or positions that are not finite.
  Boxes(int64_t num_atoms, const double* positions, const double* cell, const int32_t* periodic, double cutoff);
};

inline Boxes::Boxes(int64_t num_atoms, const double* positions, const double* cell, const int32_t* periodic, double cutoff)
    : lattice(completed(cell, periodic)), home(size_t(3 * num_atoms)) {
  const double volume = std::abs(dot(lattice[0], cross(lattice[1], lattice[2])));
  double scale = 1;
  for (const auto& vector : lattice) scale *= std::sqrt(dot(vector, vector));
  if (!(volume > 1e-9 * scale) || !std::isfinite(volume))
    throw std::domain_error("the lattice vectors of the periodic directions are zero, parallel or not finite");
  Lattice inverse;  // rows: reciprocal vectors, without 2 pi
  for (int a = 0; a < 3; ++a) {
    inverse[a] = cross(lattice[(a + 1) % 3], lattice[(a + 2) % 3]);
    const double norm = dot(lattice[a], inverse[a]);
    for (double& x : inverse[a]) x /= norm;
  }
  // Fractional coordinates; periodic ones within the cell, with the lattice translation that brought them there.
  std::vector<double> fractional(size_t(3 * num_atoms));
  std::array<double, 3> low{}, width{};
  for (int a = 0; a < 3; ++a) {
    double least = INFINITY, most = -INFINITY;
    for (int64_t i = 0; i < num_atoms; ++i) {
      double f = 0;
      for (int k = 0; k < 3; ++k) f += positions[3 * i + k] * inverse[a][k];
      if (!std::isfinite(f) || std::abs(f) > 1e9)
        throw std::domain_error("the position of atom " + std::to_string(i) + " is not finite, or far outside the cell");
      if (periodic[a]) {
        const double shift = std::floor(f);
        home[3 * i + a] = shift;
        f -= shift;
      }
      fractional[3 * i + a] = f;
      least = std::min(least, f), most = std::max(most, f);
    }
    low[a] = periodic[a] || num_atoms == 0 ? 0 : least;
    width[a] = periodic[a] || num_atoms == 0 ? 1 : std::max(most - least, 1e-9);
  }
  // Boxes at least as wide as the cutoff where there is room, not many more than atoms; how many of them the cutoff
  // reaches over.
  std::array<double, 3> height{};
  for (int a = 0; a < 3; ++a) {
    height[a] = width[a] / std::sqrt(dot(inverse[a], inverse[a]));
    number[a] = int64_t(std::clamp(height[a] / cutoff, 1.0, 256.0));
  }
  while (number[0] * number[1] * number[2] > 4 * num_atoms + 64) *std::max_element(number.begin(), number.end()) /= 2;
  int64_t visited = 1;
  for (int a = 0; a < 3; ++a) {
    const double all = std::ceil(cutoff / height[a] * double(number[a]));
    reach[a] = int64_t(std::min(all, periodic[a] ? 1001.0 : double(number[a] - 1)));
    visited *= 2 * reach[a] + 1;
  }
  if (visited > 10000000 || *std::max_element(reach.begin(), reach.end()) > 1000)
    throw std::domain_error("the cell is too thin for the model's cutoff");
  const auto box_along = [&](int64_t i, int a) {
    return std::clamp<int64_t>(int64_t((fractional[3 * i + a] - low[a]) / width[a] * double(number[a])), 0, number[a] - 1);
  };
  start.assign(size_t(number[0] * number[1] * number[2] + 1), 0), members.resize(size_t(num_atoms)), along.resize(size_t(3 * num_atoms));
  std::vector<int64_t> box(static_cast<size_t>(num_atoms));
  for (int64_t i = 0; i < num_atoms; ++i) {
    for (int a = 0; a < 3; ++a) along[size_t(3 * i + a)] = box_along(i, a);
    box[size_t(i)] = (along[size_t(3 * i)] * number[1] + along[size_t(3 * i + 1)]) * number[2] + along[size_t(3 * i + 2)];
    ++start[size_t(box[size_t(i)] + 1)];
  }
  for (size_t b = 1; b < start.size(); ++b) start[b] += start[b - 1];
  std::vector<int64_t> next(start.begin(), start.end() - 1);
  for (int64_t i = 0; i < num_atoms; ++i) members[size_t(next[size_t(box[size_t(i)])]++)] = i;
}

// Calls work(j, vec, squared) for each atom j within `cutoff` of atom i, images included; vec leads from i to j.
template <class F>
void for_neighbors(const Boxes& boxes, const double* positions, const int32_t* periodic, double cutoff, int64_t i, const F& work) {
  const Lattice& lattice = boxes.lattice;
  const std::vector<double>& home = boxes.home;
  const int64_t* at = boxes.along.data() + 3 * i;
  const std::array<int64_t, 3>&reach = boxes.reach, &number = boxes.number;
  std::array<int64_t, 3> step;
  for (step[0] = -reach[0]; step[0] <= reach[0]; ++step[0])
    for (step[1] = -reach[1]; step[1] <= reach[1]; ++step[1])
      for (step[2] = -reach[2]; step[2] <= reach[2]; ++step[2]) {
        std::array<int64_t, 3> other, image{};
        bool inside = true;
        for (int a = 0; a < 3; ++a) {
          other[a] = at[a] + step[a];
          if (periodic[a]) {
            image[a] = other[a] >= 0 ? other[a] / number[a] : -((number[a] - 1 - other[a]) / number[a]);
            other[a] -= image[a] * number[a];
          } else {
            inside = inside && other[a] >= 0 && other[a] < number[a];
          }
        }
        if (!inside) continue;
        const auto b = size_t((other[0] * number[1] + other[1]) * number[2] + other[2]);
        for (int64_t n = boxes.start[b]; n < boxes.start[b + 1]; ++n) {
          const int64_t j = boxes.members[size_t(n)];
          std::array<double, 3> vec;
          for (int k = 0; k < 3; ++k) {
            vec[k] = positions[3 * j + k] - positions[3 * i + k];
            for (int a = 0; a < 3; ++a)
              vec[k] += (double(image[a]) + home[3 * i + a] - home[3 * j + a]) * (periodic[a] ? lattice[a][k] : 0.0);
          }
          const double squared = dot(vec, vec);
          if (squared > cutoff * cutoff || (i == j && image == std::array<int64_t, 3>{})) continue;
          work(j, vec, squared);
        }
      }
}

// Sorted by center. Throws as Boxes, and for atoms that coincide.
inline NeighborList find_neighbors(int64_t num_atoms, const double* positions, const double* cell,
                                   const int32_t* periodic, double cutoff) {
  const Boxes boxes(num_atoms, positions, cell, periodic, cutoff);
  NeighborList list;
  for (int64_t i = 0; i < num_atoms; ++i)
    for_neighbors(boxes, positions, periodic, cutoff, i, [&](int64_t j, const std::array<double, 3>& vec, double squared) {
      require_distance(i, j, squared);  // now: of many atoms in one place there would be too many edges
      list.center.push_back(i), list.neighbor.push_back(j);
      list.edge_vec.insert(list.edge_vec.end(), vec.begin(), vec.end());
    });
  return list;
}

constexpr int32_t open_space[3] = {0, 0, 0};  // nothing is periodic

// Of the places of a domain; those that the model does not see lie where another is. Throws std::invalid_argument unless each owned
// atom is at one of the first `num_local` places, and nothing else is there.
inline Boxes boxes_of(const Domain& domain, const int64_t* ids, double cutoff) {
  require_places(domain);
  std::vector<double> positions(domain.positions, domain.positions + 3 * domain.num_places);
  int64_t seen = -1;
  for (int64_t place = 0; place < domain.num_places; ++place) {
    const int64_t atom = domain.atoms[place];
    for (int64_t k = 3 * place; k < 3 * place + 3; ++k) {
      if (atom < 0) positions[size_t(k)] = seen < 0 ? 0 : positions[size_t(3 * seen + k % 3)];
      else if (!(std::abs(positions[size_t(k)]) < 1e9))
        throw std::domain_error("the position of atom " + std::to_string(ids == nullptr ? atom : ids[atom]) +
                                " is not finite, or far outside the cell");
    }
    if (atom >= 0) seen = place;
  }
  return Boxes(domain.num_places, positions.data(), nullptr, open_space, cutoff);
}

// The same of a domain: edges from owned atoms, from places to any. Throws as boxes_of, too.
inline NeighborList find_neighbors(const Domain& domain, const int64_t* ids, double cutoff) {
  const Boxes boxes = boxes_of(domain, ids, cutoff);
  NeighborList list;
  for (int64_t place = 0; place < domain.num_local; ++place) {
    const int64_t i = domain.atoms[place];
    if (i < 0) continue;
    for_neighbors(boxes, domain.positions, open_space, cutoff, place, [&](int64_t to, const std::array<double, 3>& vec, double squared) {
      const int64_t j = domain.atoms[to];
      if (j < 0) return;
      require_distance(ids == nullptr ? i : ids[i], ids == nullptr ? j : ids[j], squared);
      list.center.push_back(i), list.neighbor.push_back(j);
      list.edge_vec.insert(list.edge_vec.end(), vec.begin(), vec.end());
    });
  }
  return list;
}

}  // namespace equipot
