// Kernels on rows of atoms and edges that are the same for all models: what they are given, and their text (gpu_rows_code.cpp).
#pragma once

#include <string>

#include "quote.h"

namespace equipot {

// y (rows, y_row) = map(x) (rows, x_row), or added to it; with `order`, of the rows order[n] >= 0, whose types are the same
// for each gpu_tile_rows of them. An item is a component of an irrep, up to gpu_tile_columns of its channels; it takes the
// sources first_source ... last_source - 1. `activate`: of SiLU(x); `slope_at`: times the slope of SiLU at these (rows, y_row);
// `type_rows` (2 num_types, y_row): rows are edges, and to each are added that of its center's type and, behind those, that of
// its neighbor's. Rows of x and of y may lie in two arrays: sources and items that are `second` are columns of the second.
EQUIPOT_DECLARE_AND_QUOTE(gpu_linear_arrays_text,
struct GpuLinearItem {
  long long out_offset, columns, weight_column, weight_row, component, first_source, last_source, second;
};
struct GpuLinearSource {
  long long in_offset, channels, weight_offset, second;
};
template <class T>
struct GpuLinearArrays {
  const T *x, *second_x, *weights, *bias, *slope_at, *type_rows;
  T *y, *second_y;
  const GpuLinearItem* items;
  const GpuLinearSource* sources;
  const long long *order, *types, *neighbor_types, *center, *neighbor;
  long long rows, x_row, second_x_row, y_row, second_y_row, set, biased, num_types;
  bool add, add_second, activate;
};)

constexpr long long gpu_tile_rows = 32, gpu_tile_columns = 64, gpu_tile_threads = 128;

// Of all other kernels; each says in the text what it takes. `add`, `add_third`: to what is in `out`, `third`,
// otherwise it is overwritten.
EQUIPOT_DECLARE_AND_QUOTE(gpu_row_arrays_text,
template <class T>
struct GpuRowArrays {
  const T *a, *b, *c;
  T *out, *other, *third;
  const long long *types, *neighbor_types, *index, *start, *sender;
  long long rows, width, stride, more;
  double factor, cutoff, begin;
  int power;
  bool add, add_third;
};)

// Scale and shift, and sums of what belongs to edges; in float64.
EQUIPOT_DECLARE_AND_QUOTE(gpu_atom_arrays_text,
template <class T>
struct GpuAtomArrays {
  const T* rows;
  T* slopes;
  const long long *types, *first_edge, *order, *start;
  const unsigned char* owned;
  const double *scale, *shift, *vec, *gradient, *pair_energy;
  double *energies, *forces, *virials, *partials;
  long long num_atoms, num_computed;
};)

constexpr long long gpu_atoms_of_partial = 256;  // whose energies and virials are added by one thread

std::string gpu_rows_code(bool single);

}  // namespace equipot
