// equipot::ghost_exchange and its transpose as torch operators: features of owned atoms -> of all atoms, and
// gradients back. Every process calls them equally often, with atoms or without, or the others would wait forever.
#include "ghost_exchange.h"

#include <ATen/Dispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/AutogradState.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <atomic>

namespace equipot {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// An MD code's messages are for the thread that has attached its exchange: MPI may allow no other one. On a GPU autograd
// would run backward in a thread of its own, so it is told to stay in this one.
struct Attached {
  GhostExchange* exchange = nullptr;
  bool multithreading = true;  // as it was before
};
thread_local Attached attached;
std::atomic<bool> attached_anywhere{false};

// The address crosses library borders as a number; zero detaches.
void attach_exchange(int64_t address) {
  auto& state = c10::AutogradState::get_tls_state();
  if (attached.exchange == nullptr) attached.multithreading = state.get_multithreading_enabled();
  attached.exchange = reinterpret_cast<GhostExchange*>(address);
  state.set_multithreading_enabled(attached.exchange == nullptr && attached.multithreading);
  attached_anywhere = attached.exchange != nullptr;
}

// Null if there is none; an error where it is another thread's, which would lose the ghosts without a word.
GhostExchange* exchange_here() {
  TORCH_CHECK(attached.exchange != nullptr || !attached_anywhere,
              "equipot::ghost_exchange: the exchange of features is attached to another thread, which alone may send "
              "messages");
  return attached.exchange;
}

int64_t num_owned(const Tensor& atom_types) {
  const GhostExchange* exchange = exchange_here();
  return exchange ? exchange->num_owned() : atom_types.size(0);
}

void check_rows(const char* name, const Tensor& rows, int64_t expected) {
  TORCH_CHECK(rows.dim() == 2 && rows.size(0) == expected, name, ": expected (", expected, ", width), found ",
              rows.sizes());
}

// (owned, width) -> (atoms, width)
Tensor exchange_rows(const Tensor& features, int64_t num_atoms) {
  GhostExchange* exchange = exchange_here();
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
  GhostExchange* exchange = exchange_here();
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
  return exchange_here() ? ExchangeFunction::apply(features, num_atoms) : features.alias();
}

Tensor exchange_backward_autograd(const Tensor& gradient) {
  return exchange_here() ? ExchangeBackwardFunction::apply(gradient) : gradient.alias();
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
