#include "pair_equipot.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "modify.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "update.h"
#include "utils.h"

using namespace LAMMPS_NS;

namespace {

constexpr double kcal_per_mol = 23.060547830619;  // per eV (CODATA 2018)
constexpr int numbers_of_home = 2;    // in a message

// LAMMPS keeps this to itself: the group that `comm_modify group` restricts ghosts to.
struct CommGroup : Comm {
  static int of(const Comm &comm) { return comm.*(&CommGroup::bordergroup); }
};

}    // namespace

PairEquipot::PairEquipot(LAMMPS *lmp) :
    Pair(lmp), wanted_device("auto"), skip_check(false), relative_to_isolated(false), scale(nullptr), energy_unit(1.0),
    exchange(world), time_in_model(0), time_in_edges(0), num_evaluations(0), evaluation(0), evaluated_on(-1),
    last_features(nullptr), last_outputs(nullptr), last_derivatives(nullptr), takes_places(false), has_trials(false), overlap(false)
{
  restartinfo = 0;
  one_coeff = 1;
  manybody_flag = 1;
  single_enable = 0;
  respa_enable = 0;
  no_virial_fdotr_compute = 1;
  centroidstressflag = CENTROID_AVAIL;
}

PairEquipot::~PairEquipot()
{
  if (allocated && !copymode) {
    memory->destroy(setflag);
    memory->destroy(cutsq);
    memory->destroy(scale);
  }
}

/* ---------------------------------------------------------------------- before a run ---- */

void PairEquipot::init_style()
{
  require_supported_settings();
  for (const auto &member : models->members())
    if (!member->facts().has_energy && force->pair == this)
      error->all(FLERR, "pair_style equipot: this model predicts no energies and forces, nothing would move as it does; use "
                 "'hybrid/overlay' with a pair style that does, and 'compute equipot/output'");
  warn_of_masses();
  const std::string units = update->unit_style;
  energy_unit = units == "real" ? kcal_per_mol : 1.0;

  if (comm->me == 0 && !modify->get_compute_by_style("heat/flux").empty() &&
      !modify->get_compute_by_style("^stress/atom").empty())
    error->warning(FLERR, "equipot: 'compute heat/flux' needs 'centroid/stress/atom'; with 'stress/atom' it is wrong");
  comm_forward = numbers_of_home;
  force->pair->comm_forward = std::max(force->pair->comm_forward, comm_forward);    // a hybrid style has taken it over before now
  exchange.seconds = time_in_model = time_in_edges = 0;
  num_evaluations = 0;
  has_trials = false;
  for (const char *style : {"^gcmc", "^widom", "^charge/regulation"})
    has_trials = has_trials || !modify->get_fix_by_style(style).empty();
  // Pairs that another style takes away, and atoms in one place, are seen in the list of LAMMPS.
  takes_places = models->takes_places() && force->pair == this && !has_trials;
  neighbor->add_request(this, takes_places ? NeighConst::REQ_FULL | NeighConst::REQ_OCCASIONAL : NeighConst::REQ_FULL);
  wanted = {};    // computes are initialized after pair styles
}

void PairEquipot::require_supported_settings()
{
  const std::string units = update->unit_style;
  if (units != "metal" && units != "real")
    error->all(FLERR, "pair_style equipot needs 'units metal' or 'units real', found 'units {}'", units);
  bool all_neighbors = neighbor->nex_type == 0 && neighbor->nex_mol == 0;
  // A group that is excluded from all is not there, which is how Monte Carlo fixes take atoms out.
  for (int n = 0; n < neighbor->nex_group; ++n)
    all_neighbors = all_neighbors && (neighbor->ex1_group[n] == 0 || neighbor->ex2_group[n] == 0);
  if (!all_neighbors)
    error->all(FLERR, "pair_style equipot: 'neigh_modify exclude' would take neighbors from the model");
  if (neighbor->includegroup)
    error->all(FLERR, "pair_style equipot: 'neigh_modify include' would take neighbors from the model");
  if (CommGroup::of(*comm))
    error->all(FLERR, "pair_style equipot: 'comm_modify group' would take neighbors from the model");
  // Neighbors of weight zero are left out of the neighbor lists.
  for (int i = 1; i <= 3; ++i)
    if (atom->molecular != Atom::ATOMIC && force->special_lj[i] == 0.0 && force->special_coul[i] == 0.0)
      error->all(FLERR, "pair_style equipot: bonded atoms are neighbors too; set 'special_bonds lj/coul 1 1 1'");
  if (utils::strmatch(update->integrate_style, "^respa"))
    error->all(FLERR, "pair_style equipot does not work with 'run_style respa'");
}

