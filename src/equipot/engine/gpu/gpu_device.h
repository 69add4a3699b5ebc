// The part of the GPU kernels' text that is the same for all of them.
#pragma once

namespace equipot {

// T; two of them, and as many as are loaded at once.
constexpr const char* gpu_precision_text(bool single) {
  return single ? "typedef float T;\ntypedef float2 Pair;\ntypedef float4 Wide;\n"
                : "typedef double T;\ntypedef double2 Pair;\ntypedef double2 Wide;\n";
}

constexpr const char* gpu_common_text = R"(
typedef long long Index;

__device__ __forceinline__ T load(const T* from) { return __ldg(from); }
__device__ __forceinline__ Index load(const Index* from) { return __ldg(from); }

// Indices among numbers, bit by bit.
__device__ __forceinline__ int index_of(float word) { return __float_as_int(word); }
__device__ __forceinline__ int index_of(double word) { return int(__double_as_longlong(word)); }
__device__ __forceinline__ void set_index(float& word, int index) { word = __int_as_float(index); }
__device__ __forceinline__ void set_index(double& word, int index) { word = __longlong_as_double(index); }

__device__ __forceinline__ void unpack(float4 from, float* to) {
  to[0] = from.x, to[1] = from.y, to[2] = from.z, to[3] = from.w;
}
__device__ __forceinline__ void unpack(double2 from, double* to) { to[0] = from.x, to[1] = from.y; }
__device__ __forceinline__ void pack(const float* from, float4& to) {
  to.x = from[0], to.y = from[1], to.z = from[2], to.w = from[3];
}
__device__ __forceinline__ void pack(const double* from, double2& to) { to.x = from[0], to.y = from[1]; }

// 16 bytes at a time; `count` fills them.
__device__ __forceinline__ void read(const T* from, T* to, int count) {
#pragma unroll
  for (int n = 0; n < count; n += 16 / sizeof(T)) unpack(__ldg(reinterpret_cast<const Wide*>(from + n)), to + n);
}
__device__ __forceinline__ void write(const T* from, T* to, int count) {
#pragma unroll
  for (int n = 0; n < count; n += 16 / sizeof(T)) pack(from + n, *reinterpret_cast<Wide*>(to + n));
}
)";

// Of the passes; after num_weights and GpuArrays.
constexpr const char* gpu_pass_text = R"(
// Neighboring channels, those of one thread.
template <int width>
struct Channels {
  T v[width];
};

template <int width>
__device__ __forceinline__ Channels<width> operator*(T a, Channels<width> b) {
#pragma unroll
  for (int n = 0; n < width; ++n) b.v[n] *= a;
  return b;
}

template <int width>
__device__ __forceinline__ Channels<width> operator*(Channels<width> a, const Channels<width>& b) {
#pragma unroll
  for (int n = 0; n < width; ++n) a.v[n] *= b.v[n];
  return a;
}

template <int width>
__device__ __forceinline__ Channels<width> operator-(Channels<width> a) {
#pragma unroll
  for (int n = 0; n < width; ++n) a.v[n] = -a.v[n];
  return a;
}

template <int width>
__device__ __forceinline__ void operator+=(Channels<width>& sum, const Channels<width>& a) {
#pragma unroll
  for (int n = 0; n < width; ++n) sum.v[n] += a.v[n];
}

// Sums over a thread's channels.
template <int width>
__device__ __forceinline__ void add_products(T& sum, const Channels<width>& a, const Channels<width>& b) {
#pragma unroll
  for (int n = 0; n < width; ++n) sum += a.v[n] * b.v[n];
}

template <int width>
__device__ __forceinline__ T total(const Channels<width>& a) {
  T sum = a.v[0];
#pragma unroll
  for (int n = 1; n < width; ++n) sum += a.v[n];
  return sum;
}

template <class V>
__device__ __forceinline__ V load_channels(const T* from) {
  if constexpr (sizeof(V) == sizeof(T)) {
    return {load(from)};
  } else {
    const Pair pair = __ldg(reinterpret_cast<const Pair*>(from));
    return {pair.x, pair.y};
  }
}

