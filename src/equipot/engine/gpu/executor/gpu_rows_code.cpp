#include "gpu_rows.h"

#include "gpu_device.h"

namespace equipot {
namespace {

constexpr const char* silu_text = R"(
__device__ __forceinline__ T sigmoid(T x) { return T(1) / (T(1) + exp(-x)); }
__device__ __forceinline__ T silu_slope(T x) { return sigmoid(x) * (1 + x * (1 - sigmoid(x))); }
)";

// Products of matrices by tiles in shared memory; a thread has four rows and every 16th column.
constexpr const char* linear_text = R"(
extern "C" __global__ void __launch_bounds__(128) linear_rows(const GpuLinearArrays<T> a) {
  constexpr int depth = 16;
  __shared__ T left[depth][tile_rows + 1], right[depth][tile_columns];
  const GpuLinearItem item = a.items[blockIdx.y];
  const Index first = Index(blockIdx.x) * tile_rows;
  const T* weights = a.weights + item.weight_column;
  if (a.order != nullptr) weights += load(a.types + load(a.order + first)) * a.set;
  const int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16;
  T sum[4][4] = {};
  for (Index s = item.first_source; s < item.last_source; ++s) {
    const GpuLinearSource source = a.sources[s];
    const Index x_row = source.second ? a.second_x_row : a.x_row;
    const T* const x = (source.second ? a.second_x : a.x) + source.in_offset + item.component * source.channels;
    const T* const w = weights + source.weight_offset;
    for (Index begin = 0; begin < source.channels; begin += depth) {
      for (int n = threadIdx.x; n < depth * tile_rows; n += 128) {
        const Index k = begin + n % depth, place = first + n / depth;
        const Index from = a.order != nullptr ? load(a.order + place) : place < a.rows ? place : -1;
        const T found = k < source.channels && from >= 0 ? load(x + from * x_row + k) : T(0);
        left[n % depth][n / depth] = a.activate ? found * sigmoid(found) : found;
      }
      for (int n = threadIdx.x; n < depth * tile_columns; n += 128) {
        const Index k = begin + n / tile_columns;
        const int to = n % tile_columns;
        right[n / tile_columns][to] = k < source.channels && to < item.columns ? load(w + k * item.weight_row + to) : T(0);
      }
      __syncthreads();
#pragma unroll
      for (int k = 0; k < depth; ++k)
#pragma unroll
        for (int r = 0; r < 4; ++r)
#pragma unroll
          for (int c = 0; c < 4; ++c) sum[r][c] += left[k][row + r] * right[k][column + 16 * c];
      __syncthreads();
    }
  }
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const Index place = first + row + r, to = a.order != nullptr ? load(a.order + place) : place < a.rows ? place : -1;
    if (to < 0) continue;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const Index at = item.out_offset + column + 16 * c;
      if (column + 16 * c >= item.columns) continue;
      T value = sum[r][c];
      if (at < a.biased) value += load(a.bias + at);
      if (a.type_rows != nullptr)
        value += load(a.type_rows + load(a.types + load(a.center + to)) * a.y_row + at) +
                 load(a.type_rows + (a.num_types + load(a.neighbor_types + load(a.neighbor + to))) * a.y_row + at);
      if (a.slope_at != nullptr) value *= silu_slope(load(a.slope_at + to * a.y_row + at));
      if (item.second)
        put(a.second_y + to * a.second_y_row + at, value, a.add_second);
      else
        put(a.y + to * a.y_row + at, value, a.add);
    }
  }
}
)";

// A thread for each number of a row; `i` is the row, `k` the column.
constexpr const char* row_text = R"(
#define EQUIPOT_FOR_NUMBERS(name)                                                    \
  extern "C" __global__ void __launch_bounds__(128) name(const GpuRowArrays<T> a) { \
    const Index n = Index(blockIdx.x) * 128 + threadIdx.x, i = n / a.width, k = n % a.width; \
    if (n >= a.rows * a.width) return;

EQUIPOT_FOR_NUMBERS(embed)  // a: rows of the types
  a.out[n] = load(a.a + load(a.types + i) * a.width + k);
}

EQUIPOT_FOR_NUMBERS(count_up)  // index 0, 1, 2, ... in place of numbers
  ((Index*)a.out)[n] = n;
}

EQUIPOT_FOR_NUMBERS(shift_down)  // of indices
  ((Index*)a.out)[n] = load(a.index + n) - a.more;
}

EQUIPOT_FOR_NUMBERS(add_rows)
  put(a.out + n, T(a.factor) * load(a.a + n), a.add);
}

EQUIPOT_FOR_NUMBERS(multiply_by_type)  // b: a factor of each type
  put(a.out + n, load(a.b + load(a.types + i)) * load(a.a + n), a.add);
}

