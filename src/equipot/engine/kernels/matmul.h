// Products of a small matrix with many rows of a wide array: what linear maps of features consist of. No torch here.
#pragma once

#include <cstdint>

#include "lanes.h"

namespace equipot::inline EQUIPOT_INSTRUCTIONS {

// c(i, :) += sum over k of a(i, k) b(k, :), for all rows i, with k < depth. Element (i, k) of a lies at
// i * a_row + k * a_step; rows of b and c are contiguous. Each sum has the order of k, however rows are cut into tiles.
template <class T>
struct Product {
  int64_t rows, depth, columns;
  const T* a;
  int64_t a_row, a_step;
  const T* b;
  int64_t b_row;
  T* c;
  int64_t c_row;
};

template <int R, int U, class V, class T>
INLINE void product_tile(const Product<T>& p, int64_t i, int64_t j) {
  constexpr int width = sizeof(V) / sizeof(T);
  const T *a = p.a + i * p.a_row, *b = p.b + j;
  T* c = p.c + i * p.c_row + j;
  V sum[R][U];
  UNROLL for (int r = 0; r < R; ++r) UNROLL for (int u = 0; u < U; ++u) sum[r][u] = load<V>(c + r * p.c_row + u * width);
  for (int64_t k = 0; k < p.depth; ++k) {
    V row[U];
    UNROLL for (int u = 0; u < U; ++u) row[u] = load<V>(b + k * p.b_row + u * width);
    UNROLL for (int r = 0; r < R; ++r) {
      const V factor = a[r * p.a_row + k * p.a_step] - V{};
      UNROLL for (int u = 0; u < U; ++u) multiply_add(sum[r][u], factor, row[u]);
    }
  }
  UNROLL for (int r = 0; r < R; ++r) UNROLL for (int u = 0; u < U; ++u) store(c + r * p.c_row + u * width, sum[r][u]);
}

template <int U, class V, class T>
INLINE void product_columns(const Product<T>& p, int64_t j) {
  constexpr int R = vector_registers >= 32 ? 12 : 6;  // with U = 2 the sums, a row of b and a factor fill the registers
  int64_t i = 0;
  for (; i + R <= p.rows; i += R) product_tile<R, U, V>(p, i, j);
  for (; i + 3 <= p.rows; i += 3) product_tile<3, U, V>(p, i, j);
  for (; i < p.rows; ++i) product_tile<1, U, V>(p, i, j);
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
