// Quintic B-splines on equal intervals, once for the CPU and, as text, once for the GPU; see equipot/ops/bspline.py.
#pragma once

#include "instructions.h"
#include "quote.h"

#define EQUIPOT_DEVICE inline

namespace equipot::inline EQUIPOT_INSTRUCTIONS {

// Of the six splines at one distance: their values and two derivatives, and the first row of the table they multiply.
EQUIPOT_DECLARE_AND_QUOTE(splines_text,
template <class T>
struct Knot {
  long long row;
  T value[6];
  T slope[6];
  T curvature[6];
};

// At u of an interval of width 1 / steps; `inside` is 1, or 0 where all splines are zero.
template <class T>
EQUIPOT_DEVICE Knot<T> splines_at(T u, long long row, T steps, T inside) {
  const T v = 1 - u, u2 = u * u, u3 = u2 * u, u4 = u2 * u2, u5 = u4 * u;
  const T scale = inside / 120, first = scale * steps, second = first * steps;
  return {row,
          {scale * (v * v * v * v * v),
           scale * (26 - 50 * u + 20 * (u2 + u3 - u4) + 5 * u5),
           scale * (66 - 60 * u2 + 30 * u4 - 10 * u5),
           scale * (26 + 50 * u + 20 * (u2 - u3 - u4) + 10 * u5),
           scale * (1 + 5 * (u + u4 - u5) + 10 * (u2 + u3)),
           scale * u5},
          {first * (-5 * v * v * v * v),
           first * (-50 + 40 * u + 60 * u2 - 80 * u3 + 25 * u4),
           first * (-120 * u + 120 * u3 - 50 * u4),
           first * (50 + 40 * u - 60 * u2 - 80 * u3 + 50 * u4),
           first * (5 + 20 * (u + u3) + 30 * u2 - 25 * u4),
           first * (5 * u4)},
          {second * (20 * v * v * v),
           second * (40 + 120 * u - 240 * u2 + 100 * u3),
           second * (-120 + 360 * u2 - 200 * u3),
           second * (40 - 120 * u - 240 * u2 + 200 * u3),
           second * (20 + 60 * (u + u2) - 100 * u3),
           second * (20 * u3)}};
})

}  // namespace equipot
