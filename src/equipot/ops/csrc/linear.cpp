// equipot::linear and equipot::linear_outer_sum, which are each other's derivatives; the mathematics is in linear.h, the GPU's part in gpu_linear.h.
#include "linear.h"

#include <ATen/Dispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include "parallel.h"
#include "gpu_linear.h"
#include "gpu_passes.h"

namespace equipot {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

constexpr int64_t rows_at_once = 48;  // a multiple of the tiles in matmul.h; what they read and write stays in a cache

void check_rows(const Tensor& x, const Tensor& weights, const Tensor& types) {
  TORCH_CHECK(x.dim() == 2 && weights.dim() == 2 && types.dim() == 1 && types.scalar_type() == at::kLong &&
                  (weights.size(0) == 1 || types.size(0) >= x.size(0)),
              "equipot::linear: expected x (N, dim), weights (species, W) and types (N or more) int64, found ", x.sizes(), ", ",
              weights.sizes(), " and ", types.sizes());
  TORCH_CHECK(x.scalar_type() == weights.scalar_type(), "equipot::linear: x and weights must have one dtype, found ",
              x.scalar_type(), " and ", weights.scalar_type());
}

// Rows of one species, or all rows where there is one species only, a few at a time: as they lie, or gathered.
struct RowGroups {
  int64_t num_rows;
  EdgeGroups by_type;  // empty for one species

  RowGroups(const Tensor& types, int64_t rows, int64_t species) : num_rows(rows) {
    if (species == 1) return;
    by_type = group_edges(types.const_data_ptr<int64_t>(), rows, species);
  }

  // Calls work(type, indices or null, first, count): rows indices[0 ... count - 1], or first ... first + count - 1.
  template <class F>
  void for_range(int64_t begin, int64_t end, const F& work) const {
    const std::vector<int64_t>& start = by_type.start;
    int64_t type = 0;
    while (begin < end) {
      while (!start.empty() && start[type + 1] <= begin) ++type;
      int64_t last = std::min(end, begin + rows_at_once);
      if (!start.empty()) last = std::min(last, start[type + 1]);
      work(type, start.empty() ? nullptr : by_type.edges.data() + begin, begin, last - begin);
      begin = last;
    }
  }
};

template <class T>
const T* gather(const T* x, int64_t dim, const int64_t* indices, int64_t first, int64_t count, std::vector<T>& buffer) {
  if (indices == nullptr) return x + first * dim;
  buffer.resize(size_t(rows_at_once * dim));
  for (int64_t n = 0; n < count; ++n) std::copy_n(x + indices[n] * dim, dim, buffer.data() + n * dim);
  return buffer.data();
}

Tensor linear_compute(const Tensor& x_, const Tensor& weights_, const Tensor& blocks, const Tensor& types_, int64_t dim,
                      bool transpose) {
  check_rows(x_, weights_, types_);
  const Tensor x = x_.contiguous(), weights = weights_.contiguous(), types = types_.contiguous();
  LinearMap map = transpose ? linear_map_of(blocks, dim, x.size(1), weights.size(1))
                            : linear_map_of(blocks, x.size(1), dim, weights.size(1));
  if (on_gpu(x)) return linear_gpu(map, x, weights, types, transpose);
  Tensor y = at::empty({x.size(0), dim}, x.options());
  const RowGroups groups(types, x.size(0), weights.size(0));
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "equipot::linear", [&] {
    const scalar_t* w = weights.const_data_ptr<scalar_t>();
    std::vector<scalar_t> by_columns;
    if (transpose) {
      by_columns = transposed_weights(map, w, weights.size(0));
      w = by_columns.data();
      map = transposed(map);
    }
    const scalar_t* from = x.const_data_ptr<scalar_t>();
    scalar_t* to = y.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, x.size(0), rows_at_once, [&](int64_t begin, int64_t end) {
      std::vector<scalar_t> rows_in, rows_out;
      groups.for_range(begin, end, [&](int64_t type, const int64_t* indices, int64_t first, int64_t count) {
        const scalar_t* in = gather(from, map.dim_in, indices, first, count, rows_in);
        if (indices != nullptr) rows_out.resize(size_t(rows_at_once * map.dim_out));
        scalar_t* out = indices == nullptr ? to + first * map.dim_out : rows_out.data();
        std::fill_n(out, count * map.dim_out, scalar_t(0));
        add_linear(map, w + type * map.num_weights, count, in, out);
        if (indices == nullptr) return;
        for (int64_t n = 0; n < count; ++n) std::copy_n(out + n * map.dim_out, map.dim_out, to + indices[n] * map.dim_out);
      });
    });
  });
  return y;
}

Tensor outer_sum_compute(const Tensor& x_, const Tensor& g_, const Tensor& blocks, const Tensor& types_,
                         int64_t num_species, int64_t num_weights) {
  const Tensor x = x_.contiguous(), g = g_.contiguous(), types = types_.contiguous();
  TORCH_CHECK(x.dim() == 2 && g.dim() == 2 && x.size(0) == g.size(0) && x.scalar_type() == g.scalar_type(),
              "equipot::linear_outer_sum: expected two arrays of as many rows, found ", x.sizes(), " and ", g.sizes());
  const LinearMap map = linear_map_of(blocks, x.size(1), g.size(1), num_weights);
  if (on_gpu(x)) return linear_outer_sum_gpu(map, x, g, types, num_species);
  const RowGroups groups(types, x.size(0), num_species);
  // Each part has sums of its own: the result depends on the number of threads, but not on which is faster.
  const int64_t parts = at::in_parallel_region() ? 1 : std::clamp<int64_t>(x.size(0) / rows_at_once, 1, at::get_num_threads());
  Tensor sums = at::zeros({parts, num_species, num_weights}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "equipot::linear", [&] {
    const scalar_t *left = x.const_data_ptr<scalar_t>(), *right = g.const_data_ptr<scalar_t>();
    scalar_t* to = sums.mutable_data_ptr<scalar_t>();
    const auto run = [&](int64_t part) {
      std::vector<scalar_t> rows_in, rows_out;
      const auto add = [&](int64_t type, const int64_t* indices, int64_t first, int64_t count) {
        add_outer_sum(map, count, gather(left, map.dim_in, indices, first, count, rows_in),
                      gather(right, map.dim_out, indices, first, count, rows_out),
                      to + (part * num_species + type) * num_weights);
      };
      groups.for_range(x.size(0) * part / parts, x.size(0) * (part + 1) / parts, add);
    };
    if (parts == 1) return run(0);
    at::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
      for (int64_t part = first; part < last; ++part) run(part);
    });
  });
  return parts == 1 ? sums.squeeze(0) : sums.sum(0);
}

