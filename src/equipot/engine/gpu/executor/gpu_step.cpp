#include "gpu_step.h"

#include <algorithm>
#include <utility>

#include "gpu_exchange.h"

namespace equipot {

GpuModel::GpuModel(GpuDevice& device, bool single, int64_t num_types)
    : device_(device), memory_(device), single_(single), num_types_(num_types), code_(gpu_rows_code(single)) {}

void* GpuModel::rows(const char* name) {
  void*& found = kernels_[name];
  if (found == nullptr) found = device_.compile(code_, name);
  return found;
}

GpuCompiled GpuModel::compile(GpuCode code) {
  GpuCompiled compiled{device_.compile(code.source, gpu_kernel_name), std::move(code)};
  compiled.code.source.clear();
  return compiled;
}

GpuMemory::Buffer GpuModel::keep(const std::vector<double>& numbers) {
  if (!single_) return memory_.keep(numbers);
  return memory_.keep(std::vector<float>(numbers.begin(), numbers.end()));
}

void GpuContext::zero(const GpuArray& array) const {
  if (array.size() > 0) model.device().zero(array.data(), size_t(array.size()) * model.number_size());
}

GpuTarget GpuContext::target(int array, int64_t rows) {
  GpuArray& found = gradient(array);
  if (found.exists()) return {found, true};
  found = make(values_rows[size_t(array)], values_width[size_t(array)]);
  if (found.rows <= rows) return {found, false};
  zero(found);
  return {found, true};
}

void GpuContext::run(const char* name, GpuRowArrays<void> arrays, int64_t rows, int64_t width) const {
  arrays.rows = rows, arrays.width = width;
  const int64_t blocks = (rows * width + 127) / 128;
  if (blocks > 0) model.device().launch(model.rows(name), {blocks, 1, 1}, 128, &arrays);
}

void GpuContext::arrive() {
  GpuArray& x = value(coming);
  exchange->end_forward(*this, x);
  x.rows = values_rows[size_t(coming)] = num_atoms;
  coming = -1;
}

void GpuContext::run_warps(const char* name, GpuRowArrays<void> arrays, int64_t rows, int64_t width) const {
  arrays.rows = rows, arrays.width = width;
  if (rows > 0) model.device().launch(model.rows(name), {(rows + 3) / 4, 1, 1}, 128, &arrays);
}

namespace {

// What comes out of a map: one irrep, of which all components have the sources `from`.
struct Irrep {
  int64_t components, channels;
  std::vector<GpuLinearSource> from;
};

}  // namespace

GpuLinear::GpuLinear(GpuModel& model, const LinearMap& map, const std::vector<double>& weights, int64_t sets,
                     const std::vector<double>& bias, GpuSplit split)
    : weights_(model.keep(weights)), set_(map.num_weights), biased_(int64_t(bias.size())) {
  if (int64_t(weights.size()) != sets * set_) throw std::runtime_error("a linear map lacks weights");
  std::map<int64_t, Irrep> irreps;  // by where they begin
  int64_t at = 0;
  for (const LinearBlock& b : map.blocks) {
    if (b.channels_out > 0) {
      Irrep& irrep = irreps.try_emplace(b.out_offset, Irrep{b.components, b.channels_out, {}}).first->second;
      if (irrep.components != b.components || irrep.channels != b.channels_out)
        throw std::runtime_error("two blocks of a linear map begin at one number and are of different shapes");
      const bool second = b.in_offset >= split.x;
      if (b.channels_in > 0) irrep.from.push_back({b.in_offset - (second ? split.x : 0), b.channels_in, at, second});
    }
    at += b.channels_in * b.channels_out;
  }
  std::vector<GpuLinearItem> items;
  std::vector<GpuLinearSource> sources;
  const auto add_items = [&](int64_t offset, int64_t components, int64_t channels, int64_t first) {
    const bool second = offset >= split.y;
    if (second) offset -= split.y;
    for (int64_t m = 0; m < components; ++m)
      for (int64_t c = 0; c < channels; c += gpu_tile_columns)
        items.push_back({offset + m * channels + c, std::min<int64_t>(gpu_tile_columns, channels - c), c, channels, m, first,
                         int64_t(sources.size()), second});
  };
  int64_t end = 0;
  for (const auto& [offset, irrep] : irreps) {
    if (offset < end) throw std::runtime_error("two blocks of a linear map overlap");
    add_items(end, 1, offset - end, int64_t(sources.size()));  // zeros
    const auto first = int64_t(sources.size());
    sources.insert(sources.end(), irrep.from.begin(), irrep.from.end());
    add_items(offset, irrep.components, irrep.channels, first);
    end = offset + irrep.components * irrep.channels;
  }
  add_items(end, 1, map.dim_out - end, int64_t(sources.size()));
  num_items_ = int64_t(items.size());
  items_ = model.memory().keep(items), sources_ = model.memory().keep(sources), bias_ = model.keep(bias);
}

void GpuLinear::apply(const GpuContext& c, int64_t rows, const GpuArray& x, const GpuArray& y, const How& how) const {
  GpuLinearArrays<void> arrays{};
  arrays.x = x.data(), arrays.y = y.data(), arrays.weights = weights_.get(), arrays.bias = bias_.get();
  arrays.items = static_cast<const GpuLinearItem*>(items_.get());
  arrays.sources = static_cast<const GpuLinearSource*>(sources_.get());
  arrays.rows = rows, arrays.x_row = x.width, arrays.y_row = y.width, arrays.set = set_, arrays.biased = biased_;
  arrays.add = how.add, arrays.activate = how.activate, arrays.slope_at = how.slope_at;
  if (how.second_x != nullptr) arrays.second_x = how.second_x->data(), arrays.second_x_row = how.second_x->width;
  if (how.second_y != nullptr) {
    arrays.second_y = how.second_y->array.data(), arrays.second_y_row = how.second_y->array.width;
    arrays.add_second = how.second_y->add;
  }
  arrays.type_rows = how.type_rows, arrays.num_types = c.num_types;
  arrays.types = c.types, arrays.neighbor_types = c.neighbor_types, arrays.center = c.center, arrays.neighbor = c.neighbor;
  if (how.by_type) arrays.order = c.by_type, rows = c.padded;
  if (rows == 0) return;
  c.model.device().launch(c.model.rows("linear_rows"), {(rows + gpu_tile_rows - 1) / gpu_tile_rows, num_items_, 1},
                          gpu_tile_threads, &arrays);
}

}  // namespace equipot
