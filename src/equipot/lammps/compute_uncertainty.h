// compute equipot/uncertainty: how uncertain a single model is of its energies, by last-layer prediction rigidity.
#pragma once

#include "compute.h"

namespace LAMMPS_NS {

// Standard deviations: the scalar is that of the energy of the group's atoms together, the vector by atom that of each
// alone. docs/evaluation.md has the equation.
class ComputeEquipotUncertainty : public Compute {
 public:
  ComputeEquipotUncertainty(class LAMMPS *, int, char **);
  ~ComputeEquipotUncertainty() override;

  void init() override;
  double compute_scalar() override;
  void compute_peratom() override;
  double memory_usage() override;

 private:
  void find_pair();

  class PairEquipot *pair;
  int max_atoms;
};

}  // namespace LAMMPS_NS
