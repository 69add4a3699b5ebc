// Which paths one warp of a pass takes together (gpu_code.h).
#pragma once

#include <cstdint>
#include <vector>

#include "gpu_code.h"

namespace equipot {

constexpr int64_t warp_size = 32;

inline int components(int degree) { return 2 * degree + 1; }

// Where one path's input block lies among those of its group, and its accumulators among the group's.
struct Item {
  Path path;
  int block;
  int64_t place;
};

// Paths that share a coupling, so the matrix M is the same for them: both parities, as a rule.
struct Bundle {
  const Coupling* coupling;
  std::vector<Item> items;
};

// An input block: its first element, and its degree.
struct InputBlock {
  int64_t offset;
  int degree;
};

// Paths of equal numbers of channels that one warp takes together, `width` neighboring channels to a thread.
struct Group {
  int64_t channels, width;
  int64_t accumulators = 0;
  std::vector<InputBlock> blocks;
  std::vector<Bundle> bundles;

  int64_t warps() const { return (channels + width * warp_size - 1) / (width * warp_size); }
  bool is_full() const { return channels % (width * warp_size) == 0; }  // no thread is without channels
};

std::vector<Group> make_groups(const Plan<double>& plan, const GpuForm& form);

}  // namespace equipot
