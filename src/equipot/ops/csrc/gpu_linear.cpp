#include "gpu_linear.h"

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>

#include <set>

#include "gpu_cache.h"
#include "gpu_passes.h"

namespace equipot {
namespace {

using at::Tensor;

// One irrep of all rows, (components, N, channels), as it lies.
Tensor components_of(const Tensor& rows, int64_t offset, int64_t components, int64_t channels) {
  return rows.as_strided({components, rows.size(0), channels}, {channels, rows.stride(0), 1},
                         rows.storage_offset() + offset);
}

// Calls work(block, its matrix (channels_in, channels_out)) for the blocks that have one.
template <class F>
void for_blocks(const LinearMap& map, const Tensor& weights, const F& work) {
  int64_t start = 0;
  for (const LinearBlock& b : map.blocks) {
    const int64_t size = b.channels_in * b.channels_out;
    if (size > 0) work(b, weights.narrow(0, start, size).view({b.channels_in, b.channels_out}));
    start += size;
  }
}

// Whether each element of a row of y is some block's; the others have to be made zero.
bool covers(const LinearMap& map, bool transpose) {
  std::set<int64_t> written;  // offsets: blocks write to whole irreps
  int64_t total = 0;
  for (const LinearBlock& b : map.blocks)
    if (b.channels_in * b.channels_out > 0 && written.insert(transpose ? b.in_offset : b.out_offset).second)
      total += b.components * (transpose ? b.channels_in : b.channels_out);
  return total == (transpose ? map.dim_in : map.dim_out);
}

// All components of an irrep have one matrix: a batch of products.
void apply(const LinearMap& map, const Tensor& weights, const Tensor& x, const Tensor& y, bool fresh, bool transpose) {
  if (fresh && !covers(map, transpose)) y.zero_(), fresh = false;
  std::set<int64_t> written;
  for_blocks(map, weights, [&](const LinearBlock& b, const Tensor& matrix) {
    const Tensor from = transpose ? components_of(x, b.out_offset, b.components, b.channels_out)
                                  : components_of(x, b.in_offset, b.components, b.channels_in);
    const int64_t offset = transpose ? b.in_offset : b.out_offset;
    Tensor to = components_of(y, offset, b.components, transpose ? b.channels_in : b.channels_out);
    const Tensor factor = transpose ? matrix.t() : matrix;
    const bool first = fresh && written.insert(offset).second;  // what lies there yet is not used, whatever it is
    to.baddbmm_(from, factor.expand({b.components, -1, -1}), first ? 0 : 1, 1);
  });
}

// The first atoms ordered by species.
struct SpeciesOrder {
  Tensor order, place;  // row n of the ordered ones is atom order[n]; atom i is row place[i]
  std::vector<int64_t> start;
};

// By the types, or by the same `types_on_host`, for which nothing has to be waited for.
std::shared_ptr<const SpeciesOrder> order_species(const Tensor& types, int64_t num_atoms, int64_t num_species,
                                                  const Tensor& types_on_host = {}) {
  // Never destroyed: when the process ends, the GPU's memory may be gone before.
  static auto* known = new TensorCache<SpeciesOrder>(64, false);
  return known->get({types}, {num_atoms, num_species}, [&] {
    const Tensor given = types_on_host.defined() ? types_on_host : types;
    auto [sorted, order] = at::sort(given.narrow(0, 0, num_atoms), std::optional<bool>(true), 0, false);
    const Tensor bounds = at::searchsorted(sorted, at::arange(num_species + 1, given.options())).cpu();
    const Tensor place = at::empty_like(order);
    place.index_copy_(0, order, at::arange(num_atoms, given.options()));
    SpeciesOrder result{order.to(types.device(), true), place.to(types.device(), true), {}};
    result.start.assign(bounds.const_data_ptr<int64_t>(), bounds.const_data_ptr<int64_t>() + num_species + 1);
    TORCH_CHECK_INDEX(result.start.front() == 0 && result.start.back() == num_atoms,
                      "equipot::linear: types must be from 0 to ", num_species - 1);
    return result;
  });
}

}  // namespace

LinearMap linear_map_of(const Tensor& blocks, int64_t dim_in, int64_t dim_out, int64_t num_weights) {
  const auto map_of = [&](const Tensor& on_cpu) {
    TORCH_CHECK(on_cpu.dim() == 2 && on_cpu.size(1) == 5 && on_cpu.scalar_type() == at::kLong,
                "equipot::linear: expected blocks (B, 5) int64, found ", on_cpu.sizes());
    const Tensor table = on_cpu.contiguous();
    return make_linear_map(reinterpret_cast<const LinearBlock*>(table.const_data_ptr<int64_t>()), table.size(0), dim_in,
                           dim_out, num_weights);
  };
  if (blocks.is_cpu()) return map_of(blocks);
  static TensorCache<LinearMap> known(4096, true);
  return *known.get({blocks}, {dim_in, dim_out, num_weights}, [&] { return map_of(blocks.cpu()); });
}

void know_types(const Tensor& types, const Tensor& types_on_host, int64_t num_species) {
  TORCH_CHECK(types_on_host.is_cpu() && types_on_host.sizes() == types.sizes(), "equipot::know_types: not the same types");
  const c10::OptionalDeviceGuard guard(types.device());
  if (num_species > 1 && on_gpu(types)) order_species(types, types.size(0), num_species, types_on_host);
}

void add_linear_gpu(const LinearMap& map, const Tensor& weights, const Tensor& x, const Tensor& y, bool fresh) {
  apply(map, weights, x, y, fresh, false);
}

void add_transposed_linear_gpu(const LinearMap& map, const Tensor& weights, const Tensor& x, const Tensor& y,
                               bool fresh) {
  apply(map, weights, x, y, fresh, true);
}

Tensor linear_gpu(const LinearMap& map, const Tensor& x, const Tensor& weights, const Tensor& types, bool transpose) {
  const c10::OptionalDeviceGuard guard(x.device());
  const Tensor y = at::empty({x.size(0), transpose ? map.dim_in : map.dim_out}, x.options());
  if (weights.size(0) == 1) {
    apply(map, weights.select(0, 0), x, y, true, transpose);
    return y;
  }
  const auto species = order_species(types, x.size(0), weights.size(0));
  const Tensor ordered = x.index_select(0, species->order);
  for (int64_t type = 0; type < weights.size(0); ++type) {
    const int64_t first = species->start[type], count = species->start[type + 1] - first;
    if (count > 0)
      apply(map, weights.select(0, type), ordered.narrow(0, first, count), y.narrow(0, first, count), true, transpose);
  }
  return y.index_select(0, species->place);
}

Tensor linear_outer_sum_gpu(const LinearMap& map, const Tensor& x, const Tensor& g, const Tensor& types,
                            int64_t num_species) {
  const c10::OptionalDeviceGuard guard(x.device());
  const Tensor sums = at::zeros({num_species, map.num_weights}, x.options());
  const auto add = [&](const Tensor& from, const Tensor& to, const Tensor& row) {
    for_blocks(map, row, [&](const LinearBlock& b, Tensor matrix) {
      const Tensor left = components_of(from, b.in_offset, b.components, b.channels_in);
      const Tensor right = components_of(to, b.out_offset, b.components, b.channels_out);
      at::sum_out(matrix, left.transpose(1, 2).bmm(right), {0});
    });
  };
  if (x.size(0) == 0) return sums;
  if (num_species == 1) {
    add(x, g, sums.select(0, 0));
    return sums;
  }
  const auto species = order_species(types, x.size(0), num_species);
  const Tensor left = x.index_select(0, species->order), right = g.index_select(0, species->order);
  for (int64_t type = 0; type < num_species; ++type) {
    const int64_t first = species->start[type], count = species->start[type + 1] - first;
    if (count > 0) add(left.narrow(0, first, count), right.narrow(0, first, count), sums.select(0, type));
  }
  return sums;
}

}  // namespace equipot