template <int width>
__device__ __forceinline__ void store_channels(T* to, const Channels<width>& a) {
  if constexpr (width == 1) *to = a.v[0];
  else *reinterpret_cast<Pair*>(to) = {a.v[0], a.v[1]};
}

// Six rows of the table, at some channels.
template <class V>
struct Coefficients {
  V row[6];
  __device__ __forceinline__ explicit Coefficients(const T* from) {
#pragma unroll
    for (int b = 0; b < 6; ++b) row[b] = load_channels<V>(from + b * num_weights);
  }
  __device__ __forceinline__ V sum(const T* splines) const {
    V all = splines[0] * row[0];
#pragma unroll
    for (int b = 1; b < 6; ++b) all += splines[b] * row[b];
    return all;
  }
};

// Those of group `item` that are this part's: n ... end - 1.
__device__ __forceinline__ void edges_of(const GpuArrays<T>& a, int item, int part, int& n, int& end) {
  const int begin = int(load(a.start + item)), all = int(load(a.start + item + 1));
  const unsigned parts = unsigned(a.parts), each = (unsigned(all - begin) + parts - 1) / parts;
  n = begin + part * int(each);
  end = n + int(each) < all ? n + int(each) : all;
}
)";

constexpr const char* gpu_warp_sums_text = R"(
// The sums over a warp of `count` values. Half of them are handed over in each step, so the steps cost little more
// than `count` exchanges together. sum_of_lane says which sum a lane is given.
template <int count, int distance = 16>
__device__ __forceinline__ T warp_sums(T* values, int lane) {
  if constexpr (distance == 0) {
    return values[0];
  } else if constexpr (count == 1) {
    values[0] += __shfl_xor_sync(0xffffffffu, values[0], distance);
    return warp_sums<1, distance / 2>(values, lane);
  } else {
    constexpr int half = (count + 1) / 2;
    const bool upper = lane & distance;
#pragma unroll
    for (int n = 0; n < half; ++n) {
      const T other = n + half < count ? values[n + half < count ? n + half : 0] : T(0);
      const T sent = upper ? values[n] : other, kept = upper ? other : values[n];
      values[n] = kept + __shfl_xor_sync(0xffffffffu, sent, distance);
    }
    return warp_sums<half, distance / 2>(values, lane);
  }
}

// Its number, or -1 where another lane has the same one or there is none.
__device__ __forceinline__ int sum_of_lane(int count, int lane) {
  int first = 0, left = count;
  for (int distance = 16; distance > 0; distance /= 2) {
    const bool upper = lane & distance;
    const int half = (count + 1) / 2;
    if (count == 1) left = upper ? 0 : left;
    else if (upper) first += half, left -= half;
    else left = left < half ? left : half;
    count = half;
  }
  return left > 0 ? first : -1;
}
)";

constexpr const char* gpu_splines_define = "#define EQUIPOT_DEVICE __device__ __forceinline__\n";

// After splines_text.
constexpr const char* gpu_spline_text = R"(
template <class Arrays>
__device__ __forceinline__ Knot<T> locate(const Arrays& a, Index edge) {
  const T position = load(a.length + edge) / T(a.cutoff) * T(a.intervals);
  const bool inside = position < T(a.intervals);  // beyond, all splines are zero
  const Index row = inside && position > 0 ? Index(position) : 0;
  return splines_at(inside ? position - T(row) : T(0), row, T(a.intervals) / T(a.cutoff), T(inside));
}

// In an interval that the host has chosen, whose rounding may differ.
template <class Arrays>
__device__ __forceinline__ Knot<T> locate(const Arrays& a, Index edge, Index row) {
  const T position = load(a.length + edge) / T(a.cutoff) * T(a.intervals);
  return splines_at(position - T(row), row, T(a.intervals) / T(a.cutoff), T(1));
}
)";

}  // namespace equipot