EQUIPOT_FOR_NUMBERS(silu)
  a.out[n] = load(a.a + n) * sigmoid(load(a.a + n));
}

EQUIPOT_FOR_NUMBERS(silu_gradient)  // a: what silu was given, b: the gradient by what it gave
  put(a.out + n, load(a.b + n) * silu_slope(load(a.a + n)), a.add);
}

EQUIPOT_FOR_NUMBERS(gather_rows)
  a.out[n] = load(a.a + load(a.index + i) * a.width + k);
}

EQUIPOT_FOR_NUMBERS(add_copies)  // a: copies of rows; those of row index[i] of out are sender[start[i]] ... sender[start[i + 1] - 1]
  T sum = 0;
  for (Index m = load(a.start + i); m < load(a.start + i + 1); ++m) sum += load(a.a + load(a.sender + m) * a.width + k);
  a.out[load(a.index + i) * a.width + k] += sum;
}

EQUIPOT_FOR_NUMBERS(add_shares)  // a: (more, rows, width), of each warp
  T sum = 0;
  for (Index warp = 0; warp < a.more; ++warp) sum += load(a.a + warp * a.rows * a.width + n);
  put(a.out + i * a.stride + k, sum, a.add);
}

EQUIPOT_FOR_NUMBERS(sum_over_edges)  // a: rows of edges, by center
  T sum = 0;
  for (Index e = load(a.start + i); e < load(a.start + i + 1); ++e) sum += load(a.a + e * a.width + k);
  a.out[n] = T(a.factor) * sum;
}

EQUIPOT_FOR_NUMBERS(spread_over_edges)  // a: rows of atoms, index: centers
  put(a.out + n, T(a.factor) * load(a.a + load(a.index + i) * a.width + k), a.add);
}

)";

// Functions of the distance; see perceptron.h. a: distances, b: frequencies.
constexpr const char* radial_text = R"(
__device__ __forceinline__ void cutoff_function(int p, T start, T x, T& value, T& slope) {
  value = slope = 0;
  if (!(x < T(1))) return;
  if (p == 0) {
    value = x < start;
    if (x < start) return;
    const T x2 = x * x, s2 = start * start, left = 1 - x2, scale = 1 / ((1 - s2) * (1 - s2) * (1 - s2));
    value = left * left * (1 + 2 * x2 - 3 * s2) * scale;
    slope = 12 * x * left * (s2 - x2) * scale;
    return;
  }
  T below = 1;
  for (int k = 1; k < p; ++k) below *= x;
  const T a = T(0.5) * (p + 1) * (p + 2), b = T(p) * (p + 2), c = T(0.5) * p * (p + 1);
  value = 1 + below * x * (-a + x * (b - x * c));
  slope = below * (-a * p + x * (b * (p + 1) - x * (c * (p + 2))));
}

EQUIPOT_FOR_NUMBERS(bessel)
  const T x = load(a.a + i) / T(a.cutoff);
  T u, slope;
  cutoff_function(a.power, T(a.begin), x, u, slope);
  a.out[n] = u == 0 ? T(0) : sin(load(a.b + k) * x) * (T(a.factor) * u / x);
}

// A thread for each edge; c: the gradient (rows, more), added to column `stride - 1` of out (rows, stride).
EQUIPOT_FOR_NUMBERS(bessel_gradient)
  const T x = load(a.a + i) / T(a.cutoff);
  T u, slope;
  cutoff_function(a.power, T(a.begin), x, u, slope);
  if (u == 0) return;
  const T scale = T(a.factor) * u / x, scale_slope = T(a.factor) * (slope - u / x) / x;
  T sum = 0;
  for (Index m = 0; m < a.more; ++m) {
    const T frequency = load(a.b + m), at = frequency * x;
    sum += load(a.c + i * a.more + m) * (frequency * cos(at) * scale + sin(at) * scale_slope);
  }
  a.out[i * a.stride + a.stride - 1] += sum / T(a.cutoff);
}

)";

// Of strictly local models; see strictly_local.h.
constexpr const char* local_text = R"(
__device__ __forceinline__ const T* matrix_of_pair(const GpuRowArrays<T>& a, Index edge, Index size) {
  const Index pair = load(a.types + load(a.index + edge)) * a.power + load(a.neighbor_types + load(a.sender + edge));
  return a.b + pair * size;
}

EQUIPOT_FOR_NUMBERS(multiply_by_pair)  // a: (rows, stride), of which the first `more` count; b: (power^2, more, width)
  const T* const w = matrix_of_pair(a, i, a.more * a.width) + k;
  T sum = 0;
  for (Index m = 0; m < a.more; ++m) sum += load(a.a + i * a.stride + m) * load(w + m * a.width);
  put(a.out + n, sum, a.add);
}

