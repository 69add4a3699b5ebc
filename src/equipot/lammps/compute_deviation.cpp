#include "compute_deviation.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "atom.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "pair_equipot.h"
#include "update.h"

using namespace LAMMPS_NS;

namespace {

// Of the k-th numbers of all members. They are taken relative to the first: equal ones have none at all.
template <class Members> double variance(const Members &members, size_t k)
{
  const auto num_members = static_cast<double>(members.size());
  double sum = 0, squares = 0;
  for (const auto &member : members) {
    const double difference = member[k] - members[0][k];
    sum += difference, squares += difference * difference;
  }
  return std::max(squares - sum * sum / num_members, 0.0) / (num_members - 1);
}

}    // namespace

ComputeEquipotDeviation::ComputeEquipotDeviation(LAMMPS *lmp, int narg, char **arg) :
    Compute(lmp, narg, arg), pair(nullptr), evaluation(-1), max_atoms(0)
{
  if (narg != 3) error->all(FLERR, "Expected 'compute ID GROUP equipot/deviation', found '{}' behind it", arg[3]);
  vector_flag = peratom_flag = dynamic_group_allow = 1;
  size_vector = 6;
  extvector = 0;
  size_peratom_cols = 0;
  vector = new double[size_vector]();
  vector_atom = nullptr;
}

ComputeEquipotDeviation::~ComputeEquipotDeviation()
{
  delete[] vector;
  memory->destroy(vector_atom);
}

// Each time: between two runs there may be another.
void ComputeEquipotDeviation::find_pair()
{
  pair = dynamic_cast<PairEquipot *>(force->pair_match("equipot", 1));
  if (!pair) error->all(FLERR, "compute equipot/deviation needs one pair_style equipot, alone or in a hybrid style");
  if (!pair->ensemble() || pair->ensemble()->is_single())
    error->all(FLERR, "compute equipot/deviation needs an ensemble: 'pair_coeff * * FOLDER ELEMENT ...' with a folder from "
               "'equipot deploy', or several files");
}

void ComputeEquipotDeviation::init()
{
  find_pair();
  evaluation = -1;
}

void ComputeEquipotDeviation::compute_vector()
{
  invoked_vector = update->ntimestep;
  update_rows();
  find_of_virial(vector[0], vector[1], vector[2]);
  find_of_forces(vector[3], vector[4], vector[5]);
}

void ComputeEquipotDeviation::compute_peratom()
{
  invoked_peratom = update->ntimestep;
  update_rows();
  if (atom->nmax > max_atoms) {
    max_atoms = atom->nmax;
    memory->destroy(vector_atom);
    memory->create(vector_atom, max_atoms, "equipot/deviation:vector_atom");
  }
  for (int slot = 0; slot < atom->nlocal; ++slot) vector_atom[slot] = std::max(of_slot(slot), 0.0);
}

// Members' forces on atoms of other ranks go home first.
void ComputeEquipotDeviation::update_rows()
{
  find_pair();
  pair->require_evaluation(style);
  if (evaluation == pair->last_evaluation()) return;
  evaluation = pair->last_evaluation();
  auto forces = pair->ensemble()->member_forces();
  for (auto &member : forces) pair->take_home(member, 3);
  const double unit = std::abs(pair->unit());
  rows.resize(pair->num_owned_rows());
  for (size_t row = 0; row < rows.size(); ++row)
    rows[row] = unit *
        std::sqrt(variance(forces, 3 * row) + variance(forces, 3 * row + 1) + variance(forces, 3 * row + 2));
}

// -1: of an atom that is not in the group, or that the model does not see.
double ComputeEquipotDeviation::of_slot(int slot) const
{
  return (atom->mask[slot] & groupbit) && pair->row(slot) >= 0 ? rows[pair->row(slot)] : -1.0;
}

void ComputeEquipotDeviation::find_of_virial(double &largest, double &smallest, double &average) const
{
  auto virials = pair->ensemble()->member_virials();
  MPI_Allreduce(MPI_IN_PLACE, virials.data(), static_cast<int>(9 * virials.size()), MPI_DOUBLE, MPI_SUM, world);
  bigint num_atoms = pair->num_owned_rows();
  MPI_Allreduce(MPI_IN_PLACE, &num_atoms, 1, MPI_LMP_BIGINT, MPI_SUM, world);
  std::array<double, 9> deviations{};
  double squares = 0;
  const double unit = std::abs(pair->unit()) / std::max(static_cast<double>(num_atoms), 1.0);
  for (int k = 0; k < 9; ++k) {
    deviations[k] = unit * std::sqrt(variance(virials, k));
    squares += deviations[k] * deviations[k];
  }
  const auto [least, most] = std::minmax_element(deviations.begin(), deviations.end());
  largest = *most, smallest = *least, average = std::sqrt(squares / 9);
}

void ComputeEquipotDeviation::find_of_forces(double &largest, double &smallest, double &average) const
{
  double sums[2] = {}, extremes[2] = {-HUGE_VAL, -HUGE_VAL};    // sum, number; largest, -smallest
  for (int slot = 0; slot < atom->nlocal; ++slot) {
    const double deviation = of_slot(slot);
    if (deviation < 0) continue;
    sums[0] += deviation, sums[1] += 1;
    extremes[0] = std::max(extremes[0], deviation), extremes[1] = std::max(extremes[1], -deviation);
  }
  MPI_Allreduce(MPI_IN_PLACE, sums, 2, MPI_DOUBLE, MPI_SUM, world);
  MPI_Allreduce(MPI_IN_PLACE, extremes, 2, MPI_DOUBLE, MPI_MAX, world);
  const bool none = sums[1] == 0;
  largest = none ? 0 : extremes[0], smallest = none ? 0 : -extremes[1], average = none ? 0 : sums[0] / sums[1];
}

double ComputeEquipotDeviation::memory_usage()
{
  return static_cast<double>(sizeof(double)) * (max_atoms + static_cast<double>(rows.capacity()));
}
