// From a table of paths and their coefficients to a Plan.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "form.h"

namespace equipot::inline EQUIPOT_INSTRUCTIONS {

// Columns of `paths`; see equipot/ops/convolution.py.
struct PathRow {
  int64_t l_in, l_sh, l_out, channels, in_offset, weight_offset, out_offset, out_stride, coefficient_offset;
};
static_assert(sizeof(PathRow) == 9 * sizeof(int64_t));

// C[k, i, j] = value * delta(k, i) for the one j there is, so M is a number times the identity.
inline bool is_diagonal(const PathRow& row, const double* c, double tolerance) {
  if (row.l_sh != 0 || row.l_in != row.l_out) return false;
  const int64_t n = 2 * row.l_in + 1;
  for (int64_t k = 0; k < n; ++k)
    for (int64_t i = 0; i < n; ++i)
      if (std::abs(c[k * n + i] - (k == i ? c[0] : 0.0)) > tolerance * std::abs(c[0])) return false;
  return true;
}

// Adds the nonzero coefficients of the coupling as terms, and makes room for its matrix.
template <class T>
void add_terms(Plan<T>& plan, Coupling& coupling, const PathRow& row, const double* c, double tolerance) {
  const int64_t in = 2 * row.l_in + 1, out = 2 * row.l_out + 1, sh = 2 * row.l_sh + 1;
  const int64_t elements = coupling.diagonal ? 1 : in * out;
  coupling.first_element = int(plan.num_elements);
  coupling.first_term = int(plan.terms.size());
  for (int64_t element = 0; element < elements; ++element) {
    const int at = int(plan.num_elements + element);
    bool assigned = false;
    for (int64_t j = 0; j < sh; ++j) {
      const double value = c[element * sh + j];
      if (std::abs(value) <= tolerance) continue;
      const Term<T> term{at, int(row.l_sh * row.l_sh + j), T(value)};
      // The gradient with respect to Y sums the diagonal's elements before it comes here.
      plan.terms.push_back(term);
      (assigned ? plan.adding : plan.assigning).push_back(term);
      assigned = true;
    }
    if (!assigned) plan.assigning.push_back({at, 0, T(0)});
  }
  coupling.last_term = int(plan.terms.size());
  plan.num_elements += elements;
}

// The plan of P paths. `tolerance`: coefficients that are smaller are zeros with round-off.
// Throws std::runtime_error if a path does not fit the arrays.
template <class T>
Plan<T> make_plan(const PathRow* rows, int64_t num_paths, const double* c, int64_t num_coefficients, double tolerance,
                  int64_t dim_in, int64_t dim_sh, int64_t dim_out, int64_t num_weights) {
  const auto require = [&](bool right, int64_t path, const char* what) {
    if (!right)
      throw std::runtime_error("equipot::convolution: path " + std::to_string(path) + " " + what + ": features (" +
                                  std::to_string(dim_in) + "), harmonics (" + std::to_string(dim_sh) + "), weights (" +
                                  std::to_string(num_weights) + "), output (" + std::to_string(dim_out) +
                                  "), degrees up to " + std::to_string(max_degree));
  };
  Plan<T> plan;
  plan.dim_in = dim_in, plan.dim_sh = dim_sh, plan.dim_out = dim_out, plan.num_weights = num_weights;
  int64_t weights_used = 0;
  std::map<int64_t, size_t> known;  // coefficient offset -> coupling: both parities share one
  for (int64_t p = 0; p < num_paths; ++p) {
    const PathRow& row = rows[p];
    const auto [least, most] = std::minmax({row.l_in, row.l_sh, row.l_out, row.in_offset, row.weight_offset,
                                            row.out_offset, row.coefficient_offset, row.channels - 1, row.out_stride});
    require(least >= 0 && most < INT32_MAX && std::max(row.l_in, row.l_out) <= max_degree && row.l_sh < 64, p,
            "has a negative number or a degree that is too high");
    const int64_t in = 2 * row.l_in + 1, out = 2 * row.l_out + 1, sh = 2 * row.l_sh + 1;
    require(row.out_stride >= row.channels && row.in_offset + in * row.channels <= dim_in &&
                (row.l_sh + 1) * (row.l_sh + 1) <= dim_sh && row.weight_offset + row.channels <= num_weights &&
                row.out_offset + (out - 1) * row.out_stride + row.channels <= dim_out &&
                row.coefficient_offset + in * out * sh <= num_coefficients,
            p, "does not fit");
    const auto [at, is_new] = known.try_emplace(row.coefficient_offset, plan.couplings.size());
    if (is_new) {
      Coupling coupling{};
      coupling.l_in = int(row.l_in), coupling.l_out = int(row.l_out);
      coupling.diagonal = is_diagonal(row, c + row.coefficient_offset, tolerance);
      add_terms(plan, coupling, row, c + row.coefficient_offset, tolerance);
      plan.couplings.push_back(std::move(coupling));
    }
    Coupling& coupling = plan.couplings[at->second];
    require(coupling.l_in == row.l_in && coupling.l_out == row.l_out, p, "shares coefficients with one of other degrees");
    coupling.paths.push_back({row.channels, row.in_offset, row.weight_offset, row.out_offset, row.out_stride});
    plan.widest_block = std::max(plan.widest_block, in * row.channels);
    weights_used += row.channels;
  }
  if (weights_used != num_weights)
    throw std::runtime_error("equipot::convolution: paths use " + std::to_string(weights_used) + " weights of " +
                             std::to_string(num_weights));
  plan.by_harmonic = plan.terms;
  std::stable_sort(plan.by_harmonic.begin(), plan.by_harmonic.end(),
                   [](const Term<T>& a, const Term<T>& b) { return a.harmonic < b.harmonic; });
  return plan;
}

}  // namespace equipot