EQUIPOT_FOR_NUMBERS(multiply_by_pair_back)  // a: (rows, more), out: the first `width` of (rows, stride)
  const T* const w = matrix_of_pair(a, i, a.more * a.width) + k * a.more;
  T sum = 0;
  for (Index m = 0; m < a.more; ++m) sum += load(a.a + i * a.more + m) * load(w + m);
  put(a.out + i * a.stride + k, sum, a.add);
}

EQUIPOT_FOR_NUMBERS(blend)  // factor (c + u b): u the envelope at distances a
  T u, slope;
  cutoff_function(a.power, 0, load(a.a + i) / T(a.cutoff), u, slope);
  const T x = a.c == nullptr ? T(0) : T(a.factor) * load(a.c + n);
  a.out[n] = T(a.factor) * u * load(a.b + n) + x;
}

// A warp for each row.
#define EQUIPOT_FOR_ROWS(name)                                                       \
  extern "C" __global__ void __launch_bounds__(128) name(const GpuRowArrays<T> a) { \
    const Index i = Index(blockIdx.x) * 4 + threadIdx.x / 32;                        \
    const int lane = threadIdx.x % 32;                                               \
    const bool is_row = i < a.rows;

// c: the gradient by what blend gave; out: by b, third: by what c was there; by distances it is added to column `stride - 1` of
// other (rows, stride).
EQUIPOT_FOR_ROWS(blend_gradient)
  T sum[1] = {0}, u = 0, slope = 0;
  if (is_row) cutoff_function(a.power, 0, load(a.a + i) / T(a.cutoff), u, slope);
  for (Index k = lane; is_row && k < a.width; k += 32) {
    const Index n = i * a.width + k;
    sum[0] += load(a.c + n) * load(a.b + n);
    const T gradient = T(a.factor) * load(a.c + n);
    put(a.out + n, u * gradient, a.add);
    if (a.third != nullptr) put(a.third + n, gradient, a.add_third);
  }
  const T total = warp_sums<1>(sum, lane);
  if (is_row && lane == 0) a.other[i * a.stride + a.stride - 1] += T(a.factor) * total * slope / T(a.cutoff);
}

__device__ __forceinline__ int degree_of(Index j) {
  int l = 0;
  while (Index(l + 1) * (l + 1) <= j) ++l;
  return l;
}

EQUIPOT_FOR_NUMBERS(weighted_harmonics)  // a: (rows, degrees, more), b: harmonics (rows, stride); width = degrees^2 more
  const Index j = k / a.more, channel = k % a.more;
  a.out[n] = load(a.a + (i * a.power + degree_of(j)) * a.more + channel) * load(a.b + i * a.stride + j);
}

EQUIPOT_FOR_NUMBERS(environment)  // the same, summed over the edges of each atom
  const Index j = k / a.more, channel = k % a.more;
  const int l = degree_of(j);
  T sum = 0;
  for (Index e = load(a.start + i); e < load(a.start + i + 1); ++e)
    sum += load(a.a + (e * a.power + l) * a.more + channel) * load(a.b + e * a.stride + j);
  a.out[n] = sum;
}

// c: the gradient, of each edge or, with `index`, of its center; out: by a; first columns of other (rows, begin): what is added
// to that by the harmonics.
EQUIPOT_FOR_ROWS(weighted_harmonics_gradient)
  const T* const gradient = a.c + (a.index != nullptr && is_row ? load(a.index + i) : i) * a.width;
  for (int l = 0; l < a.power; ++l) {
    const Index row = (i * a.power + l) * a.more;
    for (Index k = lane; is_row && k < a.more; k += 32) {
      T by_weight = 0;
      for (Index j = l * l; j < (l + 1) * (l + 1); ++j)
        by_weight += load(gradient + j * a.more + k) * load(a.b + i * a.stride + j);
      put(a.out + row + k, by_weight, a.add);
    }
    for (Index j = l * l; j < (l + 1) * (l + 1); ++j) {
      T sum[1] = {0};
      for (Index k = lane; is_row && k < a.more; k += 32)
        sum[0] += load(gradient + j * a.more + k) * load(a.a + row + k);
      const T total = warp_sums<1>(sum, lane);
      if (is_row && lane == 0) a.other[i * Index(a.begin) + j] += total;
    }
  }
}

// index: the weight's block of each component; `more` channels, `stride` numbers in a row of weights.
EQUIPOT_FOR_NUMBERS(weighted_sum)  // a: weights, b: tensors of edges, by center
  const Index channel = load(a.index + k / a.more) * a.more + k % a.more;
  T sum = 0;
  for (Index e = load(a.start + i); e < load(a.start + i + 1); ++e)
    sum += load(a.a + e * a.stride + channel) * load(a.b + e * a.width + k);
  a.out[n] = T(a.factor) * sum;
}