// Types in another order than the elements: nothing else would show it.
void PairEquipot::warn_of_masses() const
{
  constexpr double close = 0.2;    // u
  const auto &species = models->species();
  const auto &masses = models->masses();
  if (!atom->mass || masses.empty() || comm->me != 0) return;
  for (int type = 1; type <= atom->ntypes; ++type) {
    const int named = species_of_type[type];
    if (named < 0 || std::abs(atom->mass[type] - masses[named]) < close) continue;
    for (size_t other = 0; other < species.size(); ++other)
      if (std::abs(atom->mass[type] - masses[other]) < close)
        error->warning(FLERR, "equipot: atom type {} is {} in pair_coeff, but its mass {:g} is that of {}", type,
                       species[named], atom->mass[type], species[other]);
  }
}

double PairEquipot::common_scale() const
{
  for (int i = 1; i <= atom->ntypes; ++i)
    for (int j = i; j <= atom->ntypes; ++j)
      if (scale[i][j] != scale[1][1])
        error->all(FLERR, "equipot: the scale of types {} and {} is another than that of 1 and 1; a model has one: "
                   "'fix adapt ... pair equipot scale * * v_NAME'", i, j);
  return scale[1][1];
}

double PairEquipot::init_one(int i, int j)
{
  scale[j][i] = scale[i][j];
  return models->cutoff();
}

/* ---------------------------------------------------------------------- a step ---- */

void PairEquipot::compute(int eflag, int vflag)
{
  ev_init(eflag, vflag);
  const double start = MPI_Wtime(), exchanged_at_start = exchange.seconds;
  const bool exchanges = models->num_exchanges() > 0 && comm->nprocs > 1;
  const bool changed = neighbor->ago == 0 || !types_as_before();
  if (rows_are_others()) assign_rows();
  else if (changed) follow_types();
  if (exchanges) exchange.connect();
  double hopeless = 0.0;
  if (takes_places) {
    find_places(!changed && evaluated_on >= 0);
    evaluated_on = -1;    // unless it works
  } else {
    neighborhood.places.reset();
    find_edges();
    hopeless = energy_of_overlaps();
    warn_of_distances();
  }
  const double evaluated = MPI_Wtime();
  time_in_edges += evaluated - start - (exchange.seconds - exchanged_at_start);

  const double exchanged_before = exchange.seconds;
  equipot::Evaluation result{};
  wanted.atom_energies = eflag_atom != 0, wanted.atom_virials = vflag_atom != 0, wanted.heat = cvflag_atom != 0;
  wanted.field = field.empty() ? nullptr : field.data();
  const std::string failure =
      equipot::failure_of([&] { result = models->evaluate(neighborhood, exchanges ? &exchange : nullptr, wanted); });
  // The others may be waiting in an exchange: there is no agreeing on it.
  if (!failure.empty()) error->one(FLERR, "equipot: {}", failure);
  time_in_model += MPI_Wtime() - evaluated - (exchange.seconds - exchanged_before);
  ++num_evaluations, ++evaluation;
  evaluated_on = update->ntimestep;
  known = wanted;
  last_features = result.features, last_outputs = result.outputs, last_derivatives = result.derivatives;    // perhaps null
  if (takes_places) {
    if (result.closer) {
      const bigint last = neighbor->lastcall;
      neighbor->lastcall = update->ntimestep + 1;    // or a list of this step would be taken for one of these atoms
      neighbor->build_one(list);
      neighbor->lastcall = last;
      find_edges();
    }
    warn_of_distances();
  }

  const double unit = this->unit();
  const auto energy_of = [&](double energy, int64_t row) {
    return (energy - (relative_to_isolated ? isolated_energies[neighborhood.atom_types[row]] : 0.0)) * unit;
  };
  if (eflag_global) {
    eng_vdwl += hopeless * energy_unit + result.energy * unit;
    for (int64_t row = 0; row < neighborhood.num_owned && relative_to_isolated; ++row) eng_vdwl += energy_of(0.0, row);
  }
  for (int64_t row = 0; row < neighborhood.num_owned && eflag_atom; ++row)
    eatom[slot_of[row]] += energy_of(result.atom_energies[row], row);
  add_forces(result, unit);
  if (vflag_either) add_virials(result, unit);
}

