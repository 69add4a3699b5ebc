// Writes the GPU kernels of one table of paths as CUDA C++ text; it knows nothing of torch or of a GPU.
//
// The passes are those of form.h. A warp takes 32 channels of the edges of one atom (of one interval of the spline
// table for dF/dtable), one edge after the other, so sums over edges stay in registers and have a fixed order. Every
// thread computes the edge's matrices M for itself: their coefficients are constants in the text, zeros are left out,
// and warps need not wait for each other. What does not fit into registers is split into groups of paths. Blocks are as
// narrow as 32 or 64 threads, each with a group and channels of its own, so that no warp is started without work.
#pragma once

#include <cstdint>
#include <string>

#include "form.h"
#include "gate.h"

namespace equipot {

enum class GpuPass {
  center,    // dF/dg
  neighbor,  // dF/dx, and if wanted dF/dY and dF/dw or dF/dlength
  table,     // dF/dtable, in parts
};

struct GpuForm {
  GpuPass pass;
  bool single;     // precision
  bool mixed;      // the mixed form
  bool tabulated;  // weights from a table
  bool geometry;   // neighbor pass: dF/dY, and with a table dF/dlength
};

struct GpuCode {
  std::string source;
  int64_t blocks_y, blocks_z;  // along x follow from the arrays
  int64_t threads;             // of a block
  int64_t warps;               // that share in an edge's gradients: rows of `shares`
  int64_t values;              // of each share
};

constexpr const char* gpu_kernel_name = "equipot_kernel";

GpuCode generate(const Plan<double>& plan, const GpuForm& form);

// The kernels of atom_product.h. Rows and columns are those of the matrices as they lie in memory.
struct GpuProductForm {
  enum Kind { product, transposed, outer_sum } kind;
  bool single;
  int64_t rows, columns, channels;
};

constexpr int64_t gpu_edges_per_block = 16;  // of the products

GpuCode generate(const GpuProductForm& form);

// Sums over rows grouped by segment, a block of threads for some segments and columns; `parts` share a segment's rows.
GpuCode generate_segment_sum(bool single);

// The kernels of gate.h, a block for each row.
GpuCode generate(const GateShape& gate, bool single, bool gradient);

}  // namespace equipot
