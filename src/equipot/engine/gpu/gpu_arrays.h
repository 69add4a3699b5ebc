// What the GPU kernels are given, once for the host and, as text, once for the device.
#pragma once

#include "quote.h"

namespace equipot {

// As `Arrays` in form.h, with edges grouped: those of group n are order[start[n]] ... order[start[n + 1] - 1].
// `records` (edges, gpu_record_width) stand for sh, length, center and neighbor in passes that are `by_records`.
// `shares` takes what each warp adds to an edge's grad_sh and grad_length. Where the edges of an atom or interval are
// shared out in parts, each part has its own grad_g and grad_x, and `grad_rows`, what it adds to the six rows of the
// table that the interval takes. `items`, of the center pass: only these groups are taken, in one
// part; null: all of them. (The other passes have no register to spare for it.)
EQUIPOT_DECLARE_AND_QUOTE(gpu_arrays_text,
template <class T>
struct GpuArrays {
  const T *x, *sh, *w, *g, *x_cotangent, *sh_cotangent, *w_cotangent;
  const T *table, *length, *table_cotangent, *length_cotangent, *records;
  const long long *center, *neighbor, *order, *start, *items;
  T *grad_g, *grad_x, *grad_w, *shares, *grad_rows;
  long long num_edges, intervals, parts;
  double cutoff;
};)

// What records are made of, and where they go.
EQUIPOT_DECLARE_AND_QUOTE(gpu_record_arrays_text,
template <class T>
struct GpuRecordArrays {
  const T *sh, *length;
  const long long *center, *neighbor;
  T* records;
  long long num_edges, intervals;
  double cutoff;
};)

// As atom_product.h. Without `center` all edges have one matrix. `add`: a product is added to what is in `out`.
EQUIPOT_DECLARE_AND_QUOTE(gpu_product_arrays_text,
template <class T>
struct GpuProductArrays {
  const T *matrices, *left, *right;
  const long long *center, *order, *start;
  T* out;
  long long num_edges, num_atoms, parts;
  bool add;
};)

// Rows of `values` (columns wide) are grouped by segment; `out` (parts, segments, columns).
EQUIPOT_DECLARE_AND_QUOTE(gpu_sum_arrays_text,
template <class T>
struct GpuSumArrays {
  const T* values;
  const long long *order, *start;
  T* out;
  long long segments, columns, parts;
};)

// As gate.h: x (rows, dim_in); gradient (rows, dim_out) for the gate's gradient, whose `out` is as wide as x. For the gradients
// of that, cotangent (rows, dim_in), `out` by x and `by_gradient` (rows, dim_out).
EQUIPOT_DECLARE_AND_QUOTE(gpu_gate_arrays_text,
template <class T>
struct GpuGateArrays {
  const T *x, *gradient, *cotangent;
  T *out, *by_gradient;
};)

}  // namespace equipot
