// equipot::interaction: convolution, mixing of its paths, and gate, for inference.
//
// On a CPU a few atoms at a time: what lies between these steps is wide (thousands of numbers per atom) and stays in a
// cache. On a GPU one step after the other. Forward keeps what the gate was given, from which backward starts. Gradients
// are those by features and geometry, once.
#include <ATen/Functions.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/autograd/custom_function.h>

#include <tuple>

#include "gate.h"
#include "gpu_linear.h"
#include "passes.h"

namespace equipot {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

constexpr int64_t atoms_at_once = 48;  // a multiple of the tiles in matmul.h; messages of so many stay in a cache

// The arguments that are no arrays of atoms or edges.
struct Block {
  double cutoff;
  Tensor mixing, blocks;
  int64_t dim_messages, num_even, num_odd;
  double even_factor, odd_factor;
};

GateShape make_gate(const LinearMap& map, const Block& block) {
  return make_gate(map, block.num_even, block.num_odd, block.even_factor, block.odd_factor);
}

// Calls work(first, count) for a few of the atoms at a time; threads get as many edges each as atoms allow.
template <class F>
void for_atoms(const EdgeGroups& groups, int64_t num_atoms, const F& work) {
  const int64_t num_edges = groups.start[num_atoms], parts = num_parts(num_edges);
  const auto boundary = [&](int64_t part) -> int64_t {
    if (part == parts) return num_atoms;  // also the last ones, if they have no edges
    const auto begin = groups.start.begin();
    return std::lower_bound(begin, begin + num_atoms, num_edges * part / parts) - begin;
  };
  const auto run = [&](int64_t first_part, int64_t last_part) {
    for (int64_t part = first_part; part < last_part; ++part)
      for (int64_t first = boundary(part), end = boundary(part + 1); first < end; first += atoms_at_once)
        work(first, std::min(atoms_at_once, end - first));
  };
  if (parts == 1) return run(0, 1);
  at::parallel_for(0, parts, 1, run);
}

template <class T>
struct Nonlinear {
  Tensor sigmoid, tanh;

  Nonlinear(const GateShape& gate, const Tensor& rows)
      : sigmoid(at::sigmoid(rows.narrow(1, 0, gate.num_sigmoid())).contiguous()),
        tanh(at::tanh(rows.narrow(1, gate.num_sigmoid(), gate.num_odd)).contiguous()) {}

