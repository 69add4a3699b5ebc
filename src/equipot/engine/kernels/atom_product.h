// A matrix per atom and channel, acting on the features of the atom's edges: Allegro's tensor product.
//
//   F(A, x, g) = sum_e sum_kic g[e,k,c] A[center(e),k,i,c] x[e,i,c]
//
// F is linear in each argument. Its derivatives are three products, each of which has the other two as its own:
//
//   dF/dg   product             y[e,k] = sum_i A[k,i] x[e,i]
//   dF/dx   transposed product  y[e,i] = sum_k A[k,i] g[e,k]
//   dF/dA   outer sum           B[n,k,i] = sum of g[e,k] x[e,i] over the edges e of atom n
//
// All arrays are row-major with channels last. Everything runs along channels; a tile is a few edges by a few
// rows, so that what is loaded is used several times. No torch here: the LAMMPS plugin compiles it as it is.
#pragma once

#include <cstdint>

#include "lanes.h"

namespace equipot::inline EQUIPOT_INSTRUCTIONS {

constexpr int tile_edges = 4;
constexpr int tile_rows = vector_registers >= 32 ? 4 : 2;

// The matrix elements of one atom: element (row, column, channel) at row * row_stride + column * column_stride
// + channel. The transposed product swaps the strides.
struct MatrixShape {
  int64_t rows, columns, row_stride, column_stride, channels;
};

// Calls tile(integral constant `step`, position) over 0 ... count - 1: whole tiles first, then one by one.
template <int step, class F>
INLINE void in_tiles(int64_t count, const F& tile) {
  int64_t at = 0;
  for (; at + step <= count; at += step) tile.template operator()<step>(at);
  for (; at < count; ++at) tile.template operator()<1>(at);
}

// Calls tile(V{}, channel) for every vector of channels, then for every single channel that remains.
template <class T, class F>
INLINE void along_channels(int64_t channels, const F& tile) {
  int64_t c = 0;
  for (; c + lanes<T> <= channels; c += lanes<T>) tile.template operator()<Vector<T>>(c);
  for (; c < channels; ++c) tile.template operator()<T>(c);
}

// y[e, row] = sum over columns of A[row, column] x[e, column], for the edges of one atom.
template <class T>
void atom_product(const T* matrix, const MatrixShape& shape, const T* x, T* y, const int64_t* edges, int64_t count) {
  const int64_t channels = shape.channels, x_row = shape.columns * channels, y_row = shape.rows * channels;
  along_channels<T>(channels, [&]<class V>(int64_t c) {
    in_tiles<tile_edges>(count, [&]<int E>(int64_t first) {
      in_tiles<tile_rows>(shape.rows, [&]<int R>(int64_t row) {
        V sum[R][E]{};
        for (int64_t i = 0; i < shape.columns; ++i) {
          V a[R];
          UNROLL for (int r = 0; r < R; ++r)
            a[r] = load<V>(matrix + (row + r) * shape.row_stride + i * shape.column_stride + c);
          UNROLL for (int e = 0; e < E; ++e) {
            const V feature = load<V>(x + edges[first + e] * x_row + i * channels + c);
            UNROLL for (int r = 0; r < R; ++r) multiply_add(sum[r][e], a[r], feature);
          }
        }
        UNROLL for (int e = 0; e < E; ++e)
          UNROLL for (int r = 0; r < R; ++r)
            store(y + edges[first + e] * y_row + (row + r) * channels + c, sum[r][e]);
      });
    });
  });
}

// B[row, column] = sum over the edges of one atom of left[e, row] right[e, column].
template <class T>
void atom_outer_sum(T* matrix, const MatrixShape& shape, const T* left, const T* right, const int64_t* edges,
                    int64_t count) {
  const int64_t channels = shape.channels, left_row = shape.rows * channels, right_row = shape.columns * channels;
  along_channels<T>(channels, [&]<class V>(int64_t c) {
    in_tiles<tile_rows>(shape.rows, [&]<int R>(int64_t row) {
      in_tiles<tile_rows>(shape.columns, [&]<int S>(int64_t column) {
        V sum[R][S]{};
        for (int64_t e = 0; e < count; ++e) {
          V a[R];
          UNROLL for (int r = 0; r < R; ++r) a[r] = load<V>(left + edges[e] * left_row + (row + r) * channels + c);
          UNROLL for (int s = 0; s < S; ++s) {
            const V b = load<V>(right + edges[e] * right_row + (column + s) * channels + c);
            UNROLL for (int r = 0; r < R; ++r) multiply_add(sum[r][s], a[r], b);
          }
        }
        UNROLL for (int r = 0; r < R; ++r)
          UNROLL for (int s = 0; s < S; ++s)
            store(matrix + (row + r) * shape.row_stride + (column + s) * shape.column_stride + c, sum[r][s]);
      });
    });
  });
}

}  // namespace equipot
