// A step of a program: it makes one array of others, and their gradients of that array's.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "context.h"
#include "program.h"

namespace equipot::inline EQUIPOT_INSTRUCTIONS {

struct Shape {
  bool of_atoms = true;  // a row for each atom; otherwise for each edge
  int64_t width = 0;  // 0: the inputs do not fit
  bool complete = false;  // atoms: rows of those that other domains own, too
};

template <class T>
struct Step {
  int number = 0;  // in the program
  int output = 0;
  std::vector<int> inputs;
  bool differentiable = true;  // the output depends on the geometry

  virtual ~Step() = default;
  virtual Shape shape(const std::vector<Shape>& in) const = 0;  // of the output
  virtual std::vector<int> takes() const { return {}; }  // inputs that are gone afterwards
  virtual std::vector<int> read_back() const { return {}; }  // arrays whose values backward reads
  virtual void forward(Context<T>& c) const = 0;
  virtual void backward(Context<T>& c) const = 0;  // adds to the gradients by inputs and geometry, for each moment in turn
};

// Reads the program's arrays by name while steps are made.
struct Reader {
  const Program& program;
  std::vector<std::string> names;  // of the arrays so far

  int find(const std::string& name) const {
    for (size_t n = 0; n < names.size(); ++n)
      if (names[n] == name) return int(n);
    throw std::runtime_error("a step reads '" + name + "', which no step before it makes");
  }

  int64_t integer(const Json& step, const char* key, int64_t least, int64_t most = 1 << 24) const {
    const double value = step[key].number;
    if (!step[key].is_number || value != double(int64_t(value)) || value < double(least) || value > double(most))
      throw std::runtime_error("'" + std::string(key) + "' of a step must be a whole number from " +
                               std::to_string(least) + " to " + std::to_string(most));
    return int64_t(value);
  }
};

}  // namespace equipot
