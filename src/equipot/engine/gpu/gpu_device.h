// The part of the GPU kernels' text that is the same for all of them.
#pragma once

namespace equipot {

constexpr const char* gpu_common_text = R"(
typedef long long Index;

__device__ __forceinline__ T load(const T* from) { return __ldg(from); }
__device__ __forceinline__ Index load(const Index* from) { return __ldg(from); }

// The sums over a warp of `count` values, a power of two; that of value n goes to the lanes from n * (32 / count) on.
// Half of the values are handed over in each step, so the steps cost no more than twice `count` exchanges together.
template <int count, int distance = 16>
__device__ __forceinline__ T warp_sums(T* values, int lane) {
  if constexpr (distance == 0) {
    return values[0];
  } else if constexpr (count == 1) {
    values[0] += __shfl_xor_sync(0xffffffffu, values[0], distance);
    return warp_sums<1, distance / 2>(values, lane);
  } else {
    const bool upper = lane & distance;
#pragma unroll
    for (int n = 0; n < count / 2; ++n) {
      const T sent = upper ? values[n] : values[n + count / 2];
      const T kept = upper ? values[n + count / 2] : values[n];
      values[n] = kept + __shfl_xor_sync(0xffffffffu, sent, distance);
    }
    return warp_sums<count / 2, distance / 2>(values, lane);
  }
}
)";

// After splines_text.
constexpr const char* gpu_spline_text = R"(
__device__ __forceinline__ Knot<T> locate(const GpuArrays<T>& a, Index edge) {
  const T position = load(a.length + edge) / T(a.cutoff) * T(a.intervals);
  const bool inside = position < T(a.intervals);  // beyond, all splines are zero
  const Index row = inside && position > 0 ? Index(position) : 0;
  return splines_at(inside ? position - T(row) : T(0), row, T(a.intervals) / T(a.cutoff), T(inside));
}

// In an interval that the host has chosen, whose rounding may differ.
__device__ __forceinline__ Knot<T> locate(const GpuArrays<T>& a, Index edge, Index row) {
  const T position = load(a.length + edge) / T(a.cutoff) * T(a.intervals);
  return splines_at(position - T(row), row, T(a.intervals) / T(a.cutoff), T(1));
}

__device__ __forceinline__ T spline(const T* row, const T* splines) {
  T sum = splines[0] * load(row);
#pragma unroll
  for (int b = 1; b < 6; ++b) sum += splines[b] * load(row + b * num_weights);
  return sum;
}
)";

}  // namespace equipot
