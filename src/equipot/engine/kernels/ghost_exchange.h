// What an MD code that cuts space into domains provides, so that message passing crosses their borders.
//
// Of the atoms of a domain, the owned ones come first; the ghosts behind them are owned by other domains. Rows of
// features are computed for owned atoms only: `copy_to_ghosts` fetches the others, `add_to_owners` is its transpose.
#pragma once

#include <cstdint>

namespace equipot {

class GhostExchange {
 public:
  virtual int64_t num_owned() const = 0;
  // (atoms, width) row-major, float or double: the rows of the ghosts are overwritten with those of their owners.
  virtual void copy_to_ghosts(float* rows, int64_t num_atoms, int64_t width) = 0;
  virtual void copy_to_ghosts(double* rows, int64_t num_atoms, int64_t width) = 0;
  // The rows of the ghosts are added to those of their owners; the ghosts' rows are left as they were.
  virtual void add_to_owners(float* rows, int64_t num_atoms, int64_t width) = 0;
  virtual void add_to_owners(double* rows, int64_t num_atoms, int64_t width) = 0;

 protected:
  ~GhostExchange() = default;  // nobody owns one by this type
};

}  // namespace equipot