Tensor linear_meta(const Tensor& x, const Tensor&, const Tensor&, const Tensor&, int64_t dim, bool) {
  return at::empty_symint({x.sym_size(0), c10::SymInt(dim)}, x.options());
}

Tensor outer_sum_meta(const Tensor& x, const Tensor&, const Tensor&, const Tensor&, int64_t species, int64_t weights) {
  return at::empty({species, weights}, x.options());
}

// ---- derivatives --------------------------------------------------------------------------------------------

Tensor call_linear(const Tensor& x, const Tensor& weights, const Tensor& blocks, const Tensor& types, int64_t dim,
                   bool transpose) {
  using Signature = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, int64_t, bool);
  static const auto handle = c10::Dispatcher::singleton().findSchemaOrThrow("equipot::linear", "").typed<Signature>();
  return handle.call(x, weights, blocks, types, dim, transpose);
}

Tensor call_outer_sum(const Tensor& x, const Tensor& g, const Tensor& blocks, const Tensor& types, int64_t species,
                      int64_t weights) {
  using Signature = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, int64_t, int64_t);
  static const auto handle =
      c10::Dispatcher::singleton().findSchemaOrThrow("equipot::linear_outer_sum", "").typed<Signature>();
  return handle.call(x, g, blocks, types, species, weights);
}

struct LinearFunction : public Function<LinearFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& weights, const Tensor& blocks,
                        const Tensor& types, int64_t dim, bool transpose) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    // Large, and of use only to the gradient by the weights: inference keeps nothing of it.
    context->save_for_backward({weights.requires_grad() ? x : Tensor(), weights, blocks, types});
    context->saved_data["transpose"] = transpose;
    context->saved_data["width"] = x.size(1);
    return call_linear(x, weights, blocks, types, dim, transpose);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &weights = saved[1], &blocks = saved[2], &types = saved[3], &g = gradients[0];
    const bool transpose = context->saved_data["transpose"].toBool();
    Tensor for_x, for_weights;
    if (context->needs_input_grad(0)) for_x = call_linear(g, weights, blocks, types, context->saved_data["width"].toInt(), !transpose);
    if (context->needs_input_grad(1))
      for_weights = call_outer_sum(transpose ? g : x, transpose ? x : g, blocks, types, weights.size(0), weights.size(1));
    return {for_x, for_weights, {}, {}, {}, {}};
  }
};

struct OuterSumFunction : public Function<OuterSumFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& g, const Tensor& blocks,
                        const Tensor& types, int64_t species, int64_t weights) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({x, g, blocks, types});
    return call_outer_sum(x, g, blocks, types, species, weights);
  }

  static variable_list backward(AutogradContext* context, const variable_list& cotangents) {
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &g = saved[1], &blocks = saved[2], &types = saved[3];
    Tensor for_x, for_g;
    if (context->needs_input_grad(0)) for_x = call_linear(g, cotangents[0], blocks, types, x.size(1), true);
    if (context->needs_input_grad(1)) for_g = call_linear(x, cotangents[0], blocks, types, g.size(1), false);
    return {for_x, for_g, {}, {}, {}, {}};
  }
};

Tensor linear_autograd(const Tensor& x, const Tensor& weights, const Tensor& blocks, const Tensor& types, int64_t dim,
                       bool transpose) {
  return LinearFunction::apply(x, weights, blocks, types, dim, transpose);
}

Tensor outer_sum_autograd(const Tensor& x, const Tensor& g, const Tensor& blocks, const Tensor& types, int64_t species,
                          int64_t weights) {
  return OuterSumFunction::apply(x, g, blocks, types, species, weights);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(equipot, library) {
  library.def("linear(Tensor x, Tensor weights, Tensor blocks, Tensor types, int dim, bool transpose=False) -> Tensor");
  library.def(
      "linear_outer_sum(Tensor x, Tensor g, Tensor blocks, Tensor types, int num_species, int num_weights) -> Tensor");
  library.def("know_types(Tensor types, Tensor types_on_host, int num_species) -> ()", know_types);
}

TORCH_LIBRARY_IMPL(equipot, CPU, library) {
  library.impl("linear", linear_compute);
  library.impl("linear_outer_sum", outer_sum_compute);
}

TORCH_LIBRARY_IMPL(equipot, CUDA, library) {
  library.impl("linear", linear_compute);
  library.impl("linear_outer_sum", outer_sum_compute);
}

TORCH_LIBRARY_IMPL(equipot, Meta, library) {
  library.impl("linear", linear_meta);
  library.impl("linear_outer_sum", outer_sum_meta);
}

TORCH_LIBRARY_IMPL(equipot, Autograd, library) {
  library.impl("linear", linear_autograd);
  library.impl("linear_outer_sum", outer_sum_autograd);
}

}  // namespace equipot
