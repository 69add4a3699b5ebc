// What pair_style and pair_coeff say, and what is said about it.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "memory.h"
#include "pair_equipot.h"
#include "universe.h"
#include "utils.h"

using namespace LAMMPS_NS;

namespace {

bool names_device(const std::string &text)
{
  if (text == "auto" || text == "cpu" || text == "cuda") return true;
  return text.rfind("cuda:", 0) == 0 && text.size() > 5 && text.size() < 9 &&
      text.find_first_not_of("0123456789", 5) == std::string::npos;
}

std::string joined(const std::vector<std::string> &names)
{
  std::string text;
  for (const auto &name : names) text += (text.empty() ? "" : " ") + name;
  return text;
}

}    // namespace

void PairEquipot::settings(int narg, char **arg)
{
  wanted_device = wanted_exchange = "auto";
  skip_check = relative_to_isolated = false;
  field.clear();
  for (int i = 0; i < narg; ++i) {
    const std::string word = arg[i];
    if (word == "skip_check") {
      skip_check = true;
    } else if (word == "energy" && i + 1 < narg) {
      const std::string kind = arg[++i];
      if (kind != "total" && kind != "isolated")
        error->all(FLERR, "pair_style equipot: expected 'energy total' or 'energy isolated', found 'energy {}'", kind);
      relative_to_isolated = kind == "isolated";
    } else if (word == "device" && i + 1 < narg) {
      wanted_device = arg[++i];
      if (!names_device(wanted_device))
        error->all(FLERR, "pair_style equipot: expected 'device auto', 'cpu', 'cuda' or 'cuda:N', found 'device {}'",
                   wanted_device);
    } else if (word == "exchange" && i + 1 < narg) {
      wanted_exchange = arg[++i];
      if (wanted_exchange != "auto" && wanted_exchange != "host" && wanted_exchange != "gpu")
        error->all(FLERR, "pair_style equipot: expected 'exchange auto', 'host' or 'gpu', found 'exchange {}'", wanted_exchange);
    } else if (word == "field" && i + 3 < narg) {
      field.clear();
      for (int a = 0; a < 3; ++a) field.push_back(utils::numeric(FLERR, arg[++i], false, lmp));
    } else {
      error->all(FLERR, "pair_style equipot: expected 'device auto|cpu|cuda|cuda:N', 'exchange auto|host|gpu', "
                 "'energy total|isolated', 'field FX FY FZ' and 'skip_check', found '{}'", word);
    }
  }
}

void PairEquipot::coeff(int narg, char **arg)
{
  const int num_types = atom->ntypes;
  if (narg < 3 || std::string(arg[0]) != "*" || std::string(arg[1]) != "*")
    error->all(FLERR, "Expected 'pair_coeff * * FILE ELEMENT ...', FILE (or FOLDER) from 'equipot deploy'");
  const int num_files = narg - 2 - num_types;
  const auto wrong_count = fmt::format("expected an element (or NULL) for each of the {} atom types, found {}", num_types,
                                       narg - 3);
  if (num_files < 1) error->all(FLERR, "pair_coeff equipot: {}", wrong_count);

  const int local_rank = rank_on_node();
  const std::vector<std::string> files(arg + 2, arg + 2 + num_files);
  std::vector<std::string> checks;
  require_on_all_ranks(equipot::failure_of([&] {
    for (int n = 1; n < num_files; ++n)
      if (std::error_code unknown; !std::filesystem::exists(files[n], unknown))
        throw std::runtime_error(fmt::format("{}, or {} files: there is no file '{}'", wrong_count, num_files, files[n]));
    open_models(files, local_rank);
    for (const auto &member : models->members())
      if (!field.empty() && !member->facts().feels_field)
        throw std::runtime_error("pair_style equipot field: the energy of a model does not depend on an electric field "
                                 "(model.field), or it runs on a GPU");
    equipot::set_num_threads(comm->nthreads);
    for (const auto &member : models->members()) checks.push_back(skip_check ? "skipped (skip_check)" : member->check());
    equipot::Neighborhood alone;    // an atom of each species, and no edges
    alone.num_owned = static_cast<int64_t>(models->species().size());
    for (int64_t s = 0; s < alone.num_owned; ++s) alone.atom_types.push_back(s);
    equipot::Wanted by_atom;
    by_atom.atom_energies = true;
    const double *energies = models->evaluate(alone, nullptr, by_atom).atom_energies;
    isolated_energies.assign(energies, energies + alone.num_owned);
  }));
  require_same_files();
  exchange.let_gpu(device != "cpu" && (wanted_exchange == "gpu" || (wanted_exchange == "auto" && equipot::mpi_takes_gpu_memory())));
  evaluated_on = -1;    // by another model
  watch = equipot::DistanceWatch(models->shortest_distances(), models->species().size(), models->cutoff());
  allocate();
  read_element_names(arg + 2 + num_files);
  print_summary(checks);
}

