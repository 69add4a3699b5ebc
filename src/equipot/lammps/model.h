// A deployed model for an MD code: loads the file, checks itself, evaluates. Knows libtorch, and no MD code.
//
// Nothing of torch is visible here, so that an MD code's headers and torch's never meet.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace equipot {

class GhostExchange;

// What the file says of itself; see equipot/deploy/metadata.py. Energies in eV, lengths in Å.
struct ModelFacts {
  std::string model_type, dtype, equipot_version, torch_version;
  std::vector<std::string> species;  // position = atom type of the model
  std::vector<double> atomic_energies;
  double cutoff = 0;
  double interaction_range = 0;
  int num_exchanges = 0;  // of features with other domains, per evaluation
  int64_t widest_exchange = 0;  // numbers per atom

  int64_t bytes_per_number() const { return dtype == "float32" ? 4 : 8; }
};

// One evaluation's input: atoms with the owned ones in front, and directed edges.
struct Neighborhood {
  int64_t num_owned = 0;
  std::vector<int64_t> atom_types;  // (N)
  std::vector<int64_t> center, neighbor;  // (E)
  std::vector<double> edge_vec;  // (E, 3) Å, from the center to the neighbor

  int64_t num_atoms() const { return static_cast<int64_t>(atom_types.size()); }
  int64_t num_edges() const { return static_cast<int64_t>(center.size()); }
};

// Valid until the next evaluation.
struct Evaluation {
  const double* atom_energies;  // (N) eV, zero for atoms that are not owned
  const double* forces;  // (N, 3) eV/Å; those of other atoms belong to their owners
  const double* atom_virials;  // (N, 3, 3) eV
};

class Model {
 public:
  // `device`: "cpu", "cuda" or "cuda:N". Throws std::runtime_error with a message for the user.
  Model(const std::string& path, const std::string& device);
  ~Model();

  const ModelFacts& facts() const { return facts_; }

  // Evaluates the reference structures inside the file; returns what was found, throws if it is wrong.
  std::string check();

  // All processes with an exchange must call this together, with atoms or without. Throws std::runtime_error.
  Evaluation evaluate(const Neighborhood& neighborhood, GhostExchange* exchange = nullptr);

 private:
  struct Torch;
  std::string path_;
  ModelFacts facts_;
  std::string capsule_;
  std::unique_ptr<Torch> torch_;
};

// Loads the operators that model files call, if this process does not have them yet: the library beside this one.
void load_operators();

// "auto" becomes this rank's GPU, or the CPU where there is none. `local_rank` counts the processes of one node.
std::string choose_device(const std::string& wanted, int local_rank);

// A line about a GPU that is here and that this torch cannot use; empty if there is none.
std::string unused_gpu();

int num_threads();

}  // namespace equipot
