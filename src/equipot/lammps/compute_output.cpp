#include "compute_output.h"

#include <vector>

#include "atom.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "pair_equipot.h"
#include "update.h"
#include "utils.h"

using namespace LAMMPS_NS;

ComputeEquipotOutput::ComputeEquipotOutput(LAMMPS *lmp, int narg, char **arg) :
    Compute(lmp, narg, arg), pair(nullptr), total(0.0), share(0.0), first(0), width(0), per_atom(false), mean(false), is_derivative(false), adds_up(false),
    evaluation(-1), max_atoms(0)
{
  if (narg != 4 && (narg != 6 || std::string(arg[4]) != "total"))
    error->all(FLERR, "Expected 'compute ID GROUP equipot/output NAME [total Q]', NAME one of the model's outputs, found {} words "
               "behind equipot/output", narg - 3);
  name = arg[3];
  if (narg == 6) total = utils::numeric(FLERR, arg[5], false, lmp);
  vector_atom = nullptr;
  array_atom = nullptr;
  dynamic_group_allow = 1;
  find_output();    // its size and kind must be known now
  if (per_atom) {
    peratom_flag = 1;
    size_peratom_cols = width == 1 ? 0 : width;
  } else if (width == 1) {
    scalar_flag = 1;
    extscalar = !mean;
  } else {
    vector_flag = 1;
    size_vector = width;
    extvector = !mean;
    vector = new double[width]();
  }
}

ComputeEquipotOutput::~ComputeEquipotOutput()
{
  if (vector_flag) delete[] vector;
  memory->destroy(vector_atom);
  memory->destroy(array_atom);
}

// Each time: between two runs there may be another model.
void ComputeEquipotOutput::find_output()
{
  const int width_before = width;
  const bool per_atom_before = per_atom;
  pair = dynamic_cast<PairEquipot *>(force->pair_match("equipot", 1));
  if (!pair || !pair->ensemble())
    error->all(FLERR, "compute equipot/output needs one pair_style equipot, alone or in a hybrid style, and its pair_coeff, "
               "before it");
  std::string known;
  for (const auto &output : pair->ensemble()->outputs()) {
    known += (known.empty() ? "" : ", ") + output.name;
    if (output.name != name) continue;
    first = static_cast<int>(output.first), width = static_cast<int>(output.width);
    per_atom = output.per_atom, mean = output.mean;
    is_derivative = output.is_derivative, adds_up = !output.total.empty();
    if (!output.charges.empty())
      error->all(FLERR, "compute equipot/output {}: it has sum q r of '{}', which depends on the origin and on images, and is not "
                 "made in LAMMPS", name, output.charges);
    if (width_before != 0 && (width != width_before || per_atom != per_atom_before))
      error->all(FLERR, "compute equipot/output: '{}' is something else in this model than in the one before: define the compute "
                 "anew", name);
    return;
  }
  if (known.empty())
    error->all(FLERR, "compute equipot/output {}: the model predicts energies and forces only, its members differ, or it runs "
               "on a GPU", name);
  error->all(FLERR, "compute equipot/output {}: the model has no output of this name, but {}", name, known);
}

void ComputeEquipotOutput::init()
{
  find_output();
  pair->want_outputs(is_derivative);
  evaluation = -1;
}

void ComputeEquipotOutput::require_evaluation()
{
  find_output();
  pair->require_evaluation(style, {.outputs = !is_derivative, .derivatives = is_derivative});
  if (adds_up) find_share();
  if (!is_derivative || evaluation == pair->last_evaluation()) return;
  evaluation = pair->last_evaluation();
  const int64_t all = pair->ensemble()->derivative_width();
  at_owners.assign(pair->derivatives(), pair->derivatives() + pair->num_rows() * all);
  pair->take_home(at_owners, all);
}

// Of what is missing to the total, over all atoms of the model.
void ComputeEquipotOutput::find_share()
{
  double sums[2] = {0.0, static_cast<double>(pair->num_owned_rows())};
  const int64_t width_of_all = pair->ensemble()->output_width();
  for (int64_t n = 0; n < pair->num_owned_rows(); ++n) sums[0] += pair->outputs()[n * width_of_all + first];
  MPI_Allreduce(MPI_IN_PLACE, sums, 2, MPI_DOUBLE, MPI_SUM, world);
  share = sums[1] > 0 ? (total - sums[0]) / sums[1] : 0.0;
}

bool ComputeEquipotOutput::counts(int slot) const { return (atom->mask[slot] & groupbit) && pair->row(slot) >= 0; }

const double *ComputeEquipotOutput::row(int slot) const
{
  if (is_derivative) return at_owners.data() + pair->row(slot) * pair->ensemble()->derivative_width() + first;
  return pair->outputs() + pair->row(slot) * pair->ensemble()->output_width() + first;
}

// Sum or mean over the group's atoms, on all ranks.
void ComputeEquipotOutput::reduce(double *to)
{
  require_evaluation();
  std::vector<double> sum(width + 1, 0.0);    // and how many
  for (int slot = 0; slot < atom->nlocal; ++slot) {
    if (!counts(slot)) continue;
    for (int k = 0; k < width; ++k) sum[k] += row(slot)[k] + share;
    sum[width] += 1;
  }
  MPI_Allreduce(MPI_IN_PLACE, sum.data(), width + 1, MPI_DOUBLE, MPI_SUM, world);
  const double number = mean && sum[width] > 0 ? sum[width] : 1.0;
  for (int k = 0; k < width; ++k) to[k] = sum[k] / number;
}

double ComputeEquipotOutput::compute_scalar()
{
  invoked_scalar = update->ntimestep;
  reduce(&scalar);
  return scalar;
}

void ComputeEquipotOutput::compute_vector()
{
  invoked_vector = update->ntimestep;
  reduce(vector);
}

void ComputeEquipotOutput::compute_peratom()
{
  invoked_peratom = update->ntimestep;
  require_evaluation();
  if (atom->nmax > max_atoms) {
    max_atoms = atom->nmax;
    memory->destroy(vector_atom);
    memory->destroy(array_atom);
    if (width == 1) memory->create(vector_atom, max_atoms, "equipot/output:vector_atom");
    else memory->create(array_atom, max_atoms, width, "equipot/output:array_atom");
  }
  for (int slot = 0; slot < atom->nlocal; ++slot) {
    double *to = width == 1 ? vector_atom + slot : array_atom[slot];
    for (int k = 0; k < width; ++k) to[k] = counts(slot) ? row(slot)[k] + share : 0.0;
  }
}

double ComputeEquipotOutput::memory_usage()
{
  return static_cast<double>(sizeof(double)) * (1.0 * max_atoms * width + static_cast<double>(at_owners.capacity()));
}
