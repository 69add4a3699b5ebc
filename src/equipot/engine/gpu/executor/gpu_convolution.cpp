#include "gpu_convolution.h"

#include <map>


namespace equipot {

GpuPerceptron::GpuPerceptron(GpuModel& model, const Perceptron<double>& network) {
  for (const auto& layer : network.layers) {
    const LinearBlock block{1, layer.in, layer.out, 0, 0};
    layers_.emplace_back(model, make_linear_map(&block, 1, layer.in, layer.out, layer.in * layer.out), layer.weights);
    widths_.push_back(layer.out);
  }
}

GpuArray GpuPerceptron::first(const GpuContext& c, const GpuArray& x) const {
  GpuArray to = c.make(x.rows, widths_[0]);
  layers_[0].forth.apply(c, x.rows, x, to, {});
  return to;
}

GpuArray GpuPerceptron::forward_from_first(const GpuContext& c, std::vector<GpuArray>& hidden) const {
  for (size_t k = 1; k < layers_.size(); ++k) {
    GpuArray to = c.make(hidden.back().rows, widths_[k]);
    layers_[k].forth.apply(c, to.rows, hidden.back(), to, {.activate = true});
    hidden.push_back(std::move(to));
  }
  GpuArray result = std::move(hidden.back());
  hidden.pop_back();
  return result;
}

GpuArray GpuPerceptron::backward_to_first(const GpuContext& c, const std::vector<GpuArray>& hidden,
                                          GpuArray gradient) const {
  for (size_t k = layers_.size() - 1; k > 0; --k) {
    GpuArray to = c.make(gradient.rows, widths_[k - 1]);
    layers_[k].back.apply(c, to.rows, gradient, to, {.slope_at = hidden[k - 1].data()});
    gradient = std::move(to);
  }
  return gradient;
}

GpuBessel::GpuBessel(GpuModel& model, const Bessel<double>& basis)
    : frequencies_(model.keep(basis.frequencies)), size_(basis.size()) {
  facts_.factor = basis.factor, facts_.cutoff = basis.cutoff, facts_.begin = basis.start, facts_.power = basis.power;
}

GpuRowArrays<void> GpuBessel::arrays(const GpuContext& c) const {
  GpuRowArrays<void> arrays = facts_;
  arrays.a = c.length, arrays.b = frequencies_.get();
  return arrays;
}

GpuArray GpuBessel::forward(const GpuContext& c) const {
  GpuArray to = c.make(c.num_edges, size_);
  GpuRowArrays<void> given = arrays(c);
  given.out = to.data();
  c.run("bessel", given, c.num_edges, size_);
  return to;
}

void GpuBessel::backward(const GpuContext& c, const GpuArray& gradient) const {
  GpuRowArrays<void> given = arrays(c);
  given.c = gradient.data(), given.out = c.geometry, given.more = size_, given.stride = c.dim_sh + 1;
  c.run("bessel_gradient", given, c.num_edges, 1);
}

namespace {

// Whether each number of a row is some path's.
bool covers(const Plan<double>& plan, bool messages) {
  std::map<int64_t, int64_t> blocks;  // by where they begin; those of one place are the same
  for (const Coupling& coupling : plan.couplings)
    for (const Path& path : coupling.paths)
      blocks[messages ? path.out_offset : path.in_offset] =
          path.channels * (2 * (messages ? coupling.l_out : coupling.l_in) + 1);
  int64_t total = 0;
  for (const auto& [offset, size] : blocks) total += size;
  return total == (messages ? plan.dim_out : plan.dim_in);
}

// to (rows, stride) (+)= the sum of shares (count, rows, width).
void add_shares(const GpuContext& c, const GpuArray& shares, int64_t count, int64_t rows, void* to, int64_t stride, bool add) {
  GpuRowArrays<void> arrays{};
  arrays.a = shares.data(), arrays.out = to, arrays.more = count, arrays.stride = stride, arrays.add = add;
  c.run("add_shares", arrays, rows, shares.width);
}

}  // namespace

GpuConvolution::GpuConvolution(GpuModel& model, const Plan<double>& plan, bool tabulated)
    : plan_(plan), by_records_(tabulated), fills_messages_(covers(plan, true)), fills_x_(covers(plan, false)) {
  GpuForm form{.pass = GpuPass::center, .single = model.single(), .mixed = false, .tabulated = tabulated, .geometry = true};
  center_ = model.compile(generate(plan, form));
  form.pass = GpuPass::neighbor;
  neighbor_ = model.compile(generate(plan, form));
  if (by_records_) make_records_ = model.compile(generate_records(plan.dim_sh, model.single()));
}

// All layers with such a table share them.
const void* GpuConvolution::records(const GpuContext& c, const Given& given) const {
  if (!by_records_) return nullptr;
  GpuArray& found = c.records[{given.intervals, given.cutoff}];
  if (found.exists()) return found.data();
  found = c.make(c.num_edges, gpu_record_width(c.dim_sh));
  GpuRecordArrays<void> arrays{};
  arrays.sh = c.sh, arrays.length = c.length, arrays.center = c.center, arrays.neighbor = c.neighbor;
  arrays.records = found.data();
  arrays.num_edges = c.num_edges, arrays.intervals = given.intervals, arrays.cutoff = given.cutoff;
  const int64_t threads = make_records_.code.threads;
  c.launch(make_records_, (c.num_edges + threads - 1) / threads, arrays);
  return found.data();
}

GpuArrays<void> GpuConvolution::arrays_of(const GpuContext& c, const Given& given) const {
  GpuArrays<void> arrays{};
  arrays.x = given.x, arrays.w = given.w, arrays.sh = c.sh, arrays.length = c.length;
  arrays.table = given.table, arrays.intervals = given.intervals, arrays.cutoff = given.cutoff;
  arrays.center = c.center, arrays.neighbor = c.neighbor;
  arrays.order = c.counting, arrays.start = c.first_edge;
  arrays.num_edges = c.num_edges, arrays.records = records(c, given);
  return arrays;
}

// Rows of all atoms, by one block for each atom and part of its edges; parts are added in order.
void GpuConvolution::run(const GpuContext& c, const GpuCompiled& pass, GpuArrays<void> arrays, void* GpuArrays<void>::*to,
                         const GpuArray& rows, bool filled, const Turns& turns) const {
  const int64_t parts = gpu_parts(pass.code, rows.rows, c.num_edges);
  const GpuArray own = parts > 1 ? c.make(parts * rows.rows, rows.width) : GpuArray{};
  const GpuArray& written = parts > 1 ? own : rows;
  if (!filled) c.zero(written);
  arrays.parts = parts;
  const auto take = [&](const Rows& some) {
    GpuArrays<void> these = arrays;
    these.items = some.items, these.start += some.first;
    these.*to = c.model.offset(written.data(), some.first * rows.width);
    if (some.first > 0) these.x = c.model.offset(arrays.x, some.first * plan_.dim_in);  // of the neighbor pass, one row for each
    c.launch(pass, some.number, these, parts);
  };
  if (c.exchange != nullptr && parts == 1) {
    take(turns.first), turns.between(), take(turns.last);
    return;
  }
  if (turns.last_needs_it) turns.between();
  take({nullptr, 0, rows.rows});
  if (parts > 1) add_shares(c, own, parts, rows.rows, rows.data(), rows.width, false);
  if (!turns.last_needs_it) turns.between();
}

GpuArray GpuConvolution::send(const GpuContext& c, const Given& given, const std::function<void()>& ghosts_are_there) const {
  GpuArray messages = c.make(c.num_computed, plan_.dim_out);
  const auto [atoms, num_inner] = c.inner_first;
  run(c, center_, arrays_of(c, given), &GpuArrays<void>::grad_g, messages, fills_messages_,
      {{atoms, 0, num_inner}, {atoms + num_inner, 0, c.num_computed - num_inner}, ghosts_are_there, true});
  return messages;
}

void GpuConvolution::receive(const GpuContext& c, const Given& given, const GpuArray& gradient, const GpuArray& by_x, void* by_w,
                             const std::function<void()>& ghosts_are_done) const {
  const GpuArray shares = c.make(neighbor_.code.warps * c.num_edges, neighbor_.code.values);
  GpuArrays<void> arrays = arrays_of(c, given);
  arrays.order = c.order, arrays.start = c.start;
  arrays.g = gradient.data(), arrays.grad_w = by_w, arrays.shares = shares.data();
  run(c, neighbor_, arrays, &GpuArrays<void>::grad_x, by_x, fills_x_,
      {{nullptr, c.num_computed, c.num_atoms - c.num_computed}, {nullptr, 0, c.num_computed}, ghosts_are_done, false});
  add_shares(c, shares, neighbor_.code.warps, c.num_edges, c.geometry, c.dim_sh + 1, true);
}

}  // namespace equipot
