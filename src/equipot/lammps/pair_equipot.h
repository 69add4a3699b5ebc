// pair_style equipot: a deployed model in LAMMPS, on one rank or many.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "distance_watch.h"
#include "ensemble.h"
#include "pair.h"
#include "row_exchange.h"

namespace LAMMPS_NS {

// LAMMPS's atoms and ghosts are slots; the model's atoms are rows. Ghosts that are images of one atom share its row,
// so that only atoms of other ranks add to what the model has to look at:
//
//   rows     0 ... num_owned - 1: owned atoms of a type that has an element; then atoms of other ranks, in the order of their homes
//   row_of   (slots) a slot's row, or -1
//   slot_of  (rows)  the first slot with that row
class PairEquipot : public Pair {
 public:
  explicit PairEquipot(class LAMMPS *);
  ~PairEquipot() override;

  void settings(int, char **) override;
  void coeff(int, char **) override;
  void init_style() override;
  double init_one(int, int) override;
  void compute(int, int) override;
  void finish() override;
  double memory_usage() override;
  void *extract(const char *, int &) override;

  int pack_forward_comm(int, int *, double *, int, int *) override;
  void unpack_forward_comm(int, int, double *) override;

  // For computes, of the last evaluation.
  const equipot::Ensemble *ensemble() const { return models.get(); }
  void require_evaluation(const char *style, equipot::Wanted needed = {}) const;  // on this step, of these atoms
  int64_t last_evaluation() const { return evaluation; }
  int64_t num_owned_rows() const { return neighborhood.num_owned; }
  int64_t num_rows() const { return neighborhood.num_atoms(); }
  int64_t row(int slot) const { return slot < static_cast<int>(row_of.size()) ? row_of[slot] : -1; }
  const double *features() const { return last_features; }  // (rows, feature_width); see `want_features`
  void want_features() { wanted.features = true; }  // in this run, of a model that has them
  const double *outputs() const { return last_outputs; }  // (rows, output_width); see `want_outputs`
  const double *derivatives() const { return last_derivatives; }  // (rows, derivative_width)
  void want_outputs(bool derivatives) { (derivatives ? wanted.derivatives : wanted.outputs) = true; }  // the same
  std::vector<double> uncertainties(const double *features, int64_t rows) const;  // in LAMMPS's units
  double unit() const;  // of LAMMPS's energies, per eV, times the scale
  void take_home(std::vector<double> &rows, int64_t width);  // what ghosts have is added to their owners, on all ranks

 private:
  int rank_on_node() const;
  void allocate();
  void read_element_names(char **);
  void print_summary(const std::vector<std::string> &checks);
  void require_on_all_ranks(const std::string &failure);
  void require_supported_settings();
  void require_all_neighbors();
  void require_same_files();
  void open_models(const std::vector<std::string> &files, int local_rank);
  void warn_of_masses() const;
  double common_scale() const;
  bool excluded(int slot) const;
  bool types_as_before() const;
  bool rows_are_others() const;
  void follow_types();
  void assign_rows();
  void find_homes();
  void find_edges();
  void find_places(bool moved);
  double energy_of_overlaps();
  void warn_of_distances();
  void add_forces(const equipot::Evaluation &, double unit);
  void add_virials(const equipot::Evaluation &, double unit);

  std::unique_ptr<equipot::Ensemble> models;
  equipot::DistanceWatch watch;
  std::string wanted_device, device, not_on_gpu;  // why `device auto` has taken the CPU where there is a GPU
  bool skip_check, relative_to_isolated;
  std::vector<double> isolated_energies;  // eV, of one atom of each species alone
  double **scale;  // of energies, forces and virials, by pairs of types, all equal: for fix adapt
  double energy_unit;  // of LAMMPS, per eV
  std::vector<double> field;  // V/Å; empty: none
  std::vector<int> species_of_type;  // by LAMMPS's atom type, counted from 1; -1: none

  equipot::Neighborhood neighborhood;
  std::vector<int64_t> row_of;
  std::vector<int> slot_of, types_of_slots;

  std::vector<equipot::Home> homes;  // of slots, while rows are assigned
  equipot::RowExchange exchange;  // between ranks
  std::string wanted_exchange;

  double time_in_model, time_in_edges;  // seconds since the run began
  int64_t num_evaluations;
  int64_t evaluation, evaluated_on;  // counted through all runs; the step of the last one
  equipot::Wanted wanted, known;  // by computes in this run; of the last evaluation
  const double *last_features, *last_outputs, *last_derivatives;
  bool takes_places;  // instead of edges, in this run
  bool has_trials, overlap;  // whether a fix tries insertions; whether two atoms are in one place
};

}  // namespace LAMMPS_NS
