// From torch tensors to the kernels of gpu_code.h.
#include "gpu_passes.h"

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>

#include <bit>
#include <map>

#include "gpu_arrays.h"
#include "gpu_cache.h"
#include "gpu_code.h"
#include "gpu_torch.h"
#include "tensor_plan.h"

namespace equipot {
namespace {

using at::Tensor;

// ---- edges grouped by atom --------------------------------------------------------------------------------

// Those of group n are order[start[n]] ... order[start[n + 1] - 1], in their original order.
struct Groups {
  Tensor order, start;
};

// Nothing here waits for the GPU. Keys from `count` on belong to no group.
Groups group_by(const Tensor& keys, int64_t count) {
  auto [sorted, order] = at::sort(keys, std::optional<bool>(true), 0, false);
  return {order, at::searchsorted(sorted, at::arange(count + 1, keys.options()))};
}

// Of the last few graphs: all layers share them, and so do their derivatives. Never destroyed: when the process ends,
// the GPU's memory may be gone before.
TensorCache<Groups>& known_groups() {
  static auto* groups = new TensorCache<Groups>(12, false);
  return *groups;
}

int64_t stream_key() { return reinterpret_cast<int64_t>(gpu_launcher().stream()); }

// On the GPU the check fails later, with the next operation that waits for it.
void check_range_gpu(const Tensor& atoms, int64_t num_atoms) {
  at::_assert_async(at::logical_and(atoms.ge(0), atoms.lt(num_atoms)).all(),
                    "equipot: an edge refers to atom -1 or less, or to one there is not");
}

// `side`: by center (0) or by neighbor (1).
std::shared_ptr<const Groups> group_edges_gpu(const Tensor& edge_index, int64_t side, int64_t num_atoms) {
  return known_groups().get({edge_index}, {side, num_atoms, stream_key()}, [&] {
    const Tensor atoms = edge_index.dim() == 2 ? edge_index.select(0, side) : edge_index;
    check_range_gpu(atoms, num_atoms);
    return group_by(atoms, num_atoms);
  });
}

// By interval of the table; edges from the cutoff on belong to none.
std::shared_ptr<const Groups> group_by_interval(const Inputs& in) {
  const int64_t intervals = in.table.size(0) - 5;
  return known_groups().get({in.edge_length}, {2, intervals, std::bit_cast<int64_t>(in.cutoff), stream_key()}, [&] {
    const Tensor position = in.edge_length.flatten() / in.cutoff * double(intervals);
    return group_by(position.floor().clamp(0.0, double(intervals)).to(at::kLong), intervals);
  });
}

// ---- kernels ----------------------------------------------------------------------------------------------

struct Kernel {
  GpuCode code;
  void* function;
};

// Memory that the driver lacks for code is torch's lack of memory: what is computed at once is halved then.
template <class F>
auto torchs_memory(const F& work) {
  try {
    return work();
  } catch (const std::bad_alloc&) {
    TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory: the driver has none left for kernels");
  }
}

// Compiled once per process for each device and text.
Kernel compile(GpuCode code, c10::Device device) {
  static std::mutex mutex;
  static std::map<std::tuple<GpuLauncher*, int, std::string>, void*> known;
  const std::lock_guard<std::mutex> guard(mutex);
  GpuLauncher& launcher = gpu_launcher();
  const auto [at, is_new] = known.try_emplace({&launcher, int(device.index()), code.source}, nullptr);
  if (at->second == nullptr) at->second = torchs_memory([&] { return launcher.compile(code.source, gpu_kernel_name); });
  code.source.clear();
  return {std::move(code), at->second};
}

std::shared_ptr<const Kernel> kernel(const Inputs& in, const GpuForm& form, int64_t dim_out) {
  static TensorCache<Kernel> known(4096, true);
  const std::vector<int64_t> key{int64_t(form.pass), form.single,     form.mixed,      form.tabulated,
                                 form.geometry,      in.x.size(1),    in.sh.size(1),   dim_out,
                                 in.num_weights(),   in.x.device().index(), gpu_is_emulated()};
  return known.get({in.paths, in.coefficients}, key, [&] {
    const Plan<double> plan = make_plan<double>(in.paths.cpu(), in.coefficients.cpu(), in.x.size(1), in.sh.size(1),
                                                dim_out, in.num_weights());
    return compile(generate(plan, form), in.x.device());
  });
}

GpuForm form_of(const Inputs& in, GpuPass pass, bool geometry) {
  TORCH_CHECK(in.x.scalar_type() == at::kFloat || in.x.scalar_type() == at::kDouble,
              "equipot::convolution: expected float32 or float64, found ", in.x.scalar_type());
  return {.pass = pass, .single = in.x.scalar_type() == at::kFloat, .mixed = in.x_cotangent.defined(),
          .tabulated = in.table.defined(), .geometry = geometry};
}

template <class T>
T* pointer(const Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(tensor.data_ptr()) : nullptr;
}

template <class Arrays>
void launch(const Kernel& kernel, int64_t blocks, Arrays& arrays, int64_t parts = 1) {
  const GpuCode& code = kernel.code;
  torchs_memory([&] {
    gpu_launcher().launch(kernel.function, {blocks, code.blocks_y, code.blocks_z * parts}, code.threads, &arrays);
  });
}

// Kernels load up to 16 bytes at a time; a view may begin in between.
Inputs aligned(Inputs in) {
  for (Tensor* tensor : {&in.x, &in.weights, &in.gradient, &in.table})
    if (tensor->defined() && reinterpret_cast<uintptr_t>(tensor->data_ptr()) % 16 != 0) *tensor = tensor->clone();
  TORCH_CHECK(in.num_edges() < INT32_MAX, "equipot::convolution: ", in.num_edges(), " edges are too many for a GPU");
  return in;
}

// What the plain passes need of the edges, once for all layers; undefined for the others. Kept like the groups.
Tensor records_of(const Inputs& in, const GpuForm& form) {
  if (!form.by_records()) return {};
  static auto* known = new TensorCache<Tensor>(4, false);
  const int64_t intervals = in.table.size(0) - 5, dim_sh = in.sh.size(1);
  const std::vector<int64_t> key{intervals, std::bit_cast<int64_t>(in.cutoff), stream_key()};
  return *known->get({in.sh, in.edge_length, in.edge_index}, key, [&] {
    const Tensor records = at::empty({in.num_edges(), gpu_record_width(dim_sh)}, in.sh.options());
    const Kernel kernel = compile(generate_records(dim_sh, form.single), in.sh.device());
    GpuRecordArrays<void> arrays{};
    arrays.sh = pointer<void>(in.sh), arrays.length = pointer<void>(in.edge_length);
    arrays.center = pointer<long long>(in.edge_index), arrays.neighbor = arrays.center + in.num_edges();
    arrays.records = pointer<void>(records);
    arrays.num_edges = in.num_edges(), arrays.intervals = intervals, arrays.cutoff = in.cutoff;
    launch(kernel, (in.num_edges() + kernel.code.threads - 1) / kernel.code.threads, arrays);
    return records;
  });
}

// A row for each atom, or for each part and atom.
Tensor zero_rows(const Inputs& in, int64_t parts, int64_t columns) {
  return at::zeros({parts, in.num_atoms(), columns}, in.x.options());
}

Tensor sum_of_parts(const Tensor& rows) { return rows.size(0) == 1 ? rows.squeeze(0) : rows.sum(0); }

GpuArrays<void> arrays_of(const Inputs& in, const Groups& groups, const Tensor& records, int64_t parts) {
  GpuArrays<void> arrays{};
  arrays.x = pointer<void>(in.x), arrays.sh = pointer<void>(in.sh), arrays.w = pointer<void>(in.weights);
  arrays.g = pointer<void>(in.gradient);
  arrays.x_cotangent = pointer<void>(in.x_cotangent);
  arrays.sh_cotangent = pointer<void>(in.sh_cotangent);
  arrays.w_cotangent = pointer<void>(in.weights_cotangent);
  arrays.table = pointer<void>(in.table), arrays.length = pointer<void>(in.edge_length);
  arrays.table_cotangent = pointer<void>(in.table_cotangent);
  arrays.length_cotangent = pointer<void>(in.length_cotangent);
  arrays.center = pointer<long long>(in.edge_index);
  arrays.neighbor = arrays.center + in.num_edges();
  arrays.order = pointer<long long>(groups.order), arrays.start = pointer<long long>(groups.start);
  arrays.records = pointer<void>(records);
  arrays.num_edges = in.num_edges(), arrays.parts = parts;
  arrays.intervals = in.table.defined() ? in.table.size(0) - 5 : 0;
  arrays.cutoff = in.cutoff;
  return arrays;
}

// An interval's edges are shared out where there are many; each part is summed on its own, then all in order.
Tensor table_gradient(const Inputs& in) {
  const int64_t intervals = in.table.size(0) - 5;
  const int64_t parts = gpu_table_parts(in.num_edges(), intervals);
  const auto groups = group_by_interval(in);
  const auto pass = kernel(in, form_of(in, GpuPass::table, true), in.gradient.size(1));
  const Tensor rows = at::empty({parts, intervals, 6, in.num_weights()}, in.x.options());
  auto arrays = arrays_of(in, *groups, {}, parts);
  arrays.grad_rows = pointer<void>(rows);
  launch(*pass, intervals, arrays, parts);
  const Tensor total = rows.sum(0);
  Tensor table = at::zeros_like(in.table);
  for (int64_t b = 0; b < 6; ++b) table.narrow(0, b, intervals).add_(total.select(1, b));
  return table;
}

}  // namespace

bool on_gpu(const Tensor& tensor) { return tensor.is_cuda() || gpu_is_emulated(); }

// ---- the passes -------------------------------------------------------------------------------------------

Tensor center_gradient_gpu(const Inputs& given, int64_t dim_out) {
  const c10::OptionalDeviceGuard guard(given.x.device());
  const Inputs in = aligned(given);
  const GpuForm form = form_of(in, GpuPass::center, true);
  const auto pass = kernel(in, form, dim_out);
  if (in.num_edges() == 0) return at::zeros({in.num_atoms(), dim_out}, in.x.options());
  const auto groups = group_edges_gpu(in.edge_index, 0, in.num_atoms());
  const Tensor records = records_of(in, form);
  const int64_t parts = gpu_parts(pass->code, in.num_atoms(), in.num_edges());
  const Tensor rows = zero_rows(in, parts, dim_out);
  auto arrays = arrays_of(in, *groups, records, parts);
  arrays.grad_g = pointer<void>(rows);
  launch(*pass, in.num_atoms(), arrays, parts);
  return sum_of_parts(rows);
}

Gradients neighbor_gradients_gpu(const Inputs& given, const Wanted& wanted) {
  const c10::OptionalDeviceGuard guard(given.x.device());
  const Inputs in = aligned(given);
  const bool tabulated = in.table.defined();
  const GpuForm form = form_of(in, GpuPass::neighbor, wanted.geometry);
  const auto pass = kernel(in, form, in.gradient.size(1));
  Gradients grad;
  Tensor shares;
  if (wanted.geometry) shares = at::empty({pass->code.warps, in.num_edges(), pass->code.values}, in.x.options());
  if (!tabulated) grad.radial = at::empty_like(in.weights);
  if (wanted.table) grad.table = in.num_edges() > 0 ? table_gradient(in) : at::zeros_like(in.table);
  if (in.num_edges() > 0) {
    const auto groups = group_edges_gpu(in.edge_index, 1, in.num_atoms());
    const Tensor records = records_of(in, form);
    const int64_t parts = gpu_parts(pass->code, in.num_atoms(), in.num_edges());
    const Tensor rows = zero_rows(in, parts, in.x.size(1));
    auto arrays = arrays_of(in, *groups, records, parts);
    arrays.grad_x = pointer<void>(rows);
    arrays.grad_w = pointer<void>(grad.radial);
    arrays.shares = pointer<void>(shares);
    launch(*pass, in.num_atoms(), arrays, parts);
    grad.x = sum_of_parts(rows);
  } else {
    grad.x = at::zeros_like(in.x);
  }
  if (wanted.geometry) {
    const Tensor total = shares.sum(0);
    grad.sh = total.narrow(1, 0, in.sh.size(1)).contiguous();
    if (tabulated) grad.radial = total.narrow(1, in.sh.size(1), 1).contiguous();
  }
  return grad;
}

// ---- atom_product.h ---------------------------------------------------------------------------------------

Tensor atom_product_gpu(const Tensor& matrices, const Tensor& x, const Tensor& center, bool transposed) {
  const c10::OptionalDeviceGuard guard(x.device());
  Tensor y = at::empty({x.size(0), matrices.size(transposed ? 2 : 1), x.size(2)}, x.options());
  check_range_gpu(center, matrices.size(0));
  if (y.numel() == 0) return y;
  const Kernel pass = compile(generate(GpuProductForm{transposed ? GpuProductForm::transposed : GpuProductForm::product,
                                                      x.scalar_type() == at::kFloat, matrices.size(1),
                                                      matrices.size(2), x.size(2)}),
                              x.device());
  GpuProductArrays<void> arrays{};
  arrays.matrices = pointer<void>(matrices), arrays.left = pointer<void>(x), arrays.out = pointer<void>(y);
  arrays.center = pointer<long long>(center);
  arrays.num_edges = x.size(0);
  launch(pass, (x.size(0) + gpu_edges_per_block - 1) / gpu_edges_per_block, arrays);
  return y;
}

Tensor atom_outer_sum_gpu(const Tensor& left, const Tensor& right, const Tensor& center, int64_t num_atoms) {
  const c10::OptionalDeviceGuard guard(left.device());
  const int64_t rows = left.size(1), columns = right.size(1), channels = left.size(2), num_edges = left.size(0);
  if (num_atoms == 0 || num_edges == 0) return at::zeros({num_atoms, rows, columns, channels}, left.options());
  // Where atoms are few and their edges many, several blocks share those of one.
  const int64_t parts = std::clamp<int64_t>(num_edges / (256 * num_atoms), 1, 64);
  const auto groups = group_edges_gpu(center, 0, num_atoms);
  const Kernel pass = compile(
      generate(GpuProductForm{GpuProductForm::outer_sum, left.scalar_type() == at::kFloat, rows, columns, channels}),
      left.device());
  const Tensor out = at::empty({parts, num_atoms, rows, columns, channels}, left.options());
  GpuProductArrays<void> arrays{};
  arrays.left = pointer<void>(left), arrays.right = pointer<void>(right), arrays.out = pointer<void>(out);
  arrays.order = pointer<long long>(groups->order), arrays.start = pointer<long long>(groups->start);
  arrays.num_edges = num_edges, arrays.num_atoms = num_atoms, arrays.parts = parts;
  launch(pass, num_atoms * parts, arrays);
  return parts == 1 ? out.squeeze(0) : out.sum(0);
}

// ---- rows as they lie -------------------------------------------------------------------------------------

Tensor segment_sum_gpu(const Tensor& values, const Tensor& index, int64_t row, int64_t num_segments) {
  const c10::OptionalDeviceGuard guard(values.device());
  const int64_t columns = values.size(1), num_rows = values.size(0);
  if (num_rows == 0 || num_segments == 0 || columns == 0) return at::zeros({num_segments, columns}, values.options());
  // Where segments are few and long, several threads share one.
  const int64_t parts = std::clamp<int64_t>(num_rows / (256 * num_segments), 1, 1024);
  const auto groups = group_edges_gpu(index, row, num_segments);
  const bool single = values.scalar_type() == at::kFloat;
  TORCH_CHECK(single || values.scalar_type() == at::kDouble, "equipot::segment_sum: expected float32 or float64, found ",
              values.scalar_type());
  const Kernel pass = compile(generate_segment_sum(single), values.device());
  const Tensor out = at::empty({parts, num_segments, columns}, values.options());
  GpuSumArrays<void> arrays{};
  arrays.values = pointer<void>(values), arrays.out = pointer<void>(out);
  arrays.order = pointer<long long>(groups->order), arrays.start = pointer<long long>(groups->start);
  arrays.segments = num_segments, arrays.columns = columns, arrays.parts = parts;
  launch(pass, (out.numel() + pass.code.threads - 1) / pass.code.threads, arrays);
  return parts == 1 ? out.squeeze(0) : out.sum(0);
}

namespace {

void launch_gate(const GateShape& gate, const Tensor& blocks, GpuGatePass pass, const Tensor& x,
                 const GpuGateArrays<void>& arrays) {
  const c10::OptionalDeviceGuard guard(x.device());
  const bool single = x.scalar_type() == at::kFloat;
  static TensorCache<Kernel> known(512, true);
  const std::vector<int64_t> key{single, int64_t(pass), gate.num_even, gate.num_odd,
                                 std::bit_cast<int64_t>(gate.even_factor), std::bit_cast<int64_t>(gate.odd_factor),
                                 x.device().index(), gpu_is_emulated()};
  const auto kernel = known.get({blocks}, key, [&] { return compile(generate(gate, single, pass), x.device()); });
  GpuGateArrays<void> given = arrays;
  given.x = pointer<void>(x);
  if (x.size(0) > 0) launch(*kernel, x.size(0), given);
}

}  // namespace

Tensor gate_gpu(const GateShape& gate, const Tensor& blocks, const Tensor& x) {
  const Tensor out = at::empty({x.size(0), gate.dim_out}, x.options());
  launch_gate(gate, blocks, GpuGatePass::value, x, {.out = pointer<void>(out)});
  return out;
}

Tensor gate_gradient_gpu(const GateShape& gate, const Tensor& blocks, const Tensor& x, const Tensor& gradient) {
  const Tensor out = at::empty({x.size(0), gate.dim_in}, x.options());
  launch_gate(gate, blocks, GpuGatePass::gradient, x, {.gradient = pointer<void>(gradient), .out = pointer<void>(out)});
  return out;
}

std::tuple<Tensor, Tensor> gate_second_gpu(const GateShape& gate, const Tensor& blocks, const Tensor& x,
                                           const Tensor& gradient, const Tensor& cotangent) {
  const Tensor by_x = at::empty_like(x), by_gradient = at::empty_like(gradient);
  launch_gate(gate, blocks, GpuGatePass::second, x,
              {.gradient = pointer<void>(gradient), .cotangent = pointer<void>(cotangent), .out = pointer<void>(by_x),
               .by_gradient = pointer<void>(by_gradient)});
  return {by_x, by_gradient};
}

}  // namespace equipot