  static Rows<const T> rows(const Tensor& t) { return {t.const_data_ptr<T>(), t.size(1)}; }
};

// in.x: (atoms, .) what the neighbors send; residual: (owned, .) what is added before the gate.
std::tuple<Tensor, Tensor> forward_compute(Inputs in, const Tensor& residual, const Block& block) {
  in = prepare(in);
  const int64_t owned = residual.size(0), dim_messages = block.dim_messages;
  TORCH_CHECK(residual.dim() == 2 && owned <= in.num_atoms() && residual.scalar_type() == in.x.scalar_type() &&
                  block.mixing.scalar_type() == in.x.scalar_type(),
              "equipot::interaction: expected a residual row for each of at most ", in.num_atoms(), " atoms, of type ",
              in.x.scalar_type(), ", found ", residual.sizes(), " ", residual.scalar_type());
  const Tensor update = residual.clone(at::MemoryFormat::Contiguous);
  const Tensor mixing = block.mixing.contiguous();
  const LinearMap map = linear_map_of(block.blocks, dim_messages, residual.size(1), mixing.numel());
  const GateShape gate = make_gate(map, block);
  if (on_gpu(in.x)) {
    const c10::OptionalDeviceGuard guard(in.x.device());
    add_linear_gpu(map, mixing.view(-1), center_gradient_gpu(in, dim_messages).narrow(0, 0, owned), update, false);
    return {gate_gpu(gate, block.blocks, update), update};
  }
  Tensor out = at::empty({owned, gate.dim_out}, in.x.options());
  AT_DISPATCH_FLOATING_TYPES(in.x.scalar_type(), "equipot::interaction", [&] {
    const auto plan = make_plan<scalar_t>(in.paths, in.coefficients, in.x.size(1), in.sh.size(1), dim_messages,
                                          in.num_weights());
    const auto arrays = arrays_of<scalar_t>(in);
    check_range(arrays.neighbor, in.num_edges(), in.num_atoms());
    const EdgeGroups groups = group_edges(arrays.center, in.num_edges(), in.num_atoms());
    for_atoms(groups, owned, [&](int64_t first, int64_t count) {
      std::vector<scalar_t> messages(size_t(count * dim_messages));
      auto here = arrays;
      here.grad_g = messages.data(), here.first_center = first;
      const int64_t begin = groups.start[first];
      center_pass(plan, here, groups.edges.data() + begin, groups.start[first + count] - begin);
      const Tensor rows = update.narrow(0, first, count);
      add_linear(map, mixing.const_data_ptr<scalar_t>(), count, messages.data(), rows.mutable_data_ptr<scalar_t>());
      const Nonlinear<scalar_t> f(gate, rows);
      gate_rows<scalar_t>(gate, count, f.rows(rows), f.rows(f.sigmoid), f.rows(f.tanh),
                          {out.mutable_data_ptr<scalar_t>() + first * gate.dim_out, gate.dim_out});
    });
  });
  return {out, update};
}

struct InteractionGradients {
  Tensor sent, residual, sh, edge_length;
};

InteractionGradients backward_compute(Inputs in, const Tensor& update, const Tensor& gradient_, const Block& block) {
  const Tensor gradient = gradient_.contiguous(), mixing = block.mixing.contiguous();
  const int64_t owned = update.size(0), dim_messages = block.dim_messages;
  const LinearMap map = linear_map_of(block.blocks, dim_messages, update.size(1), mixing.numel());
  const GateShape gate = make_gate(map, block);
  if (on_gpu(in.x)) {
    const c10::OptionalDeviceGuard guard(in.x.device());
    const Tensor for_update = gate_gradient_gpu(gate, block.blocks, update, gradient);
    in.gradient = at::empty({in.num_atoms(), dim_messages}, update.options());
    if (owned < in.num_atoms()) in.gradient.narrow(0, owned, in.num_atoms() - owned).zero_();
    add_transposed_linear_gpu(map, mixing.view(-1), for_update, in.gradient.narrow(0, 0, owned), true);
    const Gradients grad = neighbor_gradients_gpu(prepare(in), {.geometry = true, .table = false});
    return {grad.x, for_update, grad.sh, grad.radial};
  }
  Tensor for_update = at::empty_like(update);
  // Messages to atoms that are not owned, if there are any, were not used.
  const int64_t receiving = in.num_edges() == 0 ? 0 : in.edge_index[0].max().item<int64_t>() + 1;
  in.gradient = at::empty({std::max(owned, receiving), dim_messages}, update.options());
  in.gradient.narrow(0, owned, in.gradient.size(0) - owned).zero_();
  AT_DISPATCH_FLOATING_TYPES(update.scalar_type(), "equipot::interaction", [&] {
    const auto weights = transposed_weights(map, mixing.const_data_ptr<scalar_t>(), 1);
    const LinearMap to_messages = transposed(map);
    at::parallel_for(0, owned, atoms_at_once, [&](int64_t begin, int64_t end) {
      for (int64_t first = begin; first < end; first += atoms_at_once) {
        const int64_t count = std::min(atoms_at_once, end - first);
        const Tensor rows = update.narrow(0, first, count);
        const Nonlinear<scalar_t> f(gate, rows);
        scalar_t* for_rows = for_update.mutable_data_ptr<scalar_t>() + first * gate.dim_in;
        scalar_t* for_messages = in.gradient.mutable_data_ptr<scalar_t>() + first * dim_messages;
        gate_gradient_rows<scalar_t>(gate, count, f.rows(rows), f.rows(f.sigmoid), f.rows(f.tanh),
                                     f.rows(gradient.narrow(0, first, count)), {for_rows, gate.dim_in});
        std::fill_n(for_messages, count * dim_messages, scalar_t(0));
        add_linear(to_messages, weights.data(), count, for_rows, for_messages);
      }
    });
  });
  const Gradients grad = neighbor_gradients_cpu(prepare(in), {.geometry = true, .table = false});
  return {grad.x, for_update, grad.sh, grad.radial};
}

// ---- the operator -------------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> interaction_compute(const Tensor& sent, const Tensor& residual, const Tensor& sh,
                                               const Tensor& edge_length, const Tensor& table,
                                               const Tensor& edge_index, const Tensor& paths,
                                               const Tensor& coefficients, double cutoff, int64_t dim_messages,
                                               const Tensor& mixing, const Tensor& blocks, int64_t num_even,
                                               int64_t num_odd, double even_factor, double odd_factor) {
  return forward_compute({.x = sent, .sh = sh, .edge_length = edge_length, .table = table, .edge_index = edge_index,
                          .paths = paths, .coefficients = coefficients, .cutoff = cutoff},
                         residual,
                         {cutoff, mixing, blocks, dim_messages, num_even, num_odd, even_factor, odd_factor});
}

