// What the text of a GPU kernel needs to compile as ordinary C++: a block's threads are fibers of one thread, which
// take turns at every exchange within a warp and at every barrier.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

using std::exp, std::tanh, std::sin, std::cos, std::sqrt, std::pow;

#define __global__
#define __shared__ static
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)

struct Index3 {
  unsigned x = 0, y = 0, z = 0;
};
static Index3 blockIdx, blockDim, gridDim, threadIdx;

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};

// As on a GPU, what is loaded at once must lie at a multiple of its size.
template <class T>
T __ldg(const T* from) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof(T) != 0) {
    std::fprintf(stderr, "%zu bytes loaded that are not aligned\n", sizeof(T));
    std::abort();
  }
  return *from;
}

template <class To, class From>
To bits(From from) {
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

inline int __float_as_int(float word) { return bits<int>(word); }
inline float __int_as_float(int index) { return bits<float>(index); }
inline long long __double_as_longlong(double word) { return bits<long long>(word); }
inline double __longlong_as_double(long long index) { return bits<double>(index); }

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(256 * 1024);
  bool finished = false;
  double handed_over[2];  // in this exchange and in the one before, which slower lanes may still read
  long exchanges = 0;
};

static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static void (*run_thread)();

inline void body() {
  run_thread();
  fibers[threadIdx.x].finished = true;
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
  Fiber& own = fibers[threadIdx.x];
  const unsigned partner = threadIdx.x ^ unsigned(distance);
  const int slot = own.exchanges++ % 2;
  own.handed_over[slot] = value;
  swapcontext(&own.context, &scheduler);
  if (mask != 0xffffffffu || partner >= fibers.size() || fibers[partner].exchanges < own.exchanges) {
    std::fprintf(stderr, "lanes of a warp do not exchange together\n");
    std::abort();
  }
  return T(fibers[partner].handed_over[slot]);
}

inline void __syncthreads() {
  Fiber& own = fibers[threadIdx.x];
  swapcontext(&own.context, &scheduler);
}

// Of threads that do not wait for each other.
inline void run_one_by_one(unsigned threads) {
  for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) run_thread();
}

inline void run_block() {
  for (Fiber& fiber : fibers) {
    fiber.finished = false, fiber.exchanges = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack = {fiber.stack.data(), 0, fiber.stack.size()};
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, body, 0);
  }
  for (bool running = true; running;) {
    running = false;
    for (threadIdx.x = 0; threadIdx.x < fibers.size(); ++threadIdx.x) {
      if (fibers[threadIdx.x].finished) continue;
      swapcontext(&scheduler, &fibers[threadIdx.x].context);
      running |= !fibers[threadIdx.x].finished;
    }
  }
}

// Runs kernel(parameter) on a whole grid; `waits`: threads exchange or wait for each other.
template <class Parameter>
void run_grid(void (*kernel)(Parameter), const void* parameter, const long* grid, long threads, bool waits) {
  static void (*function)(Parameter);
  static const Parameter* argument;
  function = kernel, argument = static_cast<const Parameter*>(parameter);
  run_thread = [] { function(*argument); };
  if (waits && fibers.size() != size_t(threads)) fibers = std::vector<Fiber>(threads);
  blockDim = {unsigned(threads), 1, 1};
  gridDim = {unsigned(grid[0]), unsigned(grid[1]), unsigned(grid[2])};
  for (blockIdx.z = 0; blockIdx.z < grid[2]; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x)
        waits ? run_block() : run_one_by_one(unsigned(threads));
}