// What a GPU cannot run goes to the CPU with `device auto`, which is said; a file that is wrong is wrong there, too.
void PairEquipot::open_models(const std::vector<std::string> &files, int local_rank)
{
  device = equipot::choose_device(wanted_device, local_rank), not_on_gpu.clear();
  try {
    models = std::make_unique<equipot::Ensemble>(files, device);
  } catch (const std::exception &error) {
    if (wanted_device != "auto" || device == "cpu") throw;
    not_on_gpu = error.what(), device = "cpu";
    models = std::make_unique<equipot::Ensemble>(files, device);
  }
}

// Counts the processes of all partitions. These read inputs of their own, so they cannot agree on anything here; the
// launchers say it, and where none does, processes are taken to fill one node after the other.
int PairEquipot::rank_on_node() const
{
  if (universe->nworlds > 1) {
    for (const char *name : {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK",
                             "PALS_LOCAL_RANKID", "SLURM_LOCALID"})
      if (const char *value = std::getenv(name)) return std::max(std::atoi(value), 0);
    return universe->me;
  }
  MPI_Comm node;
  int rank = 0;
  MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, comm->me, MPI_INFO_NULL, &node);
  MPI_Comm_rank(node, &rank);
  MPI_Comm_free(&node);
  return rank;
}

void PairEquipot::allocate()
{
  const int n = atom->ntypes + 1;
  if (!allocated) {
    memory->create(setflag, n, n, "pair:setflag");
    memory->create(cutsq, n, n, "pair:cutsq");
    memory->create(scale, n, n, "pair:scale");
    std::fill_n(&scale[0][0], n * n, 1.0);
    allocated = 1;
  }
  for (int i = 1; i < n; ++i)
    for (int j = i; j < n; ++j) setflag[i][j] = 0;
}

void PairEquipot::read_element_names(char **names)
{
  const auto &species = models->species();
  const int num_types = atom->ntypes;
  species_of_type.assign(num_types + 1, -1);
  for (int type = 1; type <= num_types; ++type) {
    const std::string name = names[type - 1];
    if (name == "NULL") continue;
    const auto found = std::find(species.begin(), species.end(), name);
    if (found == species.end())
      error->all(FLERR, "pair_coeff equipot: atom type {} is '{}', but the model knows {} only", type, name,
                 joined(species));
    species_of_type[type] = static_cast<int>(found - species.begin());
  }
  for (int i = 1; i <= num_types; ++i)
    for (int j = i; j <= num_types; ++j)
      if (species_of_type[i] >= 0 && species_of_type[j] >= 0) setflag[i][j] = 1;
}

