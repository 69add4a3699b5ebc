// Linear maps that mix the channels of each irrep, on rows of features; see equipot/ops/linear.py.
//
//   F(x, W, g) = sum_n sum_blocks sum_m  x[n, m, :] W[block] g[n, m, :]
//
// F is linear in each argument: dF/dg is the map, dF/dx the transposed map, dF/dW the outer sum.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "matmul.h"

namespace equipot::inline EQUIPOT_INSTRUCTIONS {

// One irrep: each of its components goes from `channels_in` to `channels_out` channels by the same weights.
struct LinearBlock {
  int64_t components, channels_in, channels_out, in_offset, out_offset;
};
static_assert(sizeof(LinearBlock) == 5 * sizeof(int64_t));

// The weights of one map lie one after the other, (channels_in, channels_out) for each block.
struct LinearMap {
  std::vector<LinearBlock> blocks;
  int64_t dim_in = 0, dim_out = 0, num_weights = 0;
};

// From B blocks. Throws std::runtime_error if one does not fit the rows, or the weights are of another number.
inline LinearMap make_linear_map(const LinearBlock* rows, int64_t count, int64_t dim_in, int64_t dim_out,
                                 int64_t num_weights) {
  LinearMap map{{rows, rows + count}, dim_in, dim_out, 0};
  for (const LinearBlock& b : map.blocks) {
    const auto [least, most] = std::minmax({b.components, b.channels_in, b.channels_out, b.in_offset, b.out_offset});
    if (least < 0 || most > INT32_MAX || b.in_offset + b.components * b.channels_in > dim_in ||
        b.out_offset + b.components * b.channels_out > dim_out)
      throw std::runtime_error("equipot::linear: a block does not fit features of " + std::to_string(dim_in) + " and " +
                                  std::to_string(dim_out) + " numbers");
    map.num_weights += b.channels_in * b.channels_out;
  }
  if (map.num_weights != num_weights)
    throw std::runtime_error("equipot::linear: blocks use " + std::to_string(map.num_weights) + " weights of " +
                                std::to_string(num_weights));
  return map;
}

inline LinearMap transposed(LinearMap map) {
  std::swap(map.dim_in, map.dim_out);
  for (LinearBlock& b : map.blocks) {
    std::swap(b.channels_in, b.channels_out);
    std::swap(b.in_offset, b.out_offset);
  }
  return map;
}

// The weights of transposed(map), of each of `count` sets.
template <class T>
std::vector<T> transposed_weights(const LinearMap& map, const T* weights, int64_t count) {
  std::vector<T> result(size_t(count * map.num_weights));
  T* to = result.data();
  for (int64_t n = 0; n < count; ++n)
    for (const LinearBlock& b : map.blocks) {
      for (int64_t i = 0; i < b.channels_in; ++i)
        for (int64_t o = 0; o < b.channels_out; ++o) to[o * b.channels_in + i] = weights[i * b.channels_out + o];
      to += b.channels_in * b.channels_out;
      weights += b.channels_in * b.channels_out;
    }
  return result;
}

// Whether each number of a row comes from one block, so that a product need not be added to zeros.
inline bool covers_once(const LinearMap& map) {
  std::vector<int> times(size_t(map.dim_out), 0);
  for (const LinearBlock& b : map.blocks)
    for (int64_t k = 0; k < b.components * b.channels_out; ++k) ++times[size_t(b.out_offset + k)];
  return std::all_of(times.begin(), times.end(), [](int n) { return n == 1; });
}

// y += map(x), for contiguous rows; `fresh`: y = map(x), if the map covers it once. `packed`: the weights of each block
// are as pack() leaves them.
template <class T>
void add_linear(const LinearMap& map, const T* weights, int64_t rows, const T* x, T* y, bool packed = false,
                bool fresh = false) {
  for (const LinearBlock& b : map.blocks) {
    add_product<T>({.rows = rows, .depth = b.channels_in, .columns = b.channels_out,
                    .a = x + b.in_offset, .a_row = map.dim_in, .a_step = 1, .b = weights, .b_row = b.channels_out,
                    .c = y + b.out_offset, .c_row = map.dim_out, .components = b.components,
                    .a_component = b.channels_in, .c_component = b.channels_out, .packed = packed, .fresh = fresh});
    weights += b.channels_in * b.channels_out;
  }
}

// grad += the outer sum, for contiguous rows.
template <class T>
void add_outer_sum(const LinearMap& map, int64_t rows, const T* x, const T* g, T* grad) {
  for (const LinearBlock& b : map.blocks) {
    for (int64_t m = 0; m < b.components; ++m)
      add_product<T>({.rows = b.channels_in, .depth = rows, .columns = b.channels_out,
                      .a = x + b.in_offset + m * b.channels_in, .a_row = 1, .a_step = map.dim_in,
                      .b = g + b.out_offset + m * b.channels_out, .b_row = map.dim_out,
                      .c = grad, .c_row = b.channels_out});
    grad += b.channels_in * b.channels_out;
  }
}

}  // namespace equipot