using Signature = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                             const Tensor&, const Tensor&, const Tensor&, double, int64_t,
                                             const Tensor&, const Tensor&, int64_t, int64_t, double, double);

struct InteractionFunction : public Function<InteractionFunction> {
  static variable_list forward(AutogradContext* context, const Tensor& sent, const Tensor& residual, const Tensor& sh,
                               const Tensor& edge_length, const Tensor& table, const Tensor& edge_index,
                               const Tensor& paths, const Tensor& coefficients, double cutoff, int64_t dim_messages,
                               const Tensor& mixing, const Tensor& blocks, int64_t num_even, int64_t num_odd,
                               double even_factor, double odd_factor) {
    static const auto handle =
        c10::Dispatcher::singleton().findSchemaOrThrow("equipot::interaction", "").typed<Signature>();
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto [out, update] =
        handle.call(sent, residual, sh, edge_length, table, edge_index, paths, coefficients, cutoff, dim_messages,
                    mixing, blocks, num_even, num_odd, even_factor, odd_factor);
    context->save_for_backward({sent, sh, edge_length, table, edge_index, paths, coefficients, mixing, blocks, update});
    context->saved_data["numbers"] = std::vector<double>{cutoff, even_factor, odd_factor};
    context->saved_data["sizes"] = std::vector<int64_t>{dim_messages, num_even, num_odd};
    context->mark_non_differentiable({update});
    return {out, update};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    constexpr int table = 4, mixing = 8;  // among the arguments that are tensors
    TORCH_CHECK_NOT_IMPLEMENTED(
        !at::GradMode::is_enabled() && !context->needs_input_grad(table) && !context->needs_input_grad(mixing),
        "equipot::interaction has first derivatives by features and geometry only. Put the model into train mode for "
        "second derivatives and those by parameters.");
    const auto saved = context->get_saved_variables();
    const auto numbers = context->saved_data["numbers"].toDoubleVector();
    const auto sizes = context->saved_data["sizes"].toIntVector();
    const Block block{numbers[0], saved[7], saved[8], sizes[0], sizes[1], sizes[2], numbers[1], numbers[2]};
    const auto grad = backward_compute({.x = saved[0], .sh = saved[1], .edge_length = saved[2], .table = saved[3],
                                        .edge_index = saved[4], .paths = saved[5], .coefficients = saved[6],
                                        .cutoff = numbers[0]},
                                       saved[9], gradients[0], block);
    variable_list result(16);
    result[0] = grad.sent, result[1] = grad.residual, result[2] = grad.sh, result[3] = grad.edge_length;
    return result;
  }
};

std::tuple<Tensor, Tensor> interaction_autograd(const Tensor& sent, const Tensor& residual, const Tensor& sh,
                                                const Tensor& edge_length, const Tensor& table,
                                                const Tensor& edge_index, const Tensor& paths,
                                                const Tensor& coefficients, double cutoff, int64_t dim_messages,
                                                const Tensor& mixing, const Tensor& blocks, int64_t num_even,
                                                int64_t num_odd, double even_factor, double odd_factor) {
  const auto out = InteractionFunction::apply(sent, residual, sh, edge_length, table, edge_index, paths, coefficients,
                                              cutoff, dim_messages, mixing, blocks, num_even, num_odd, even_factor,
                                              odd_factor);
  return {out[0], out[1]};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(equipot, library) {
  library.def(
      "interaction(Tensor sent, Tensor residual, Tensor sh, Tensor edge_length, Tensor table, Tensor edge_index, "
      "Tensor paths, Tensor coefficients, float cutoff, int dim_messages, Tensor mixing, Tensor blocks, int num_even, "
      "int num_odd, float even_factor, float odd_factor) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(equipot, CPU, library) { library.impl("interaction", interaction_compute); }

TORCH_LIBRARY_IMPL(equipot, CUDA, library) { library.impl("interaction", interaction_compute); }

TORCH_LIBRARY_IMPL(equipot, Autograd, library) { library.impl("interaction", interaction_autograd); }

}  // namespace equipot
