// Kernels from edge vectors to distances and harmonics, and back, with the repulsion of nuclei; one text for each model.
#pragma once

#include <string>

#include "geometry.h"
#include "quote.h"
#include "zbl.h"

namespace equipot {

// Tables by type: pair_scales (types, types), numbers and radii (types) and reach (types, types) of the repulsion.
EQUIPOT_DECLARE_AND_QUOTE(gpu_edge_arrays_text,
template <class T>
struct GpuEdgeArrays {
  const double *vec, *numbers, *radii, *reach;
  const long long *center, *neighbor, *types;
  const unsigned char* owned;
  const T *pair_scales, *geometry;
  T *length, *sh;
  double *gradient, *pair_energy;
  long long num_edges, num_types;
};)

// Added to distances, so that they find one of two pieces of splines; see evaluator.inl.
struct GpuKink {
  double at = 0, below = 0, above = 0;
};

std::string gpu_geometry_code(bool single, const Harmonics<double>& harmonics, const GpuKink& kink, bool pair_scales,
                              const Zbl* zbl);

}  // namespace equipot