// Under hybrid (not hybrid/overlay) a later pair_coeff takes pairs of types out of this style's neighbor lists.
void PairEquipot::require_all_neighbors()
{
  for (int i = 1; i <= atom->ntypes && list->ijskip; ++i)
    for (int j = i; j <= atom->ntypes; ++j)
      if (species_of_type[i] >= 0 && species_of_type[j] >= 0 && list->ijskip[i][j])
        error->all(FLERR, "pair_style equipot: another pair_coeff has taken the neighbors of types {} and {} from the "
                   "model; use NULL for types it shall not see, or 'hybrid/overlay' to add to it", i, j);
}

// Whether the atom is in a group that `neigh_modify exclude group GROUP all` has taken out.
bool PairEquipot::excluded(int slot) const
{
  for (int n = 0; n < neighbor->nex_group; ++n) {
    const int bit = neighbor->ex1_group[n] == 0 ? neighbor->ex2_bit[n] : neighbor->ex1_bit[n];
    if (atom->mask[slot] & bit) return true;
  }
  return false;
}

// Monte Carlo fixes and scripts change types between two builds of the neighbor lists.
bool PairEquipot::types_as_before() const
{
  return std::equal(types_of_slots.begin(), types_of_slots.end(), atom->type, atom->type + atom->nlocal + atom->nghost);
}

// Between two neighbor lists only atoms that the model begins or ceases to see, by types that are NULL, change the rows.
bool PairEquipot::rows_are_others() const
{
  if (neighbor->ago == 0) return true;
  const auto seen = [&](int type) { return species_of_type[type] >= 0; };
  if (std::all_of(species_of_type.begin() + 1, species_of_type.end(), [](int species) { return species >= 0; })) return false;
  int others = !std::equal(types_of_slots.begin(), types_of_slots.end(), atom->type, atom->type + atom->nlocal + atom->nghost,
                           [&](int before, int now) { return seen(before) == seen(now); });
  MPI_Allreduce(MPI_IN_PLACE, &others, 1, MPI_INT, MPI_MAX, world);
  return others;
}

void PairEquipot::follow_types()
{
  types_of_slots.assign(atom->type, atom->type + row_of.size());
  for (int64_t row = 0; row < neighborhood.num_atoms(); ++row)
    neighborhood.atom_types[row] = species_of_type[atom->type[slot_of[row]]];
}

