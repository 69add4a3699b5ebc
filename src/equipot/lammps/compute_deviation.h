// compute equipot/deviation: how much the members of an ensemble disagree.
#pragma once

#include <cstdint>
#include <vector>

#include "compute.h"

namespace LAMMPS_NS {

// Standard deviations over the M members, with M - 1 in the denominator as `deviation` of deploy/ensemble.py has it:
// for each atom sqrt(sum_m |F_m - F|^2 / (M - 1)), for each component of the virial that of the number, by the number of
// the model's atoms. Global: largest, smallest and average of the virial's nine components (the average is the root of
// their mean square), then of the forces on the group's atoms. These are the columns of DeePMD-kit's model_devi.out,
// which has M in the denominator.
class ComputeEquipotDeviation : public Compute {
 public:
  ComputeEquipotDeviation(class LAMMPS *, int, char **);
  ~ComputeEquipotDeviation() override;

  void init() override;
  void compute_vector() override;
  void compute_peratom() override;
  double memory_usage() override;

 private:
  void find_pair();
  void update_rows();
  void find_of_virial(double &largest, double &smallest, double &average) const;
  void find_of_forces(double &largest, double &smallest, double &average) const;
  double of_slot(int slot) const;

  class PairEquipot *pair;
  int64_t evaluation;  // of the pair style, that `rows` belong to
  std::vector<double> rows;  // (owned) the force's, by row of the pair style
  int max_atoms;
};

}  // namespace LAMMPS_NS
