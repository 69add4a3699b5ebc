// What older TorchScript files call where features of atoms once went to other processes; the engine does that now, and here
// every atom is the process's own.
#include <torch/library.h>

namespace equipot {
namespace {

int64_t num_owned(const at::Tensor& atom_types) { return atom_types.size(0); }

at::Tensor ghost_exchange(const at::Tensor& features, int64_t num_atoms) {
  TORCH_CHECK(features.dim() == 2 && features.size(0) == num_atoms, "equipot::ghost_exchange: expected (", num_atoms,
              ", width), found ", features.sizes());
  return features.alias();
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(equipot, library) {
  library.def("num_owned(Tensor atom_types) -> int");
  library.def("ghost_exchange(Tensor features, int num_atoms) -> Tensor");
}

TORCH_LIBRARY_IMPL(equipot, CompositeImplicitAutograd, library) {
  library.impl("num_owned", num_owned);
  library.impl("ghost_exchange", ghost_exchange);
}

}  // namespace equipot