EQUIPOT_FOR_NUMBERS(weighted_sum_by_tensors)  // a: weights, c: the gradient, of atoms; sender: centers
  const Index channel = load(a.index + k / a.more) * a.more + k % a.more;
  put(a.out + n, T(a.factor) * load(a.c + load(a.sender + i) * a.width + k) * load(a.a + i * a.stride + channel), a.add);
}

EQUIPOT_FOR_NUMBERS(weighted_sum_by_weights)  // b: tensors, c: the gradient; width that of weights, stride of tensors
  const T* const gradient = a.c + load(a.sender + i) * a.stride;
  T sum = 0;
  for (Index j = 0; j < a.stride / a.more; ++j)
    if (load(a.index + j) == k / a.more) sum += load(gradient + j * a.more + k % a.more) * load(a.b + i * a.stride + j * a.more + k % a.more);
  put(a.out + n, T(a.factor) * sum, a.add);
}
)";

constexpr const char* atom_text = R"(
__device__ __forceinline__ double load_double(const double* from) { return __ldg(from); }

// Energies of atoms, and the gradient that the way back starts from.
extern "C" __global__ void __launch_bounds__(128) readout(const GpuAtomArrays<T> a) {
  const Index i = Index(blockIdx.x) * 128 + threadIdx.x;
  if (i >= a.num_atoms) return;
  const bool counts = i < a.num_computed && (a.owned == nullptr || a.owned[i]);
  const Index type = load(a.types + i);
  a.energies[i] = counts ? a.scale[type] * double(a.rows[i]) + a.shift[type] : 0.0;
  if (i < a.num_computed) a.slopes[i] = counts ? T(a.scale[type]) : T(0);
}

// A thread for each component: with g the gradient by an edge, the force of its center is +g, of its neighbor -g, the
// virial -vec g there.
extern "C" __global__ void __launch_bounds__(128) atom_sums(const GpuAtomArrays<T> a) {
  const Index n = Index(blockIdx.x) * 128 + threadIdx.x, i = n / 3, axis = n % 3;
  if (i >= a.num_atoms) return;
  double own = 0, sent = 0, virial[3] = {0, 0, 0}, energy = 0;
  if (i < a.num_computed)
    for (Index e = load(a.first_edge + i); e < load(a.first_edge + i + 1); ++e) {
      own += load_double(a.gradient + 3 * e + axis);
      if (axis == 0 && a.pair_energy != nullptr) energy += load_double(a.pair_energy + e);
    }
  for (Index k = load(a.start + i); k < load(a.start + i + 1); ++k) {
    const Index e = load(a.order + k);
    const double g = load_double(a.gradient + 3 * e + axis);
    sent += g;
    for (int b = 0; b < 3; ++b) virial[b] -= load_double(a.vec + 3 * e + b) * g;
  }
  a.forces[n] = own - sent;
  for (int b = 0; b < 3; ++b) a.virials[9 * i + 3 * b + axis] = virial[b];
  if (axis == 0) a.energies[i] += energy;
}

// (partials, 10): energy and virial of some atoms.
extern "C" __global__ void __launch_bounds__(128) add_atoms(const GpuAtomArrays<T> a) {
  const Index n = Index(blockIdx.x) * 128 + threadIdx.x, first = n / 10 * atoms_of_partial, k = n % 10;
  if (first >= a.num_atoms) return;
  const Index last = first + atoms_of_partial < a.num_atoms ? first + atoms_of_partial : a.num_atoms;
  double sum = 0;
  for (Index i = first; i < last; ++i) sum += k == 0 ? a.energies[i] : a.virials[9 * i + k - 1];
  a.partials[n] = sum;
}
)";

}  // namespace

std::string gpu_rows_code(bool single) {
  const auto constant = [](const char* name, long long value) {
    return std::string("constexpr int ") + name + " = " + std::to_string(value) + ";\n";
  };
  return std::string(gpu_precision_text(single)) + gpu_common_text + gpu_linear_arrays_text + "\n" +
         gpu_row_arrays_text + "\n" + gpu_atom_arrays_text + "\n" + constant("tile_rows", gpu_tile_rows) +
         constant("tile_columns", gpu_tile_columns) + constant("atoms_of_partial", gpu_atoms_of_partial) +
         "__device__ __forceinline__ void put(T* to, T value, bool add) { *to = add ? *to + value : value; }\n" +
         gpu_warp_sums_text + silu_text + linear_text +
         row_text + radial_text + local_text + atom_text;
}

}  // namespace equipot
