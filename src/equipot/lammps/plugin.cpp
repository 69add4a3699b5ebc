// What LAMMPS calls when it loads equipotplugin.so: refuses what would crash later, then registers the styles.
#include <dlfcn.h>

#include <string>

#include "build_info.h"
#include "compute_deviation.h"
#include "compute_output.h"
#include "compute_uncertainty.h"
#include "error.h"
#include "lammps.h"
#include "pair_equipot.h"

using namespace LAMMPS_NS;

namespace {

// LAMMPS's plugin interface (src/PLUGIN/lammpsplugin.h in its sources), which the PyPI package does not contain.
struct lammpsplugin_t {
  const char *version, *style, *name, *info, *author;
  union {
    void *(*alone)(LAMMPS *);
    void *(*with_arguments)(LAMMPS *, int, char **);
  } creator;
  void *handle;
};
using register_function = void (*)(lammpsplugin_t *, void *);

void *create_pair(LAMMPS *lmp) { return new PairEquipot(lmp); }

template <class Style> void *create(LAMMPS *lmp, int narg, char **arg) { return new Style(lmp, narg, arg); }

// Empty if this LAMMPS was built with the integers of the headers; classes with others have another shape.
std::string other_integers(void *lmp)
{
  const auto size_of = reinterpret_cast<int (*)(void *, const char *)>(dlsym(RTLD_DEFAULT, "lammps_extract_setting"));
  if (!size_of) return "it has no C interface";
  if (size_of(lmp, "tagint") == sizeof(tagint) && size_of(lmp, "bigint") == sizeof(bigint) &&
      size_of(lmp, "imageint") == sizeof(imageint))
    return {};
  return "LAMMPS was built with other integers (LAMMPS_SIZES)";
}

}    // namespace

extern "C" __attribute__((visibility("default"))) void lammpsplugin_init(void *lmp, void *handle, void *regfunc)
{
  // By the C interface: with another LAMMPS, its classes do not lie in memory as the headers said.
  const auto version_of = reinterpret_cast<int (*)(void *)>(dlsym(RTLD_DEFAULT, "lammps_version"));
  const int version = version_of ? version_of(lmp) : 0;
  std::string refusal;
  if (version != EQUIPOT_LAMMPS_VERSION)
    refusal = "it was built for LAMMPS version " + std::to_string(EQUIPOT_LAMMPS_VERSION) + ", this is " +
        std::to_string(version);
  else
    refusal = other_integers(lmp);
  if (!refusal.empty()) {
    fprintf(stderr, "ERROR: the equipot plugin does not fit: %s. Run 'equipot lammps build' here.\n", refusal.c_str());
    return;
  }
  static lammpsplugin_t plugin;
  plugin.version = EQUIPOT_LAMMPS_VERSION_TEXT;
  plugin.info = "equipot " EQUIPOT_VERSION ": equivariant interatomic potentials";
  plugin.author = "the equipot developers";
  plugin.handle = handle;
  const auto take = reinterpret_cast<register_function>(regfunc);
  plugin.style = "pair", plugin.name = "equipot", plugin.creator.alone = create_pair;
  take(&plugin, lmp);
  plugin.style = "compute", plugin.name = "equipot/deviation";
  plugin.creator.with_arguments = create<ComputeEquipotDeviation>;
  take(&plugin, lmp);
  plugin.name = "equipot/output", plugin.creator.with_arguments = create<ComputeEquipotOutput>;
  take(&plugin, lmp);
  plugin.name = "equipot/uncertainty", plugin.creator.with_arguments = create<ComputeEquipotUncertainty>;
  take(&plugin, lmp);
}
