// Writes the GPU kernels of one table of paths as CUDA C++ text; it knows nothing of torch or of a GPU.
//
// The passes are those of form.h. A warp takes 64 channels (two neighboring ones to a thread; or 32) of the edges of one
// atom (of one interval of the spline table for dF/dtable), one edge after the other, so sums over edges stay in
// registers and have a fixed order. Every thread computes the edge's matrices M for itself: their coefficients are
// constants in the text, zeros are left out, and warps need not wait for each other. What does not fit into registers
// is split into groups of paths (gpu_groups.h). Blocks are as narrow as 32 or 64 threads, each with a group and channels
// of its own, so that no warp is started without work.
//
// Who starts a pass makes, for E < 2^31 edges of N atoms (arrays of numbers begin at multiples of 16 bytes):
//
//   order (E), start (N + 1)  edges grouped by center for the center pass, by neighbor for the neighbor pass, in their
//                             order: group n is order[start[n]] ... order[start[n + 1] - 1]; once for all layers
//   records (E, width)        where a pass is `by_records`: by generate_records, over ceil(E / threads) blocks; once for
//                             all layers and both passes, for they depend on nothing but the edges, their harmonics and
//                             distances, and the table's cutoff and number of intervals
//   grad_g (parts, N, dim_out), grad_x (parts, N, dim_in)
//                             zeros where no path ends (center pass) or begins (neighbor pass), the rest is written;
//                             parts = gpu_parts(...)
//   shares (warps, E, values) of the neighbor pass with geometry; not zeroed
//
// The grid is N (or as many as there are `items`), blocks_y and parts blocks of `threads` threads. Then the parts are added in order, and shares over their
// warps: the first dim_sh values are grad_sh, with a table the last is grad_length. By records a pass reads x, g and
// table beside them (center pass: x, table), and sh, length, center, neighbor only if it is not by records.
#pragma once

#include <algorithm>

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

  // Splines, harmonics and indices of an edge come from its record, not from arrays of their own.
  bool by_records() const { return tabulated && !mixed && pass != GpuPass::table; }
};

struct GpuCode {
  std::string source;
  int64_t blocks_y, blocks_z;  // along x follow from the arrays; of a pass along z: parts of an atom's edges
  int64_t threads;             // of a block
  int64_t warps;               // that share in an edge's gradients: rows of `shares`
  int64_t values;              // of each share
};

constexpr const char* gpu_kernel_name = "equipot_kernel";

GpuCode generate(const Plan<double>& plan, const GpuForm& form);

// Where atoms are few, several warps share the edges of each, four edges at least for a warp. It depends on nothing but
// the sizes, so the same arguments give the same bits on every GPU; one runs some thousand warps at once.
inline int64_t gpu_parts(const GpuCode& code, int64_t num_atoms, int64_t num_edges) {
  const int64_t warps = std::max<int64_t>(num_atoms * code.blocks_y * code.threads / 32, 1);
  const int64_t most = num_edges / std::max<int64_t>(4 * num_atoms, 1);
  return std::clamp<int64_t>(2048 / warps, 1, std::max<int64_t>(most, 1));
}

// The table pass: of an interval's edges, where there are many.
inline int64_t gpu_table_parts(int64_t num_edges, int64_t intervals) {
  return std::clamp<int64_t>(num_edges / (16 * intervals), 1, 16);
}

// A record: what all passes of all layers need of an edge. Six splines' values, the row of the table and the neighbor;
// their slopes and the center; harmonics, filled up with zeros. Indices are 32 bits, in a number's place.
constexpr int64_t gpu_record_row = 6, gpu_record_neighbor = 7, gpu_record_slopes = 8, gpu_record_center = 14,
                  gpu_record_harmonics = 16;
constexpr int64_t gpu_record_width(int64_t dim_sh) { return gpu_record_harmonics + (dim_sh + 3) / 4 * 4; }

// Makes them, a thread for each edge.
GpuCode generate_records(int64_t dim_sh, bool single);

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
enum class GpuGatePass { value, gradient, second };
GpuCode generate(const GateShape& gate, bool single, GpuGatePass pass);

}  // namespace equipot
