// A deployed model for an MD code: opens the file, checks itself, evaluates. Knows no MD code.
#pragma once

#include <array>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ghost_exchange.h"

namespace equipot {

// What is predicted beside the energy; see equipot_output in equipot.h.
struct OutputOfModel {
  std::string name;
  bool per_atom = false, mean = false, is_derivative = false;
  int64_t first = 0, width = 0;
  std::string total, charges;
  bool operator==(const OutputOfModel&) const = default;
};

// What the file says of itself. Energies in eV, lengths in Å.
struct ModelFacts {
  std::string model_type, equipot_version;
  std::vector<std::string> species;  // position = atom type of the model
  std::vector<double> reference_energies, masses;  // of an isolated atom; u
  std::vector<double> shortest_distances;  // (species, species) Å; empty: not known; see equipot.h
  uint64_t checksum = 0;  // of the file
  double cutoff = 0;
  int num_exchanges = 0;  // of features with other domains, per evaluation
  int64_t widest_exchange = 0;  // numbers per atom
  int64_t bytes_per_number = 0;  // of a feature
  int64_t feature_width = 0;  // of the last layer; 0: the model does not say here how uncertain its energies are
  std::vector<OutputOfModel> outputs;
  int64_t output_width = 0, derivative_width = 0;  // of all of them, of an atom
  bool has_energy = true, feels_field = false;
};

// Places in space, between which a GPU finds the edges; see equipot_domain.
struct Places {
  int64_t number = 0, num_local = 0;
  const double* positions = nullptr;  // (number, 3) Å
  const int64_t* atoms = nullptr;  // (number)
  bool moved = false;
  std::vector<double> watched;  // (species, species) Å; empty: none
};

// One evaluation's input: atoms with the owned ones in front, and directed edges, or places.
struct Neighborhood {
  int64_t num_owned = 0;
  std::vector<int64_t> atom_types;  // (N)
  std::vector<int64_t> center, neighbor;  // (E)
  std::vector<double> edge_vec;  // (E, 3) Å, from the center to the neighbor
  std::vector<int64_t> ids;  // (N) what messages call the atoms; or empty
  std::optional<Places> places;  // in place of edges

  int64_t num_atoms() const { return static_cast<int64_t>(atom_types.size()); }
  int64_t num_edges() const { return static_cast<int64_t>(center.size()); }
};

// Valid until the next evaluation.
struct Evaluation {
  double energy = 0;  // eV, of the owned atoms
  std::array<double, 9> virial{};  // eV, of all edges from owned atoms
  const double* forces = nullptr;  // (N, 3) eV/Å; those of other atoms belong to their owners
  // If wanted:
  const double* atom_energies = nullptr;  // (N) eV, zero for atoms that are not owned
  const double* atom_virials = nullptr;  // (N, 3, 3) eV
  const double* atom_heat_virials = nullptr;  // (N, 3, 3) eV; see equipot.h
  const double* features = nullptr;  // (N, feature_width) eV
  const double* outputs = nullptr;  // (N, output_width)
  const double* derivatives = nullptr;  // (N, derivative_width); those of ghosts belong to their owners
  bool closer = false;  // an edge between places is shorter than what is watched
};

// Of an evaluation, beside what it always gives.
struct Wanted {
  bool atom_energies = false, atom_virials = false, heat = false, features = false, outputs = false, derivatives = false;
  const double* field = nullptr;  // (3) V/Å; not with places
};

class Model {
 public:
  virtual ~Model() = default;

  const ModelFacts& facts() const { return facts_; }

  // Whether it takes places, in which it finds edges faster than who calls it.
  virtual bool takes_places() const = 0;

  // Evaluates the reference structures inside the file; returns what was found, throws if it is wrong.
  virtual std::string check() = 0;

  // All processes with an exchange must call this together, with atoms or without. Throws std::runtime_error.
  virtual Evaluation evaluate(const Neighborhood& neighborhood, GhostExchange* exchange = nullptr,
                              Wanted wanted = {}) = 0;

  // (rows) eV, of the energies that rows of `features` (rows, feature_width) eV belong to; see equipot.h.
  virtual std::vector<double> uncertainties(const double* /*features*/, int64_t /*rows*/) { return {}; }

 protected:
  ModelFacts facts_;
};

// `device`: "cpu", "cuda" or "cuda:N". Throws std::runtime_error with a message for the user.
std::unique_ptr<Model> open_model(const std::string& path, const std::string& device);

// What `work` throws, as a message; empty if it throws nothing.
template <class F>
std::string failure_of(const F& work) {
  try {
    work();
  } catch (const std::exception& error) {
    return error.what();
  }
  return {};
}

// "auto" becomes this rank's GPU, or the CPU where there is none. `local_rank` counts the processes of one node.
std::string choose_device(const std::string& wanted, int local_rank);

// A line about a GPU that is here and cannot be used; empty if there is none.
std::string unused_gpu();

// Of the engine, in each process.
void set_num_threads(int count);

}  // namespace equipot
