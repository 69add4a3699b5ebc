// What the text of a GPU kernel needs to compile for AMD's GPUs by Clang alone: HIP's own headers define the same.
#pragma once

#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(threads, ...) __attribute__((amdgpu_flat_work_group_size(threads, threads)))
#define FUNCTION static __attribute__((device)) inline __attribute__((always_inline))

struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct double2 { double x, y; };
struct Index3 { unsigned x, y, z; };

#define OF_EACH(what) Index3{what##_x(), what##_y(), what##_z()}
#define threadIdx OF_EACH(__builtin_amdgcn_workitem_id)
#define blockIdx OF_EACH(__builtin_amdgcn_workgroup_id)
#define blockDim OF_EACH(__builtin_amdgcn_workgroup_size)
#define threadDim OF_EACH(__builtin_amdgcn_grid_size)
#define gridDim Index3{threadDim.x / blockDim.x, threadDim.y / blockDim.y, threadDim.z / blockDim.z}

template <class T>
FUNCTION T __ldg(const T* from) { return *from; }

// Lanes that are 16 apart at most are in one half of a wavefront of 64, so these exchanges are those of a warp of 32.
FUNCTION int __shfl_xor_sync(unsigned, int value, int distance) {
  const int lane = __builtin_amdgcn_mbcnt_hi(~0u, __builtin_amdgcn_mbcnt_lo(~0u, 0u));
  return __builtin_amdgcn_ds_bpermute((lane ^ distance) << 2, value);
}
FUNCTION float __shfl_xor_sync(unsigned mask, float value, int distance) {
  return __builtin_bit_cast(float, __shfl_xor_sync(mask, __builtin_bit_cast(int, value), distance));
}

FUNCTION int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
FUNCTION float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
FUNCTION long long __double_as_longlong(double x) { return __builtin_bit_cast(long long, x); }
FUNCTION double __longlong_as_double(long long x) { return __builtin_bit_cast(double, x); }
FUNCTION float exp(float x) { return __builtin_expf(x); }
FUNCTION float tanh(float x) { return __builtin_expf(x); }  // compiled only: Clang has no tanh of its own here
