// Models that are evaluated together: one, or an ensemble, whose mean is the result. Knows no MD code.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "model.h"

namespace equipot {

class Ensemble {
 public:
  // `paths`: model files, or the folder of an ensemble as 'equipot deploy' writes it. Throws std::runtime_error with a
  // message for the user: of a file, or of members that do not belong together.
  Ensemble(const std::vector<std::string>& paths, const std::string& device);

  const std::vector<std::unique_ptr<Model>>& members() const { return members_; }
  const std::vector<std::string>& files() const { return files_; }
  bool is_single() const { return members_.size() == 1; }

  // What the members have in common: species, masses, cutoff and device; the most exchanges and bytes per atom in one; the
  // shortest distances that any of them has seen; a checksum of all files.
  const std::vector<std::string>& species() const { return members_[0]->facts().species; }
  const std::vector<double>& masses() const { return members_[0]->facts().masses; }
  double cutoff() const { return members_[0]->facts().cutoff; }
  bool takes_places() const { return members_[0]->takes_places(); }
  int num_exchanges() const;
  std::vector<double> shortest_distances() const;
  uint64_t checksum() const;

  // As `Model::evaluate`: the mean of the members. There are features of a single model only.
  Evaluation evaluate(const Neighborhood& neighborhood, GhostExchange* exchange = nullptr, Wanted wanted = {});

  // 0: there are no features, as of an ensemble.
  int64_t feature_width() const { return is_single() ? members_[0]->facts().feature_width : 0; }

  // What all members predict beside the energy; none where they differ.
  const std::vector<OutputOfModel>& outputs() const { return outputs_; }
  int64_t output_width() const { return members_[0]->facts().output_width; }
  int64_t derivative_width() const { return members_[0]->facts().derivative_width; }

  // Of an ensemble's last evaluation, by member: (N, 3) eV/Å; (3, 3) eV, summed over the atoms.
  const std::vector<std::vector<double>>& member_forces() const { return member_forces_; }
  const std::vector<std::array<double, 9>>& member_virials() const { return member_virials_; }

 private:
  std::vector<std::string> files_;
  std::vector<std::unique_ptr<Model>> members_;
  std::vector<OutputOfModel> outputs_;
  std::vector<double> energies_, forces_, virials_, heat_virials_, values_, derivatives_;  // the mean; values of outputs
  std::vector<std::vector<double>> member_forces_;
  std::vector<std::array<double, 9>> member_virials_;
};

}  // namespace equipot
