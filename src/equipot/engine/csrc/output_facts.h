// What a program says of each output beside the energy; see equipot/quantities.py.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "json.h"

namespace equipot {

struct OutputFacts {
  std::string name, unit;
  std::vector<int64_t> shape;  // of one value
  bool per_atom = false, mean = false, positive = false;
  int64_t first = 0, width = 1;  // of its numbers, among those of all outputs of an atom
};

// Throws std::runtime_error for a shape that is none.
inline std::vector<OutputFacts> output_facts(const Json& program) {
  std::vector<OutputFacts> found;
  if (!program.has("outputs")) return found;
  int64_t first = 0;
  for (const Json& value : program["outputs"]["values"].items) {
    OutputFacts facts{value["name"].text, value["unit"].text, value["shape"].numbers<int64_t>(),
                      value["per_atom"].number != 0, value["mean"].number != 0, value["positive"].number != 0, first, 1};
    for (const int64_t size : facts.shape) facts.width *= size > 0 && facts.width < 1 << 24 ? size : 0;
    if (facts.width < 1) throw std::runtime_error("the shape of its output '" + facts.name + "' is damaged");
    first += facts.width;
    found.push_back(std::move(facts));
  }
  return found;
}

}  // namespace equipot
