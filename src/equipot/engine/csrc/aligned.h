// Numbers that begin with a cache line, so that no vector of a row lies across two. Like those of `new`, they are nothing
// before they are written: Numbers<T>(n) is no zeros, Numbers<T>(n, T(0)) is.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

#include "instructions.h"

namespace equipot::inline EQUIPOT_INSTRUCTIONS {

template <class T>
struct Aligned {
  using value_type = T;
  static constexpr std::align_val_t line{64};

  Aligned() = default;
  template <class U>
  Aligned(const Aligned<U>&) {}
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), line)); }
  void deallocate(T* numbers, size_t) { ::operator delete(numbers, line); }
  void construct(T*) {}
  bool operator==(const Aligned&) const = default;
};

template <class T>
using Numbers = std::vector<T, Aligned<T>>;

template <class T>
Numbers<T> aligned(const std::vector<T>& numbers) {
  return {numbers.begin(), numbers.end()};
}

}  // namespace equipot
