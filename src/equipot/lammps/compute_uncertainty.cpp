#include "compute_uncertainty.h"

#include <vector>

#include "atom.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "pair_equipot.h"
#include "update.h"

using namespace LAMMPS_NS;

ComputeEquipotUncertainty::ComputeEquipotUncertainty(LAMMPS *lmp, int narg, char **arg) :
    Compute(lmp, narg, arg), pair(nullptr), max_atoms(0)
{
  if (narg != 3) error->all(FLERR, "Expected 'compute ID GROUP equipot/uncertainty', found '{}' behind it", arg[3]);
  scalar_flag = peratom_flag = dynamic_group_allow = 1;
  extscalar = 0;
  size_peratom_cols = 0;
  vector_atom = nullptr;
}

ComputeEquipotUncertainty::~ComputeEquipotUncertainty() { memory->destroy(vector_atom); }

// Each time: between two runs there may be another.
void ComputeEquipotUncertainty::find_pair()
{
  pair = dynamic_cast<PairEquipot *>(force->pair_match("equipot", 1));
  if (!pair) error->all(FLERR, "compute equipot/uncertainty needs one pair_style equipot, alone or in a hybrid style");
  if (!pair->ensemble() || !pair->ensemble()->is_single())
    error->all(FLERR, "compute equipot/uncertainty is that of a single model; an ensemble has 'compute equipot/deviation'");
  if (pair->ensemble()->feature_width() == 0)
    error->all(FLERR, "compute equipot/uncertainty needs a model from 'equipot deploy --uncertainty', on a CPU");
}

void ComputeEquipotUncertainty::init()
{
  find_pair();
  pair->want_features();
}

double ComputeEquipotUncertainty::compute_scalar()
{
  invoked_scalar = update->ntimestep;
  find_pair();
  pair->require_evaluation(style, {.features = true});
  const int64_t width = pair->ensemble()->feature_width();
  std::vector<double> sum(width, 0.0);
  for (int slot = 0; slot < atom->nlocal; ++slot) {
    if (!(atom->mask[slot] & groupbit) || pair->row(slot) < 0) continue;
    for (int64_t k = 0; k < width; ++k) sum[k] += pair->features()[pair->row(slot) * width + k];
  }
  MPI_Allreduce(MPI_IN_PLACE, sum.data(), static_cast<int>(width), MPI_DOUBLE, MPI_SUM, world);
  scalar = pair->uncertainties(sum.data(), 1)[0];
  return scalar;
}

void ComputeEquipotUncertainty::compute_peratom()
{
  invoked_peratom = update->ntimestep;
  find_pair();
  pair->require_evaluation(style, {.features = true});
  if (atom->nmax > max_atoms) {
    max_atoms = atom->nmax;
    memory->destroy(vector_atom);
    memory->create(vector_atom, max_atoms, "equipot/uncertainty:vector_atom");
  }
  const auto sigma = pair->uncertainties(pair->features(), pair->num_owned_rows());
  for (int slot = 0; slot < atom->nlocal; ++slot) {
    const bool counts = (atom->mask[slot] & groupbit) && pair->row(slot) >= 0;
    vector_atom[slot] = counts ? sigma[pair->row(slot)] : 0.0;
  }
}

double ComputeEquipotUncertainty::memory_usage() { return static_cast<double>(sizeof(double)) * max_atoms; }
