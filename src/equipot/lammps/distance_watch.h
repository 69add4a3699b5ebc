// Finds atoms that are closer than any two of their elements in the training set, once for each pair of elements; the
// rules are those of integrations/distances.py. Knows no MD code.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

namespace equipot {

class DistanceWatch {
 public:
  struct Edge {
    double squared;  // Å²
    int center, neighbor;  // as they were told; -1: none is below the limit
  };

  DistanceWatch() = default;

  // `shortest` (species, species) Å as in equipot.h: empty finds nothing.
  DistanceWatch(const std::vector<double>& shortest, size_t num_species, double cutoff) : num_species_(num_species) {
    for (const double distance : shortest) {
      // Rounding, of a file with eight digits too, must not make a training structure a new one.
      const double limit = std::min(distance, cutoff) * (1 - 1e-6);
      limits_.push_back({limit * limit, -1, -1});
    }
  }

  bool is_on() const { return !limits_.empty(); }

  // (species, species) Å, for a search by others.
  std::vector<double> limits() const {
    std::vector<double> found(limits_.size());
    for (size_t one = 0; one < num_species_ && is_on(); ++one)
      for (size_t other = one; other < num_species_; ++other)
        found[one * num_species_ + other] = found[other * num_species_ + one] =
            std::sqrt(limits_[one * num_species_ + other].squared);
    return found;
  }

  // A search: `begin`, `look` at every edge; then the closest edge below its limit, if there is one.
  void begin() { closest_ = limits_, found_ = false; }

  void look(size_t one, size_t other, double squared, int center, int neighbor) {
    if (closest_.empty()) return;
    Edge& closest = closest_[std::min(one, other) * num_species_ + std::max(one, other)];
    if (squared < closest.squared) closest = {squared, center, neighbor}, found_ = true;
  }

  bool found() const { return found_; }
  const Edge& closest(size_t one, size_t other) const { return closest_[one * num_species_ + other]; }  // one <= other

  // Finds this pair no more.
  void forget(size_t one, size_t other) { limits_[one * num_species_ + other].squared = 0; }

 private:
  size_t num_species_ = 0;
  std::vector<Edge> limits_, closest_;
  bool found_ = false;
};

}  // namespace equipot
