// The shortest distances of a model's training set, as its file has them: {"H-O": 0.95, ...} in Å.
#pragma once

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "json.h"

namespace equipot {

// (species, species) Å, infinite for a pair that the training set does not have; empty where nothing is known of any.
// Throws std::runtime_error if the text is not JSON.
inline std::vector<double> shortest_distances(const std::string& text, const std::vector<std::string>& species) {
  const Json known = Json::parse(text.empty() ? "{}" : text);
  std::vector<double> table;
  if (known.members.empty()) return table;
  for (const auto& one : species)
    for (const auto& other : species) {
      const auto found = known.members.find(std::min(one, other) + "-" + std::max(one, other));
      table.push_back(found == known.members.end() ? std::numeric_limits<double>::infinity() : found->second.number);
    }
  return table;
}

}  // namespace equipot
