// The logistic function on whole vectors, and what is made of it.
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

#include "lanes.h"

namespace equipot::inline EQUIPOT_INSTRUCTIONS {

// exp(x) = 2^n exp(r), |r| <= ln(2)/2, by the Taylor polynomial; the error is below two units in the last place.
// Beyond the range of T the argument is cut off, which the logistic function does not see.
template <class T>
INLINE Vector<T> exponential(Vector<T> x) {
  constexpr bool is_float = std::is_same_v<T, float>;
  using Int = std::conditional_t<is_float, int32_t, int64_t>;
  typedef Int Ints __attribute__((vector_size(vector_bytes)));
  constexpr T limit = is_float ? T(87) : T(708), log2e = T(1.4426950408889634074);
  constexpr T ln2_high = is_float ? T(0.693359375) : T(0.693147180369123816490);
  constexpr T ln2_low = is_float ? T(-2.12194440e-4) : T(1.90821492927058770002e-10);
  constexpr int degree = is_float ? 7 : 13;
  x = x > limit ? limit - Vector<T>{} : x;
  x = x < -limit ? -limit - Vector<T>{} : x;
  constexpr T shifter = is_float ? T(12582912) : T(6755399441055744);  // 1.5 2^23, 1.5 2^52: rounds to an integer
  const Vector<T> n = (x * log2e + shifter) - shifter;
  const Vector<T> r = (x - n * ln2_high) - n * ln2_low;
  Vector<T> sum = Vector<T>{} + T(1);
  T inverse[degree + 1];
  UNROLL for (int k = 1; k <= degree; ++k) inverse[k] = T(1) / T(k);
  UNROLL for (int k = degree; k >= 1; --k) sum = T(1) + sum * (r * inverse[k]);
  const Ints exponent = (__builtin_convertvector(n, Ints) + (is_float ? 127 : 1023)) << (is_float ? 23 : 52);
  Vector<T> scale;
  std::memcpy(&scale, &exponent, sizeof scale);
  return sum * scale;
}

template <class T>
INLINE Vector<T> sigmoid(Vector<T> x) {
  return T(1) / (T(1) + exponential<T>(-x));
}

// Calls f(values of x, padded with zeros) -> y for all `count` numbers.
template <class T, class F>
INLINE void map_vectors(const T* x, T* y, int64_t count, const F& f) {
  int64_t c = 0;
  for (; c + lanes<T> <= count; c += lanes<T>) store(y + c, f(load<Vector<T>>(x + c)));
  if (c == count) return;
  T rest[lanes<T>] = {};
  std::memcpy(rest, x + c, size_t(count - c) * sizeof(T));
  const Vector<T> last = f(load<Vector<T>>(rest));
  std::memcpy(y + c, &last, size_t(count - c) * sizeof(T));
}

template <class T>
void sigmoids(const T* x, T* y, int64_t count) {
  map_vectors<T>(x, y, count, [](Vector<T> v) { return sigmoid<T>(v); });
}

// tanh(x) = 2 sigmoid(2x) - 1: to rounding of numbers around one.
template <class T>
void tanhs(const T* x, T* y, int64_t count) {
  map_vectors<T>(x, y, count, [](Vector<T> v) { return T(2) * sigmoid<T>(T(2) * v) - T(1); });
}

// x sigmoid(x), SiLU.
template <class T>
void silus(const T* x, T* y, int64_t count) {
  map_vectors<T>(x, y, count, [](Vector<T> v) { return v * sigmoid<T>(v); });
}

// y *= SiLU'(x) = s (1 + x (1 - s)).
template <class T>
void multiply_by_silu_slopes(const T* x, T* y, int64_t count) {
  int64_t c = 0;
  const auto slope = [](Vector<T> v) {
    const Vector<T> s = sigmoid<T>(v);
    return s * (T(1) + v * (T(1) - s));
  };
  for (; c + lanes<T> <= count; c += lanes<T>) store(y + c, load<Vector<T>>(y + c) * slope(load<Vector<T>>(x + c)));
  if (c == count) return;
  T rest[lanes<T>] = {};
  std::memcpy(rest, x + c, size_t(count - c) * sizeof(T));
  const Vector<T> last = slope(load<Vector<T>>(rest));
  for (int64_t k = c; k < count; ++k) y[k] *= last[k - c];
}

}  // namespace equipot
