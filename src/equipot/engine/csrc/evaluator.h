// Evaluates the program of a model: energies, forces and virials of atoms, from edge vectors.
#pragma once

#include <cstdint>
#include <memory>

#include "ghost_exchange.h"
#include "program.h"

namespace equipot {

// Directed edges in any order; those that begin at one atom need not lie together, but then they are sorted first.
struct Edges {
  int64_t num_atoms = 0, num_edges = 0;
  const int64_t* types = nullptr;  // (num_atoms)
  const uint8_t* owned = nullptr;  // (num_atoms) whose energy counts; null: all
  const int64_t* center = nullptr;  // (num_edges)
  const int64_t* neighbor = nullptr;  // (num_edges)
  const double* edge_vec = nullptr;  // (num_edges, 3) Å, from the center to the neighbor
  GhostExchange* exchange = nullptr;  // of a domain whose owned atoms come first; null: none
  const double* field = nullptr;  // (3) V/Å, uniform; only of a model that feels one
};

// From which neighbors are found.
struct Structure {
  int64_t num_atoms = 0;
  const int64_t* types = nullptr;  // (num_atoms)
  const double* positions = nullptr;  // (num_atoms, 3) Å
  const double* cell = nullptr;  // (3, 3) Å, rows are lattice vectors; null where nothing is periodic
  const int32_t* periodic = nullptr;  // (3)
  const double* watched = nullptr;  // (types, types) Å
  bool anew = false;
};

// A part of space; see equipot_domain.
struct Domain {
  int64_t num_atoms = 0, num_owned = 0;
  const int64_t* types = nullptr;  // (num_atoms)
  int64_t num_places = 0, num_local = 0;
  const double* positions = nullptr;  // (num_places, 3) Å
  const int64_t* atoms = nullptr;  // (num_places)
  bool moved = false;
  GhostExchange* exchange = nullptr;
  const double* watched = nullptr;  // (types, types) Å
};

// Written for all atoms; null: not wanted.
struct Results {
  double* atom_energies = nullptr;  // (num_atoms) eV, zero where not owned
  double* forces = nullptr;  // (num_atoms, 3) eV/Å
  double* atom_virials = nullptr;  // (num_atoms, 3, 3) eV, counted at the neighbor
  double* atom_heat_virials = nullptr;  // (num_atoms, 3, 3) eV; see equipot.h
  double* features = nullptr;  // (num_atoms, width) eV, of the last layer; only with a width
  double* outputs = nullptr;  // (num_atoms, output_width), zero where not owned; only with a width
  double* derivatives = nullptr;  // (num_atoms, derivative_width), those of atoms not owned are their owners'; only with a width
  double* energy = nullptr;  // (1) eV, the sum over atoms; only of an evaluator that adds up
  double* virial = nullptr;  // (3, 3) eV, the same
  int32_t* closer = nullptr;  // (1), only of an evaluator that finds neighbors; see equipot.h
};

class Evaluator {
 public:
  virtual ~Evaluator() = default;
  // Throws std::invalid_argument for a type or an atom that is not there.
  virtual void evaluate(const Edges& edges, const Results& results) = 0;
  virtual bool finds_neighbors() const { return false; }
  // Only of an evaluator that does. Throws as find_neighbors, too.
  virtual void evaluate_structure(const Structure&, const Results&) {}
  virtual void evaluate_domain(const Domain&, const int64_t* /*ids*/, const Results&) {}
  virtual int64_t feature_width() const = 0;  // 0: the file does not say how uncertain its energies are
  virtual int64_t output_width() const = 0;  // numbers beside the energy, of an atom
  virtual int64_t derivative_width() const = 0;
  virtual bool has_energy() const = 0;  // if not, energies and forces are zero
  virtual bool feels_field() const = 0;
  virtual bool adds_up() const { return false; }  // energies and virials, so that those of atoms need not be asked for
  // sigma (rows) eV, from rows of features, or of their sums; only with a width.
  virtual void deviations(int64_t rows, const double* features, double* sigma) const = 0;
};

// Throws std::runtime_error or std::invalid_argument if the program is damaged.
std::unique_ptr<Evaluator> make_evaluator(const Program& program);

// The set of instructions that evaluators use. Throws std::runtime_error if EQUIPOT_INSTRUCTIONS names none.
const char* instructions();

}  // namespace equipot
