// equipot::ghost_exchange and its transpose as torch operators: features of owned atoms -> of all atoms, and
// gradients back. Every process calls them equally often, with atoms or without, or the others would wait forever.
#include "ghost_exchange.h"

#include <ATen/Dispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <atomic>

namespace equipot {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Of the whole process, not of a thread: on a GPU, autograd runs backward in a thread of its own.
std::atomic<GhostExchange*> attached{nullptr};

// The address crosses library borders as a number; zero detaches.
void attach_exchange(int64_t address) { attached = reinterpret_cast<GhostExchange*>(address); }

int64_t num_owned(const Tensor& atom_types) {
  const GhostExchange* exchange = attached;
  return exchange ? exchange->num_owned() : atom_types.size(0);
}

void check_rows(const char* name, const Tensor& rows, int64_t expected) {
  TORCH_CHECK(rows.dim() == 2 && rows.size(0) == expected, name, ": expected (", expected, ", width), found ",
              rows.sizes());
}

// (owned, width) -> (atoms, width)
Tensor exchange_rows(const Tensor& features, int64_t num_atoms) {
  GhostExchange* exchange = attached;
  if (!exchange) return features.clone();
  const int64_t owned = exchange->num_owned();
  check_rows("equipot::ghost_exchange", features, owned);
  // MD codes send from the memory of the CPU.
  Tensor rows = at::empty({num_atoms, features.size(1)}, features.options().device(at::kCPU));
  rows.narrow(0, 0, owned).copy_(features);
  AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "equipot::ghost_exchange", [&] {
    exchange->copy_to_ghosts(rows.mutable_data_ptr<scalar_t>(), num_atoms, rows.size(1));
  });
  return rows.to(features.device());
}

// (atoms, width) -> (owned, width)
Tensor exchange_rows_backward(const Tensor& gradient) {
  GhostExchange* exchange = attached;
  if (!exchange) return gradient.clone();
  const int64_t owned = exchange->num_owned();
  Tensor rows = at::empty(gradient.sizes(), gradient.options().device(at::kCPU));
  rows.copy_(gradient);
  AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "equipot::ghost_exchange_backward", [&] {
    exchange->add_to_owners(rows.mutable_data_ptr<scalar_t>(), rows.size(0), rows.size(1));
  });
  return rows.narrow(0, 0, owned).to(gradient.device());
}

// ---- derivatives: each is the other's ----------------------------------------------------------------------

Tensor call_forward(const Tensor& features, int64_t num_atoms) {
  static const auto handle = c10::Dispatcher::singleton()
                                 .findSchemaOrThrow("equipot::ghost_exchange", "")
                                 .typed<Tensor(const Tensor&, int64_t)>();
  return handle.call(features, num_atoms);
}

Tensor call_backward(const Tensor& gradient) {
  static const auto handle = c10::Dispatcher::singleton()
                                 .findSchemaOrThrow("equipot::ghost_exchange_backward", "")
                                 .typed<Tensor(const Tensor&)>();
  return handle.call(gradient);
}

struct ExchangeFunction : public Function<ExchangeFunction> {
  static Tensor forward(AutogradContext*, const Tensor& features, int64_t num_atoms) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    return call_forward(features, num_atoms);
  }
  static variable_list backward(AutogradContext*, const variable_list& gradients) {
    return {call_backward(gradients[0]), Tensor()};
  }
};

struct ExchangeBackwardFunction : public Function<ExchangeBackwardFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& gradient) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->saved_data["num_atoms"] = gradient.size(0);
    return call_backward(gradient);
  }
  static variable_list backward(AutogradContext* context, const variable_list& cotangents) {
    return {call_forward(cotangents[0], context->saved_data["num_atoms"].toInt())};
  }
};

// The identity needs no copy, and no node in the graph.
Tensor exchange_autograd(const Tensor& features, int64_t num_atoms) {
  return attached ? ExchangeFunction::apply(features, num_atoms) : features.alias();
}

Tensor exchange_backward_autograd(const Tensor& gradient) {
  return attached ? ExchangeBackwardFunction::apply(gradient) : gradient.alias();
}

Tensor exchange_meta(const Tensor& features, int64_t num_atoms) {
  return at::empty_symint({num_atoms, features.sym_size(1)}, features.options());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(equipot, library) {
  library.def("attach_exchange(int address) -> ()", attach_exchange);
  library.def("num_owned(Tensor atom_types) -> int");
  library.def("ghost_exchange(Tensor features, int num_atoms) -> Tensor");
  library.def("ghost_exchange_backward(Tensor gradient) -> Tensor");
}

TORCH_LIBRARY_IMPL(equipot, CompositeExplicitAutograd, library) {
  library.impl("num_owned", num_owned);
  library.impl("ghost_exchange", exchange_rows);
  library.impl("ghost_exchange_backward", exchange_rows_backward);
}

TORCH_LIBRARY_IMPL(equipot, Meta, library) { library.impl("ghost_exchange", exchange_meta); }

TORCH_LIBRARY_IMPL(equipot, Autograd, library) {
  library.impl("ghost_exchange", exchange_autograd);
  library.impl("ghost_exchange_backward", exchange_backward_autograd);
}

}  // namespace equipot
