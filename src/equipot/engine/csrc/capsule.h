// The self-check capsule of a model file: reference structures with the results they must give; see
// equipot/deploy/capsule.py.
#pragma once

#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "evaluator.h"
#include "json.h"
#include "output_facts.h"
#include "text.h"

namespace equipot {

namespace capsule {

// Largest deviation and largest reference value of one quantity.
struct Comparison {
  double deviation = 0, scale = 1;

  void add(double found, double right, double offset = 0) {
    const double difference = std::abs(found - right);
    deviation = std::isfinite(difference) ? std::max(deviation, difference) : INFINITY;
    scale = std::max(scale, std::abs(right - offset));
  }
};

struct Structure {
  std::vector<int64_t> types, center, neighbor;
  std::vector<double> edge_vec;

  explicit Structure(const Json& reference) : types(reference["atom_types"].numbers<int64_t>()) {
    const auto positions = reference["positions"].numbers<double>(), cell = reference["cell"].numbers<double>();
    const auto edges = reference["edge_index"].numbers<int64_t>();
    const auto shifts = reference["edge_shift"].numbers<double>();
    const size_t num_edges = edges.size() / 2;
    center.assign(edges.begin(), edges.begin() + num_edges);
    neighbor.assign(edges.begin() + num_edges, edges.end());
    for (size_t e = 0; e < num_edges; ++e)
      for (int a = 0; a < 3; ++a) {
        double length = positions.at(3 * neighbor[e] + a) - positions.at(3 * center[e] + a);
        for (int b = 0; b < 3; ++b) length += shifts.at(3 * e + b) * cell.at(3 * b + a);
        edge_vec.push_back(length);
      }
  }
};

}  // namespace capsule

// Re-evaluates the references by evaluate(structure, atom_energies, forces, atom_virials, outputs, derivatives), which resizes the vectors.
// Returns a line about what was found; `right` is false if it is wrong. Throws std::logic_error for a damaged capsule.
template <class Evaluate>
std::string check_capsule(const std::string& text, bool single_precision, const std::vector<double>& reference_energies,
                          const std::vector<OutputFacts>& outputs, const Evaluate& evaluate, bool& right) {
  const double relative = single_precision ? 1e-4 : 1e-9;  // RELATIVE_TOLERANCE of deploy/capsule.py
  std::vector<capsule::Comparison> all(3 + outputs.size());
  auto &energy = all[0], &forces = all[1], &virials = all[2];
  size_t num_structures = 0;
  const Json json = Json::parse(text);
  for (const Json& reference : json["references"].items) {
    const capsule::Structure structure(reference);
    std::vector<double> found_energies, found_forces, found_virials, found_outputs, found_derivatives;
    evaluate(structure, found_energies, found_forces, found_virials, found_outputs, found_derivatives);
    const auto rows = [&](const char* name) {  // of a model without energies there are none
      return reference.has("atom_energies") ? reference[name].numbers<double>() : std::vector<double>();
    };
    const auto right_energies = rows("atom_energies"), right_forces = rows("forces"), right_virials = rows("atom_virials");
    for (size_t i = 0; i < right_energies.size(); ++i)
      energy.add(found_energies.at(i), right_energies[i], reference_energies.at(structure.types.at(i)));
    for (size_t i = 0; i < right_forces.size(); ++i) forces.add(found_forces.at(i), right_forces[i]);
    for (size_t i = 0; i < right_virials.size(); ++i) virials.add(found_virials.at(i), right_virials[i]);
    for (size_t n = 0; n < outputs.size(); ++n) {
      const auto& found = outputs[n].derivative_of.empty() ? found_outputs : found_derivatives;
      const size_t width = found.size() / std::max<size_t>(structure.types.size(), 1);
      const auto right_rows = reference[outputs[n].name].numbers<double>();
      const auto first = size_t(outputs[n].first), own = size_t(outputs[n].width);
      for (size_t i = 0; i < right_rows.size(); ++i)
        all[3 + n].add(found.at(i / own * width + first + i % own), right_rows[i]);
    }
    ++num_structures;
  }
  right = num_structures > 0;
  for (const capsule::Comparison& one : all) right = right && one.deviation <= relative * one.scale;
  std::string found = std::to_string(num_structures) + " reference structures, energies off by " +
                      short_text(energy.deviation) + " eV/atom, forces by " + short_text(forces.deviation) +
                      " eV/A, virials by " + short_text(virials.deviation) + " eV";
  for (size_t n = 0; n < outputs.size(); ++n)
    found += ", " + outputs[n].name + " by " + short_text(all[3 + n].deviation) + (outputs[n].unit.empty() ? "" : " ") +
             outputs[n].unit;
  return found;
}

}  // namespace equipot