void PairEquipot::print_summary(const std::vector<std::string> &checks)
{
  std::string text;
  if (!models->is_single()) text = fmt::format("equipot: the mean of {} models\n", checks.size());
  for (size_t m = 0; m < checks.size(); ++m) {
    const auto &facts = models->members()[m]->facts();
    text += fmt::format("{}: {} model, {}, cutoff {:g} A, written by equipot {}\n",
                        models->is_single() ? "equipot" : models->files()[m], facts.model_type,
                        facts.bytes_per_number == 4 ? "float32" : "float64", facts.cutoff, facts.equipot_version);
    text += facts.num_exchanges == 0
        ? "  strictly local: no messages between ranks\n"
        : fmt::format("  message passing: {} exchange{} of up to {} numbers per atom between ranks, in each direction\n",
                      facts.num_exchanges, facts.num_exchanges == 1 ? "" : "s", facts.widest_exchange);
    text += fmt::format("  self-check: {}\n", checks[m]);
  }
  if (!field.empty()) text += fmt::format("  electric field: {:g} {:g} {:g} V/A\n", field[0], field[1], field[2]);
  for (int type = 1; type <= atom->ntypes; ++type) {
    const int s = species_of_type[type];
    text += fmt::format("  atom type {}: {}\n", type, s < 0 ? "not of this model (NULL)" : models->species()[s]);
  }

  // Who runs where, one line per device.
  const int threads = comm->nthreads, cores = static_cast<int>(std::thread::hardware_concurrency());
  std::vector<char> names(static_cast<size_t>(comm->nprocs) * 16, '\0');
  char mine[16] = {};
  device.copy(mine, sizeof(mine) - 1);
  MPI_Gather(mine, 16, MPI_CHAR, names.data(), 16, MPI_CHAR, 0, world);
  if (comm->me != 0) return;
  for (int rank = 0; rank < comm->nprocs;) {
    const std::string name = &names[rank * 16];
    int last = rank;
    while (last + 1 < comm->nprocs && name == &names[(last + 1) * 16]) ++last;
    text += fmt::format("  rank{}: {}, {} thread{} each\n",
                        last > rank ? fmt::format("s {}-{}", rank, last) : fmt::format(" {}", rank), name, threads,
                        threads == 1 ? "" : "s");
    rank = last + 1;
  }
  if (models->num_exchanges() > 0 && comm->nprocs > 1 && device != "cpu")
    text += exchange.is_gpu_aware() ? "  exchange: from GPU to GPU by MPI\n"
        : wanted_exchange == "host" ? "  exchange: by way of the host's memory ('exchange host')\n"
                                    : "  exchange: by way of the host's memory, since MPI does not say that it takes a GPU's\n";
  if (universe->nworlds > 1)
    text += fmt::format("  partition {} starts with process {} of its node\n", universe->iworld + 1, rank_on_node());
  utils::logmesg(lmp, text);
  if (wanted_exchange == "gpu" && device == "cpu")
    error->warning(FLERR, "equipot: 'exchange gpu' where there is no GPU: rows are exchanged as on any CPU");
  if (!not_on_gpu.empty()) error->warning(FLERR, "equipot: {}. 'device auto' takes the CPU", not_on_gpu);
  if (const auto unused = equipot::unused_gpu(); wanted_device == "auto" && device == "cpu" && !unused.empty())
    error->warning(FLERR, "equipot: {}", unused);
  if (device == "cpu" && cores > 0 && comm->nprocs == 1 && threads > cores)
    error->warning(FLERR, "equipot: {} threads on {} cores; set OMP_NUM_THREADS", threads, cores);
}

// Fails on every rank with the message of the first that failed; returns if none did.
void PairEquipot::require_on_all_ranks(const std::string &failure)
{
  int mine = failure.empty() ? comm->nprocs : comm->me, first = 0;
  MPI_Allreduce(&mine, &first, 1, MPI_INT, MPI_MIN, world);
  if (first == comm->nprocs) return;
  auto length = static_cast<int>(failure.size());
  MPI_Bcast(&length, 1, MPI_INT, first, world);
  std::string message = failure;
  message.resize(length);
  MPI_Bcast(message.data(), length, MPI_CHAR, first, world);
  error->all(FLERR, "equipot: {}", message);
}

// Files of one name may differ between nodes.
void PairEquipot::require_same_files()
{
  const uint64_t mine = models->checksum();
  uint64_t least = 0, most = 0;
  MPI_Allreduce(&mine, &least, 1, MPI_UINT64_T, MPI_MIN, world);
  MPI_Allreduce(&mine, &most, 1, MPI_UINT64_T, MPI_MAX, world);
  if (least != most)
    error->all(FLERR, "equipot: the ranks have read different files of this name (are there copies on the nodes?)");
}