// By all ranks together.
void PairEquipot::assign_rows()
{
  require_all_neighbors();
  const int num_slots = atom->nlocal + atom->nghost;
  types_of_slots.assign(atom->type, atom->type + num_slots);
  row_of.assign(num_slots, -1);
  slot_of.clear();
  neighborhood.atom_types.clear(), neighborhood.ids.clear();
  const auto add_row = [&](int slot) {
    slot_of.push_back(slot);
    neighborhood.atom_types.push_back(species_of_type[atom->type[slot]]);
    if (atom->tag_enable) neighborhood.ids.push_back(atom->tag[slot]);
    return neighborhood.num_atoms() - 1;
  };
  for (int slot = 0; slot < atom->nlocal; ++slot)
    if (species_of_type[atom->type[slot]] >= 0 && !excluded(slot)) row_of[slot] = add_row(slot);
  neighborhood.num_owned = neighborhood.num_atoms();

  find_homes();
  std::vector<int> from_elsewhere;    // slots
  for (int slot = atom->nlocal; slot < num_slots; ++slot)
    if (homes[slot].rank == comm->me) row_of[slot] = homes[slot].row;
    else if (homes[slot].row >= 0 && species_of_type[atom->type[slot]] >= 0) from_elsewhere.push_back(slot);
  std::stable_sort(from_elsewhere.begin(), from_elsewhere.end(), [&](int a, int b) { return homes[a] < homes[b]; });
  std::vector<equipot::Home> ghosts;
  for (const int slot : from_elsewhere) {
    if (ghosts.empty() || ghosts.back() != homes[slot]) ghosts.push_back(homes[slot]), add_row(slot);
    row_of[slot] = neighborhood.num_atoms() - 1;
  }
  exchange.set(neighborhood.num_owned, std::move(ghosts));
}

// Where each slot's atom is owned, told by its owner.
void PairEquipot::find_homes()
{
  homes.assign(row_of.size(), {});
  for (int slot = 0; slot < atom->nlocal; ++slot) homes[slot] = {comm->me, row_of[slot]};
  comm->forward_comm(this);
}

int PairEquipot::pack_forward_comm(int n, int *slots, double *buffer, int, int *)
{
  for (int i = 0; i < n; ++i) {
    *buffer++ = homes[slots[i]].rank;
    *buffer++ = static_cast<double>(homes[slots[i]].row);
  }
  return n * numbers_of_home;
}

void PairEquipot::unpack_forward_comm(int n, int first, double *buffer)
{
  for (int i = 0; i < n; ++i, buffer += numbers_of_home)
    homes[first + i] = {static_cast<int>(buffer[0]), static_cast<int64_t>(buffer[1])};
}

// Where LAMMPS has its atoms and ghosts, as they lie.
void PairEquipot::find_places(bool moved)
{
  const int num_slots = atom->nlocal + atom->nghost;
  neighborhood.places = {num_slots, atom->nlocal, num_slots > 0 ? atom->x[0] : nullptr, row_of.data(), moved, watch.limits()};
  watch.begin(), overlap = false;
}

void PairEquipot::find_edges()
{
  const double cutoff_squared = models->cutoff() * models->cutoff();
  double **x = atom->x;
  const auto &types = neighborhood.atom_types;
  auto &center = neighborhood.center, &neighbors = neighborhood.neighbor;
  auto &edge_vec = neighborhood.edge_vec;
  center.clear(), neighbors.clear(), edge_vec.clear();
  watch.begin(), overlap = false;
  for (int ii = 0; ii < list->inum; ++ii) {
    const int i = list->ilist[ii];
    if (row_of[i] < 0) continue;
    for (int jj = 0; jj < list->numneigh[i]; ++jj) {
      const int j = list->firstneigh[i][jj] & NEIGHMASK;
      if (row_of[j] < 0) continue;
      const double d[3] = {x[j][0] - x[i][0], x[j][1] - x[i][1], x[j][2] - x[i][2]};
      const double squared = d[0] * d[0] + d[1] * d[1] + d[2] * d[2];
      if (squared >= cutoff_squared) continue;
      if (has_trials && squared < 0.1 * 0.1) {    // Å, below which the engine refuses a structure
        overlap = true;
        continue;
      }
      if (!(squared > 0.0))    // or not a number
        error->one(FLERR, "equipot: two atoms have no distance: one of type {} at ({:g}, {:g}, {:g}) and one of type {} "
                   "at ({:g}, {:g}, {:g}); try 'delete_atoms overlap'", atom->type[i], x[i][0], x[i][1], x[i][2],
                   atom->type[j], x[j][0], x[j][1], x[j][2]);
      watch.look(types[row_of[i]], types[row_of[j]], squared, i, j);
      center.push_back(row_of[i]);
      neighbors.push_back(row_of[j]);
      edge_vec.insert(edge_vec.end(), d, d + 3);
    }
  }
}

