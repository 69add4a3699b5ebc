// The kernels of atom_product.h as text. Threads run along channels; a block takes a few rows of the matrix. If they
// are short, they stay in registers from one edge to the next: as factors in the products, as sums in the outer sum.
#include <algorithm>
#include <sstream>

#include "gpu_arrays.h"
#include "gpu_code.h"
#include "gpu_device.h"

namespace equipot {
namespace {

constexpr const char* common_text = R"(
__device__ __forceinline__ Index matrix_of(const GpuProductArrays<T>& a, Index edge) {
  return a.center == nullptr ? 0 : load(a.center + edge);
}
__device__ __forceinline__ void put(const GpuProductArrays<T>& a, Index at, T value) {
  a.out[at] = a.add ? a.out[at] + value : value;
}
)";

// Edges come sorted by center, as a rule, so the rows are seldom loaded anew.
constexpr const char* product_text = R"(
extern "C" __global__ void equipot_kernel(const GpuProductArrays<T> a) {
  const Index c = Index(blockIdx.z) * blockDim.x + threadIdx.x;
  if (c >= channels) return;
  const Index row = Index(blockIdx.y) * tile;
  const Index begin = Index(blockIdx.x) * edges_per_block;
  const Index end = begin + edges_per_block < a.num_edges ? begin + edges_per_block : a.num_edges;
  T matrix[tile][columns];
  Index loaded = -1;
  for (Index edge = begin; edge < end; ++edge) {
    const Index atom = matrix_of(a, edge);
    if (atom != loaded) {
#pragma unroll
      for (int r = 0; r < tile; ++r)
#pragma unroll
        for (int i = 0; i < columns; ++i)
          matrix[r][i] = row + r < rows ? load(a.matrices + atom * rows * columns * channels + (row + r) * row_stride +
                                               i * column_stride + c)
                                        : T(0);
      loaded = atom;
    }
    T sum[tile] = {};
#pragma unroll
    for (int i = 0; i < columns; ++i) {
      const T feature = load(a.left + (edge * columns + i) * channels + c);
#pragma unroll
      for (int r = 0; r < tile; ++r) sum[r] += matrix[r][i] * feature;
    }
#pragma unroll
    for (int r = 0; r < tile; ++r)
      if (row + r < rows) put(a, (edge * rows + row + r) * channels + c, sum[r]);
  }
}
)";

// Rows longer than registers hold are read anew for each edge, those of one atom from the cache.
constexpr const char* long_product_text = R"(
extern "C" __global__ void equipot_kernel(const GpuProductArrays<T> a) {
  const Index c = Index(blockIdx.z) * blockDim.x + threadIdx.x;
  if (c >= channels) return;
  const Index row = Index(blockIdx.y) * tile;
  const Index begin = Index(blockIdx.x) * edges_per_block;
  const Index end = begin + edges_per_block < a.num_edges ? begin + edges_per_block : a.num_edges;
  for (Index edge = begin; edge < end; ++edge) {
    const T* const matrix = a.matrices + (matrix_of(a, edge) * rows * columns) * channels + row * row_stride + c;
    T sum[tile] = {};
    for (int i = 0; i < columns; ++i) {
      const T feature = load(a.left + (edge * columns + i) * channels + c);
#pragma unroll
      for (int r = 0; r < tile; ++r)
        if (row + r < rows) sum[r] += load(matrix + r * row_stride + i * column_stride) * feature;
    }
#pragma unroll
    for (int r = 0; r < tile; ++r)
      if (row + r < rows) put(a, (edge * rows + row + r) * channels + c, sum[r]);
  }
}
)";

// Edges grouped by atom; `parts` blocks share those of one atom.
constexpr const char* outer_sum_text = R"(
extern "C" __global__ void equipot_kernel(const GpuProductArrays<T> a) {
  const Index c = Index(blockIdx.z) * blockDim.x + threadIdx.x;
  if (c >= channels) return;
  const Index row = Index(blockIdx.y) * tile;
  const Index atom = blockIdx.x / a.parts, part = blockIdx.x % a.parts;
  const Index begin = load(a.start + atom), count = load(a.start + atom + 1) - begin;
  T sum[tile][columns] = {};
  for (Index n = begin + count * part / a.parts; n < begin + count * (part + 1) / a.parts; ++n) {
    const Index edge = load(a.order + n);
    T left[tile];
#pragma unroll
    for (int r = 0; r < tile; ++r)
      left[r] = row + r < rows ? load(a.left + (edge * rows + row + r) * channels + c) : T(0);
#pragma unroll
    for (int i = 0; i < columns; ++i) {
      const T right = load(a.right + (edge * columns + i) * channels + c);
#pragma unroll
      for (int r = 0; r < tile; ++r) sum[r][i] += left[r] * right;
    }
  }
  T* const out = a.out + (part * a.num_atoms + atom) * rows * columns * channels;
#pragma unroll
  for (int r = 0; r < tile; ++r)
#pragma unroll
    for (int i = 0; i < columns; ++i)
      if (row + r < rows) out[((row + r) * columns + i) * channels + c] = sum[r][i];
}
)";

}  // namespace

GpuCode generate(const GpuProductForm& form) {
  const bool transposed = form.kind == GpuProductForm::transposed;
  const int64_t rows = transposed ? form.columns : form.rows, columns = transposed ? form.rows : form.columns;
  // As many rows as registers hold, up to where loading the features once for all of them pays.
  const int64_t limit = form.single ? 72 : 36;
  const bool long_rows = columns > limit && form.kind != GpuProductForm::outer_sum;
  const int64_t tile = std::clamp<int64_t>(long_rows ? 4 : limit / columns, 1, std::min<int64_t>(rows, 8));
  const char* kernel = long_rows ? long_product_text : product_text;
  std::ostringstream text;
  text << gpu_precision_text(form.single) << gpu_common_text << gpu_product_arrays_text
       << "\nconstexpr Index rows = " << rows << ", columns = " << columns << ", channels = " << form.channels
       << ", tile = " << tile << ", edges_per_block = " << gpu_edges_per_block << ",\n  row_stride = "
       << (transposed ? form.channels : columns * form.channels) << ", column_stride = "
       << (transposed ? rows * form.channels : form.channels) << ";\n"
       << common_text << (form.kind == GpuProductForm::outer_sum ? outer_sum_text : kernel);
  const int64_t threads = std::clamp<int64_t>((form.channels + 31) / 32 * 32, 32, 128);
  return {text.str(), (rows + tile - 1) / tile, (form.channels + threads - 1) / threads, threads, 0, 0};
}

}  // namespace equipot
