// What an MD code that cuts space into domains provides, so that message passing crosses their borders.
//
// Of the atoms of a domain, the owned ones come first; the ghosts behind them are owned by other domains. Rows of features are
// computed for owned atoms only. All domains call a function together; it moves bytes and knows nothing of what they mean.
#pragma once

#include <cstdint>
#include <span>

namespace equipot {

class GhostExchange {
 public:
  virtual int64_t num_owned() const = 0;
  // The owned atoms that other domains have as ghosts, once for each of these.
  virtual std::span<const int64_t> sent() const = 0;
  // Whether the rows may be in a GPU's memory.
  virtual bool is_gpu_aware() const = 0;
  // From `rows`, those of `sent()`, to the rows of all ghosts.
  virtual void to_ghosts(const void* rows, void* ghosts, int64_t row_bytes) = 0;
  // The other way: what belongs to the ghosts comes back to `rows`, where their owners add it up.
  virtual void to_owners(const void* ghosts, void* rows, int64_t row_bytes) = 0;

 protected:
  ~GhostExchange() = default;  // nobody owns one by this type
};

}  // namespace equipot