// Monte Carlo fixes try insertions wherever it happens to be. Where one falls upon an atom, no model says anything: the atoms
// are evaluated without neighbors, and this energy (eV) makes the fix reject the trial.
double PairEquipot::energy_of_overlaps()
{
  int mine = overlap, any = 0;
  if (has_trials) MPI_Allreduce(&mine, &any, 1, MPI_INT, MPI_MAX, world);
  if (!any) return 0.0;
  neighborhood.center.clear(), neighborhood.neighbor.clear(), neighborhood.edge_vec.clear();
  watch.begin();
  return comm->me == 0 ? 1e10 : 0.0;
}

// By all ranks together, as long as there is something to find; LAMMPS itself does as much at every step to see whether
// an atom has moved.
void PairEquipot::warn_of_distances()
{
  int mine = watch.found(), any = 0;
  if (watch.is_on()) MPI_Allreduce(&mine, &any, 1, MPI_INT, MPI_MAX, world);
  const auto &species = models->species();
  for (size_t one = 0; one < species.size() && any; ++one)
    for (size_t other = one; other < species.size(); ++other) {
      const auto &[squared, i, j] = watch.closest(one, other);
      struct { double squared; int rank; } here{i < 0 ? HUGE_VAL : squared, comm->me}, nearest;
      MPI_Allreduce(&here, &nearest, 1, MPI_DOUBLE_INT, MPI_MINLOC, world);
      if (nearest.squared == HUGE_VAL) continue;
      tagint ids[2] = {};
      if (comm->me == nearest.rank && atom->tag_enable) ids[0] = atom->tag[i], ids[1] = atom->tag[j];
      MPI_Bcast(ids, 2, MPI_LMP_TAGINT, nearest.rank, world);
      watch.forget(one, other);
      if (comm->me != 0) continue;
      const auto [first, second] = std::minmax(species[one], species[other]);
      const double shortest = models->shortest_distances()[one * species.size() + other];
      error->warning(FLERR, "equipot: closer than anything the model was trained on: {} ({}-{}) are {:.3f} A apart; shortest "
                     "in the training set: {}", atom->tag_enable ? fmt::format("atoms {} and {}", ids[0], ids[1]) : "two atoms",
                     first, second, std::sqrt(nearest.squared),
                     std::isinf(shortest) ? "no such pair is within the cutoff" : fmt::format("{:.3f} A", shortest));
    }
}

// Forces on atoms of other ranks go to their ghosts, from which LAMMPS takes them home, or with newton off we do.
void PairEquipot::add_forces(const equipot::Evaluation &result, double unit)
{
  const int64_t num_rows = neighborhood.num_atoms();
  std::vector<double> forces(result.forces, result.forces + 3 * num_rows);
  if (!force->newton) exchange.add_to_owners(forces.data(), 3);
  const int64_t end = force->newton ? num_rows : neighborhood.num_owned;
  for (int64_t row = 0; row < end; ++row)
    for (int a = 0; a < 3; ++a) atom->f[slot_of[row]][a] += unit * forces[3 * row + a];
}

