// All pairs of atoms within a distance, images included: a cell list for any lattice.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

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

// Sorted by center. Throws std::domain_error for a cell without volume or positions that are not finite.
inline NeighborList find_neighbors(int64_t num_atoms, const double* positions, const double* cell,
                                   const int32_t* periodic, double cutoff) {
  const Lattice lattice = completed(cell, periodic);
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
  std::vector<double> fractional(size_t(3 * num_atoms)), home(size_t(3 * num_atoms));
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
  std::array<int64_t, 3> boxes{}, reach{};
  for (int a = 0; a < 3; ++a) {
    height[a] = width[a] / std::sqrt(dot(inverse[a], inverse[a]));
    boxes[a] = int64_t(std::clamp(height[a] / cutoff, 1.0, 256.0));
  }
  while (boxes[0] * boxes[1] * boxes[2] > 4 * num_atoms + 64) *std::max_element(boxes.begin(), boxes.end()) /= 2;
  int64_t visited = 1;
  for (int a = 0; a < 3; ++a) {
    const double all = std::ceil(cutoff / height[a] * double(boxes[a]));
    reach[a] = int64_t(std::min(all, periodic[a] ? 1001.0 : double(boxes[a] - 1)));
    visited *= 2 * reach[a] + 1;
  }
  if (visited > 10000000 || *std::max_element(reach.begin(), reach.end()) > 1000)
    throw std::domain_error("the cell is too thin for the model's cutoff");
  const auto box_along = [&](int64_t i, int a) {
    return std::clamp<int64_t>(int64_t((fractional[3 * i + a] - low[a]) / width[a] * double(boxes[a])), 0, boxes[a] - 1);
  };
  const auto box_of = [&](int64_t x, int64_t y, int64_t z) { return (x * boxes[1] + y) * boxes[2] + z; };
  std::vector<int64_t> start(size_t(boxes[0] * boxes[1] * boxes[2] + 1), 0), members(static_cast<size_t>(num_atoms)),
      box(static_cast<size_t>(num_atoms));
  for (int64_t i = 0; i < num_atoms; ++i) {
    box[i] = box_of(box_along(i, 0), box_along(i, 1), box_along(i, 2));
    ++start[box[i] + 1];
  }
  for (size_t b = 1; b < start.size(); ++b) start[b] += start[b - 1];
  std::vector<int64_t> next(start.begin(), start.end() - 1);
  for (int64_t i = 0; i < num_atoms; ++i) members[next[box[i]]++] = i;

  NeighborList list;
  const double limit = cutoff * cutoff;
  for (int64_t i = 0; i < num_atoms; ++i) {
    std::array<int64_t, 3> at;
    for (int a = 0; a < 3; ++a) at[a] = box_along(i, a);
    std::array<int64_t, 3> step;
    for (step[0] = -reach[0]; step[0] <= reach[0]; ++step[0])
      for (step[1] = -reach[1]; step[1] <= reach[1]; ++step[1])
        for (step[2] = -reach[2]; step[2] <= reach[2]; ++step[2]) {
          std::array<int64_t, 3> other, image{};
          bool inside = true;
          for (int a = 0; a < 3; ++a) {
            other[a] = at[a] + step[a];
            if (periodic[a]) {
              image[a] = other[a] >= 0 ? other[a] / boxes[a] : -((boxes[a] - 1 - other[a]) / boxes[a]);
              other[a] -= image[a] * boxes[a];
            } else {
              inside = inside && other[a] >= 0 && other[a] < boxes[a];
            }
          }
          if (!inside) continue;
          const int64_t b = box_of(other[0], other[1], other[2]);
          for (int64_t n = start[b]; n < start[b + 1]; ++n) {
            const int64_t j = members[n];
            std::array<double, 3> vec;
            for (int k = 0; k < 3; ++k) {
              vec[k] = positions[3 * j + k] - positions[3 * i + k];
              for (int a = 0; a < 3; ++a)
                vec[k] += (double(image[a]) + home[3 * i + a] - home[3 * j + a]) * (periodic[a] ? lattice[a][k] : 0.0);
            }
            const double squared = dot(vec, vec);
            if (squared > limit || (i == j && image == std::array<int64_t, 3>{})) continue;
            require_distance(i, j, squared);  // now: of many atoms in one place there would be too many edges
            list.center.push_back(i), list.neighbor.push_back(j);
            list.edge_vec.insert(list.edge_vec.end(), vec.begin(), vec.end());
          }
        }
  }
  return list;
}

}  // namespace equipot
