// compute equipot/output NAME [total Q]: what a model predicts beside the energy (model.outputs).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "compute.h"

namespace LAMMPS_NS {

// Of an output per atom: its numbers for each atom of the group, a vector or an array by atom. Of one per structure: its numbers,
// a scalar or a global vector, from the rows of the group's atoms on all ranks: their sum or mean. In the output's own unit.
class ComputeEquipotOutput : public Compute {
 public:
  ComputeEquipotOutput(class LAMMPS *, int, char **);
  ~ComputeEquipotOutput() override;

  void init() override;
  double compute_scalar() override;
  void compute_vector() override;
  void compute_peratom() override;
  double memory_usage() override;

 private:
  void find_output();
  void require_evaluation();
  void find_share();
  bool counts(int slot) const;
  const double *row(int slot) const;
  void reduce(double *to);

  class PairEquipot *pair;
  std::string name;
  double total, share;    // of all atoms together, for outputs that add up to something; what each atom gets of what is missing
  int first, width;    // of its numbers in a row of the model's outputs
  bool per_atom, mean, is_derivative, adds_up;
  std::vector<double> at_owners;    // derivatives, of which ghosts have some, too
  int64_t evaluation;    // of the pair style, that they belong to
  int max_atoms;
};

}  // namespace LAMMPS_NS