void PairEquipot::add_virials(const equipot::Evaluation &result, double unit)
{
  // LAMMPS's orders: xx yy zz xy xz yz, and with the full tensor yx zx zy behind.
  constexpr int order[9] = {0, 4, 8, 1, 2, 5, 3, 6, 7}, transposed[9] = {0, 4, 8, 3, 6, 7, 1, 2, 5};
  const int64_t num_rows = neighborhood.num_atoms(), end = force->newton ? num_rows : neighborhood.num_owned;
  const auto at_owners = [&](const double *rows) {
    std::vector<double> virials(rows, rows + 9 * num_rows);
    if (!force->newton) exchange.add_to_owners(virials.data(), 9);
    return virials;
  };
  for (int k = 0; k < 6 && vflag_global; ++k)
    virial[k] += 0.5 * unit * (result.virial[order[k]] + result.virial[transposed[k]]);
  if (vflag_atom) {
    const std::vector<double> w = at_owners(result.atom_virials);
    for (int64_t row = 0; row < end; ++row)
      for (int k = 0; k < 6; ++k)
        vatom[slot_of[row]][k] += 0.5 * unit * (w[9 * row + order[k]] + w[9 * row + transposed[k]]);
  }
  if (cvflag_atom) {    // the weights of the heat flux: compute heat/flux multiplies the second index by velocities
    const std::vector<double> w = at_owners(result.atom_heat_virials);
    for (int64_t row = 0; row < end; ++row)
      for (int k = 0; k < 9; ++k) cvatom[slot_of[row]][k] += unit * w[9 * row + order[k]];
  }
}

double PairEquipot::unit() const { return energy_unit * common_scale(); }

// By all ranks together. Between two runs commands add, take away and reorder atoms, and change their types.
void PairEquipot::require_evaluation(const char *style, equipot::Wanted needed) const
{
  int current = evaluated_on == update->ntimestep && known.features >= needed.features &&
      known.outputs >= needed.outputs && known.derivatives >= needed.derivatives;
  if (current) {
    current = types_of_slots.size() == static_cast<size_t>(atom->nlocal + atom->nghost) && types_as_before();
    for (int slot = 0; slot < atom->nlocal && current && atom->tag_enable; ++slot)
      current = row(slot) < 0 || neighborhood.ids[row(slot)] == atom->tag[slot];
    MPI_Allreduce(MPI_IN_PLACE, &current, 1, MPI_INT, MPI_MIN, world);
  }
  if (!current)
    error->all(FLERR, "compute {} is asked for on step {} before the forces are known there, or atoms and model are others by "
               "now: use it during a run, or directly after 'run 0'", style, update->ntimestep);
}

std::vector<double> PairEquipot::uncertainties(const double *features, int64_t rows) const
{
  std::vector<double> sigma;
  const std::string failure = equipot::failure_of([&] { sigma = models->members()[0]->uncertainties(features, rows); });
  if (!failure.empty()) error->one(FLERR, "equipot: {}", failure);
  const double unit = std::abs(this->unit());
  for (double &value : sigma) value *= unit;
  return sigma;
}

void PairEquipot::take_home(std::vector<double> &rows, int64_t width) { exchange.add_to_owners(rows.data(), width); }

/* ---------------------------------------------------------------------- afterwards ---- */

void PairEquipot::finish()
{
  if (num_evaluations == 0) return;
  double mine[3] = {time_in_model, exchange.seconds, time_in_edges}, sum[3];
  MPI_Reduce(mine, sum, 3, MPI_DOUBLE, MPI_SUM, 0, world);
  if (comm->me != 0) return;
  const double total = std::accumulate(sum, sum + 3, 0.0), evaluations = 1.0 * num_evaluations * comm->nprocs;
  utils::logmesg(lmp, "equipot: {:.3g} ms per step and rank: model {:.1f} %, exchange {:.1f} %, edges {:.1f} %\n",
                 1e3 * total / evaluations, 100 * sum[0] / total, 100 * sum[1] / total, 100 * sum[2] / total);
}

void *PairEquipot::extract(const char *name, int &dimension)
{
  dimension = 2;
  return std::string(name) == "scale" ? scale : nullptr;
}

double PairEquipot::memory_usage()
{
  const auto &n = neighborhood;
  return Pair::memory_usage() + 8.0 * (n.center.capacity() + n.neighbor.capacity() + n.edge_vec.capacity()) +
      8.0 * (n.atom_types.capacity() + row_of.capacity()) + 4.0 * slot_of.capacity() + 16.0 * homes.capacity();
}
