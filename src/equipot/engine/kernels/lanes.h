// Vectors of the width the compiler was told to use, through the vector extension of GCC and Clang.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "instructions.h"

#define UNROLL _Pragma("GCC unroll 16")
#define INLINE inline __attribute__((always_inline))

namespace equipot::inline EQUIPOT_INSTRUCTIONS {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
constexpr int vector_registers = 32;
#elif defined(__AVX__)
constexpr int vector_bytes = 32;
constexpr int vector_registers = 16;
#else
constexpr int vector_bytes = 16;
constexpr int vector_registers = 16;
#endif

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(vector_bytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(vector_bytes)));
};
template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
constexpr int lanes = vector_bytes / int(sizeof(T));

template <class V, class T>
inline V load(const T* from) {
  V value;
  std::memcpy(&value, from, sizeof(V));  // one unaligned load
  return value;
}

template <class V, class T>
inline void store(T* to, V value) {
  std::memcpy(to, &value, sizeof(V));
}

// sum += a * b. Contracting a vector's product and sum is left to the compiler; it does not treat single numbers
// alike wherever they occur, and results would then depend on how work is cut into tiles.
template <class V>
inline void multiply_add(V& sum, V a, V b) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  if constexpr (std::is_floating_point_v<V>) {
    sum = std::fma(a, b, sum);
    return;
  }
#endif
  sum += a * b;
}

// Halves are added until one number is left.
template <class T, int count = lanes<T>>
INLINE T sum_of(const T* numbers) {
  if constexpr (count == 1) return *numbers;
  constexpr int half = std::max(count / 2, 1);
  typedef T Half __attribute__((vector_size(half * sizeof(T))));
  const Half halves = load<Half>(numbers) + load<Half>(numbers + half);
  return sum_of<T, half>(reinterpret_cast<const T*>(&halves));
}

template <class T>
INLINE T sum_lanes(const Vector<T>& value) {
  return sum_of<T>(reinterpret_cast<const T*>(&value));
}

}  // namespace equipot
