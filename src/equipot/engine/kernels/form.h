// The form every derivative of the convolution comes from, and its two passes over the edges.
//
//   F(x, Y, w, g) = sum_e < g[center(e)], w_e * (C Y_e) x[neighbor(e)] >
//
// F is linear in each argument, so every derivative is F with one argument left out, or replaced:
//
//   convolution       dF/dg                                   center pass
//   backward          dF/dx, dF/dY, dF/dw                     neighbor pass
//   double backward   the same of F(x',Y,w,g) + F(x,Y',w,g)   center pass (d/dg) and
//                     + F(x,Y,w',g), the "mixed" form;        neighbor pass (d/dx, d/dY, d/dw)
//                     x', Y', w' are cotangents
//
// The center pass visits edges grouped by center and adds to the row of the center; the neighbor pass visits
// them grouped by neighbor and adds to the row of the neighbor. So no two threads ever write one row, nothing
// is atomic, each sum has a fixed order, and nothing of size edges x paths x channels x components is stored.
//
// This header and its implementation know nothing of torch: the LAMMPS plugin compiles them as they are.
#pragma once

#include <cstdint>
#include <vector>

#include "instructions.h"

namespace equipot::inline EQUIPOT_INSTRUCTIONS {

constexpr int max_degree = 4;  // of features; harmonics may have any degree

// One product path: `channels` channels of an input block, times weights, into an output block.
struct Path {
  int64_t channels;
  int64_t in_offset;
  int64_t weight_offset;
  int64_t out_offset;
  int64_t out_stride;  // between components of the output
};

// One Clebsch-Gordan block C. Per edge, M = C Y is a small matrix shared by all channels and all its paths.
struct Coupling {
  int l_in;
  int l_out;
  bool diagonal;  // M is a number times the identity (l_sh = 0): one element instead of a square
  int first_element;  // of M among the matrices of all couplings
  int first_term, last_term;  // in `terms`
  std::vector<Path> paths;
};

// One nonzero coefficient: M[element] += value * Y[harmonic].
template <class T>
struct Term {
  int element;
  int harmonic;
  T value;
};

template <class T>
struct Plan {
  std::vector<Coupling> couplings;
  std::vector<Term<T>> terms;  // by coupling
  std::vector<Term<T>> by_harmonic;  // the same, for the gradient with respect to Y
  std::vector<Term<T>> assigning;  // the same terms, the first of every element of M ...
  std::vector<Term<T>> adding;  // ... and the others, so that M is computed without first being zeroed
  int64_t num_elements = 0;
  int64_t dim_in = 0, dim_sh = 0, dim_out = 0, num_weights = 0;
  int64_t widest_block = 0;  // components x channels of the largest input block
};

// Weights as functions of the distance: quintic B-splines on equal intervals of (0, cutoff). Interval k takes rows
// k ... k + 5; the last five rows are zero, so that value and four derivatives vanish at the cutoff.
template <class T>
struct RadialTable {
  const T* rows = nullptr;  // (intervals + 5, num_weights); null: there is no table
  int64_t intervals = 0;
  T cutoff = 0;
};

// All arrays are row-major. Null cotangents: the plain form. Only the arrays a pass needs must be set; gradients
// that are null are not computed.
//
// With a table, w_e = w(length_e, table), and F is linear in the table. `length` and `table` take the place of `w`;
// the cotangent of the weights is w' = length' dw/dlength + w(length, table'), where table' may be null (zero).
template <class T>
struct Arrays {
  const T* x = nullptr;  // (atoms, dim_in)
  const T* sh = nullptr;  // (edges, dim_sh)
  const T* w = nullptr;  // (edges, num_weights)
  const T* g = nullptr;  // (atoms, dim_out)
  const T* x_cotangent = nullptr;
  const T* sh_cotangent = nullptr;
  const T* w_cotangent = nullptr;
  const int64_t* center = nullptr;  // (edges)
  const int64_t* neighbor = nullptr;  // (edges)
  T* grad_g = nullptr;  // center pass; zeroed by the caller
  int64_t first_center = 0;  // whose row grad_g begins with
  T* grad_x = nullptr;  // neighbor pass; zeroed by the caller
  bool add_geometry = false;  // grad_sh and grad_length are added to, not written
  T* grad_sh = nullptr;  // neighbor pass; every row visited is written
  T* grad_w = nullptr;  // neighbor pass; every row visited is written
  RadialTable<T> table;
  const T* table_cotangent = nullptr;  // like table.rows
  const T* length = nullptr;  // (edges)
  const T* length_cotangent = nullptr;  // (edges)
  T* grad_length = nullptr;  // neighbor pass; every element visited is written
  T* grad_table = nullptr;  // neighbor pass; like table.rows; zeroed by the caller, one for each call at a time
};

// Visit `count` edges, edges[0], edges[1], ...; all edges of one center (neighbor) belong in the same call.
template <class T>
void center_pass(const Plan<T>& plan, const Arrays<T>& arrays, const int64_t* edges, int64_t count);

template <class T>
void neighbor_pass(const Plan<T>& plan, const Arrays<T>& arrays, const int64_t* edges, int64_t count);

}  // namespace equipot
