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
  std::string derivative_of;  // by positions; empty: it has rows itself
  double factor = 1;  // of that
  std::string total, charges;  // see equipot_output; empty: none
  int64_t first = 0, width = 1;  // of its numbers in an atom's row of outputs, or of derivatives
};

// Throws std::runtime_error for a shape that is none.
inline std::vector<OutputFacts> output_facts(const Json& program) {
  std::vector<OutputFacts> found;
  if (!program.has("outputs")) return found;
  int64_t first = 0, first_derivative = 0;
  for (const Json& value : program["outputs"]["values"].items) {
    OutputFacts facts{value["name"].text, value["unit"].text, value["shape"].numbers<int64_t>(),
                      value["per_atom"].number != 0, value["mean"].number != 0, value["positive"].number != 0, "", 1, "", "", first, 1};
    for (const int64_t size : facts.shape) facts.width *= size > 0 && facts.width < 1 << 24 ? size : 0;
    if (facts.width < 1) throw std::runtime_error("the shape of its output '" + facts.name + "' is damaged");
    if (value.has("total")) facts.total = value["total"].text;
    if (value.has("charges")) facts.charges = value["charges"].text;
    if (value.has("derivative_of")) {
      facts.derivative_of = value["derivative_of"].text, facts.factor = value["factor"].number;
      facts.first = first_derivative;
      if (facts.width != 9) throw std::runtime_error("its derivative '" + facts.name + "' is no matrix");
    }
    (facts.derivative_of.empty() ? first : first_derivative) += facts.width;
    found.push_back(std::move(facts));
  }
  return found;
}

}  // namespace equipot
