// Products of a small matrix with many rows of a wide array: what linear maps of features consist of. No torch here.
#pragma once

#include <cstdint>

#include "lanes.h"

namespace equipot::inline EQUIPOT_INSTRUCTIONS {

// c(i, m, :) += sum over k of a(i, m, k) b(k, :), for all rows i and components m, with k < depth. Element (i, m, k) of a
// lies at i * a_row + m * a_component + k * a_step; rows of b and c are contiguous. Each sum has the order of k, however
// rows are cut into tiles. `fresh`: c(i, m, :) = the sum.
template <class T>
struct Product {
  int64_t rows, depth, columns;
  const T* a;
  int64_t a_row, a_step;
  const T* b;
  int64_t b_row;
  T* c;
  int64_t c_row;
  int64_t components = 1, a_component = 0, c_component = 0;
  bool packed = false, fresh = false;  // whether b is as pack() leaves it
};

// Columns that a tile takes from j on.
template <class T>
constexpr int64_t columns_at_once(int64_t j, int64_t columns) {
  return j + 2 * lanes<T> <= columns ? 2 * lanes<T> : j + lanes<T> <= columns ? lanes<T> : 1;
}

// (depth, columns) -> to: the columns of a tile lie together, in the order in which it reads them.
template <class T>
void pack(int64_t depth, int64_t columns, const T* from, T* to) {
  for (int64_t j = 0, width; j < columns; j += width) {
    width = columns_at_once<T>(j, columns);
    for (int64_t k = 0; k < depth; ++k, to += width) std::copy_n(from + k * columns + j, width, to);
  }
}

// R rows of M components, from row i and component m.
template <int R, int M, int U, class V, class T>
INLINE void product_tile(const Product<T>& p, int64_t i, int64_t m, int64_t j) {
  constexpr int width = sizeof(V) / sizeof(T);
  constexpr int ahead = 32;  // rows of b: few rows of a are done sooner than the next ones come from a far cache
  const int64_t b_row = p.packed ? U * width : p.b_row;
  const T *a = p.a + i * p.a_row + m * p.a_component, *b = p.b + (p.packed ? j * p.depth : j);
  T* c = p.c + i * p.c_row + m * p.c_component + j;
  V sum[R * M][U];
  UNROLL for (int r = 0; r < R * M; ++r)
    UNROLL for (int u = 0; u < U; ++u)
      sum[r][u] = p.fresh ? V{} : load<V>(c + r / M * p.c_row + r % M * p.c_component + u * width);
  for (int64_t k = 0; k < p.depth; ++k) {
    V row[U];
    UNROLL for (int u = 0; u < U; ++u) row[u] = load<V>(b + k * b_row + u * width);
    UNROLL for (int n = 0; n < U * width; n += 64 / int(sizeof(T))) __builtin_prefetch(b + (k + ahead) * b_row + n);
    UNROLL for (int r = 0; r < R * M; ++r) {
      const V factor = a[r / M * p.a_row + r % M * p.a_component + k * p.a_step] - V{};
      UNROLL for (int u = 0; u < U; ++u) multiply_add(sum[r][u], factor, row[u]);
    }
  }
  UNROLL for (int r = 0; r < R * M; ++r)
    UNROLL for (int u = 0; u < U; ++u) store(c + r / M * p.c_row + r % M * p.c_component + u * width, sum[r][u]);
}

// All components of rows i, i + 1, ... R at a time while there are as many; returns the first that is left.
template <int R, int M, int U, class V, class T>
INLINE int64_t product_rows(const Product<T>& p, int64_t i, int64_t m, int64_t j) {
  for (; i + R <= p.rows; i += R) product_tile<R, M, U, V>(p, i, m, j);
  return i;
}

template <int U, class V, class T>
INLINE void product_columns(const Product<T>& p, int64_t j) {
  constexpr bool many = vector_registers >= 32;  // with U = 2 the sums, a row of b and a factor fill the registers
  int64_t m = 0;
  // Few rows: of several components, which the same weights mix.
  if (p.rows % (many ? 12 : 6) != 0) {
    for (; m + 5 <= p.components; m += 5) {
      int64_t i = 0;
      if constexpr (many) i = product_rows<2, 5, U, V>(p, i, m, j);
      product_rows<1, 5, U, V>(p, i, m, j);
    }
    for (; m + 3 <= p.components; m += 3) {
      int64_t i = 0;
      if constexpr (many) i = product_rows<4, 3, U, V>(p, i, m, j);
      i = product_rows<2, 3, U, V>(p, i, m, j);
      product_rows<1, 3, U, V>(p, i, m, j);
    }
  }
  for (; m < p.components; ++m) {
    int64_t i = product_rows<many ? 12 : 6, 1, U, V>(p, 0, m, j);
    if constexpr (many) i = product_rows<6, 1, U, V>(p, i, m, j);
    i = product_rows<3, 1, U, V>(p, i, m, j);
    product_rows<1, 1, U, V>(p, i, m, j);
  }
}

template <class T>
void add_product(const Product<T>& product) {
  const Product<T> p = product;  // a local copy cannot alias what is stored
  int64_t j = 0;
  for (; j + 2 * lanes<T> <= p.columns; j += 2 * lanes<T>) product_columns<2, Vector<T>>(p, j);
  for (; j + lanes<T> <= p.columns; j += lanes<T>) product_columns<1, Vector<T>>(p, j);
  for (; j < p.columns; ++j) product_columns<1, T>(p, j);
}

}  // namespace equipot
