// equipot::segment_sum: rows added up by the atom or structure they belong to, and equipot::segment_rows, which are
// each other's derivatives.
//
// out[s] = sum of values[e] over the e with index[row, e] = s, in the order of e: the same bits every time.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "gpu_passes.h"

namespace equipot {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

void check_index(const char* name, const Tensor& index, int64_t row) {
  TORCH_CHECK(index.dim() == 2 && index.scalar_type() == at::kLong && row >= 0 && row < index.size(0), name,
              ": expected index (rows, E) int64 and one of its rows, found ", index.sizes(), " ", index.scalar_type(),
              " and row ", row);
}

Tensor sum_compute(const Tensor& values, const Tensor& index, int64_t row, int64_t num_segments) {
  check_index("equipot::segment_sum", index, row);
  TORCH_CHECK(values.dim() == 2 && values.size(0) == index.size(1) && values.device() == index.device(),
              "equipot::segment_sum: expected values (E, columns) with E = ", index.size(1), " on ", index.device(),
              ", found ", values.sizes(), " on ", values.device());
  if (on_gpu(values)) return segment_sum_gpu(values.contiguous(), index, row, num_segments);
  return at::zeros({num_segments, values.size(1)}, values.options()).index_add_(0, index.select(0, row), values);
}

Tensor rows_compute(const Tensor& sums, const Tensor& index, int64_t row) {
  check_index("equipot::segment_rows", index, row);
  return sums.index_select(0, index.select(0, row));
}

Tensor sum_meta(const Tensor& values, const Tensor&, int64_t, int64_t num_segments) {
  return at::empty_symint({c10::SymInt(num_segments), values.sym_size(1)}, values.options());
}

Tensor rows_meta(const Tensor& sums, const Tensor& index, int64_t) {
  return at::empty_symint({index.sym_size(1), sums.sym_size(1)}, sums.options());
}

Tensor call_sum(const Tensor& values, const Tensor& index, int64_t row, int64_t num_segments) {
  static const auto handle = c10::Dispatcher::singleton()
                                 .findSchemaOrThrow("equipot::segment_sum", "")
                                 .typed<Tensor(const Tensor&, const Tensor&, int64_t, int64_t)>();
  return handle.call(values, index, row, num_segments);
}

Tensor call_rows(const Tensor& sums, const Tensor& index, int64_t row) {
  static const auto handle = c10::Dispatcher::singleton()
                                 .findSchemaOrThrow("equipot::segment_rows", "")
                                 .typed<Tensor(const Tensor&, const Tensor&, int64_t)>();
  return handle.call(sums, index, row);
}

struct SumFunction : public Function<SumFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& values, const Tensor& index, int64_t row,
                        int64_t num_segments) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({index});
    context->saved_data["row"] = row;
    return call_sum(values, index, row, num_segments);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    return {call_rows(gradients[0], context->get_saved_variables()[0], context->saved_data["row"].toInt()), {}, {}, {}};
  }
};

struct RowsFunction : public Function<RowsFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& sums, const Tensor& index, int64_t row) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({index});
    context->saved_data["row"] = row;
    context->saved_data["num_segments"] = sums.size(0);
    return call_rows(sums, index, row);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    return {call_sum(gradients[0], context->get_saved_variables()[0], context->saved_data["row"].toInt(),
                     context->saved_data["num_segments"].toInt()),
            {}, {}};
  }
};

Tensor sum_autograd(const Tensor& values, const Tensor& index, int64_t row, int64_t num_segments) {
  return SumFunction::apply(values, index, row, num_segments);
}

Tensor rows_autograd(const Tensor& sums, const Tensor& index, int64_t row) {
  return RowsFunction::apply(sums, index, row);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(equipot, library) {
  library.def("segment_sum(Tensor values, Tensor index, int row, int num_segments) -> Tensor");
  library.def("segment_rows(Tensor sums, Tensor index, int row) -> Tensor");
}

TORCH_LIBRARY_IMPL(equipot, CPU, library) {
  library.impl("segment_sum", sum_compute);
  library.impl("segment_rows", rows_compute);
}

TORCH_LIBRARY_IMPL(equipot, CUDA, library) {
  library.impl("segment_sum", sum_compute);
  library.impl("segment_rows", rows_compute);
}

TORCH_LIBRARY_IMPL(equipot, Meta, library) {
  library.impl("segment_sum", sum_meta);
  library.impl("segment_rows", rows_meta);
}

TORCH_LIBRARY_IMPL(equipot, Autograd, library) {
  library.impl("segment_sum", sum_autograd);
  library.impl("segment_rows", rows_autograd);
}

}  // namespace equipot
