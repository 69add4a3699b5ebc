#include "ensemble.h"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <filesystem>
#include <map>
#include <stdexcept>

namespace equipot {
namespace {

// The files of a folder in their order, with the messages of deploy/ensemble.py; a file stands for itself.
std::vector<std::string> find_members(const std::string& path) {
  std::error_code unknown;
  if (!std::filesystem::is_directory(path, unknown)) return {path};
  std::map<int, std::string> found;
  std::string names;
  for (const auto& entry : std::filesystem::directory_iterator(path, unknown)) {
    const std::string name = entry.path().filename().string();
    int index = 0, length = 0;
    if (std::sscanf(name.c_str(), "member_%9d%n", &index, &length) == 1 && std::isdigit(name[7]) &&
        (name.substr(length).empty() || name.substr(length) == ".pt"))
      found[index] = name;
  }
  if (found.empty()) return {path};
  std::vector<std::string> files;
  for (const auto& [index, name] : found) {
    names += (names.empty() ? "" : ", ") + name;
    files.push_back((std::filesystem::path(path) / name).string());
  }
  if (files.size() == 1) throw std::runtime_error("'" + path + "' holds one member only: an ensemble has two at least.");
  for (int index = 0; index < found.rbegin()->first; ++index)
    if (!found.count(index))
      throw std::runtime_error("'" + path + "' holds " + names + ", but no member_" + std::to_string(index) +
                               ": it is not the whole ensemble.");
  return files;
}

std::string named(const std::string& file, const ModelFacts& facts) {
  std::string text = file + " (";
  for (const auto& symbol : facts.species) text += symbol + " ";
  char length[32];
  std::snprintf(length, sizeof length, "%g A)", facts.cutoff);
  text.back() = ',';
  return text + " " + length;
}

}  // namespace

Ensemble::Ensemble(const std::vector<std::string>& paths, const std::string& device)
    : files_(paths.size() == 1 ? find_members(paths[0]) : paths) {
  std::error_code unknown;
  for (const auto& file : files_)
    if (paths.size() > 1 && std::filesystem::is_directory(file, unknown))
      throw std::runtime_error("'" + file + "' is a folder: expected one folder of an ensemble alone, or files.");
  for (const auto& file : files_) members_.push_back(open_model(file, device));
  const ModelFacts& first = members_[0]->facts();
  outputs_ = first.outputs;
  for (size_t m = 1; m < members_.size(); ++m) {
    const ModelFacts& other = members_[m]->facts();
    if (other.species != first.species || other.cutoff != first.cutoff)
      throw std::runtime_error("Species and cutoff of an ensemble's members must be the same, but those of " +
                               named(files_[m], other) + " are not those of " + named(files_[0], first) + ".");
    if (other.outputs != outputs_) outputs_.clear();
  }
}

int Ensemble::num_exchanges() const {
  int most = 0;
  for (const auto& member : members_) most = std::max(most, member->facts().num_exchanges);
  return most;
}

std::vector<double> Ensemble::shortest_distances() const {
  std::vector<double> shortest;
  for (const auto& member : members_) {
    const auto& seen = member->facts().shortest_distances;
    if (shortest.empty()) shortest = seen;
    for (size_t pair = 0; pair < seen.size(); ++pair) shortest[pair] = std::min(shortest[pair], seen[pair]);
  }
  return shortest;
}

// That of a single file; of several, FNV-1a.
uint64_t Ensemble::checksum() const {
  if (is_single()) return members_[0]->facts().checksum;
  uint64_t hash = 14695981039346656037u;
  for (const auto& member : members_) hash = (hash ^ member->facts().checksum) * 1099511628211u;
  return hash;
}

Evaluation Ensemble::evaluate(const Neighborhood& neighborhood, GhostExchange* exchange, Wanted wanted) {
  if (is_single()) return members_[0]->evaluate(neighborhood, exchange, wanted);
  const size_t num_atoms = neighborhood.num_atoms(), num_members = members_.size();
  member_forces_.resize(num_members), member_virials_.resize(num_members);
  Evaluation mean;
  // Adds a member's rows to what there is of them already, in `sums`.
  const auto add = [&](size_t member, const double* rows, int64_t width, std::vector<double>& sums, const double*& where) {
    if (rows == nullptr) return;
    if (member == 0) sums.assign(width * std::max<size_t>(num_atoms, 1), 0.0);
    for (size_t n = 0; n < width * num_atoms; ++n) sums[n] += rows[n] / static_cast<double>(num_members);
    where = sums.data();
  };
  for (size_t m = 0; m < num_members; ++m) {
    const Evaluation found = members_[m]->evaluate(neighborhood, exchange, wanted);
    member_forces_[m].assign(found.forces, found.forces + 3 * num_atoms);
    member_virials_[m] = found.virial;
    mean.energy += found.energy / static_cast<double>(num_members);
    for (size_t k = 0; k < 9; ++k) mean.virial[k] += found.virial[k] / static_cast<double>(num_members);
    mean.closer = mean.closer || found.closer;
    add(m, found.forces, 3, forces_, mean.forces);
    add(m, found.atom_energies, 1, energies_, mean.atom_energies);
    add(m, found.atom_virials, 9, virials_, mean.atom_virials);
    add(m, found.atom_heat_virials, 9, heat_virials_, mean.atom_heat_virials);
    add(m, found.outputs, output_width(), values_, mean.outputs);
    add(m, found.derivatives, derivative_width(), derivatives_, mean.derivatives);
  }
  return mean;
}

}  // namespace equipot
