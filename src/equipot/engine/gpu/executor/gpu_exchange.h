// Rows that cross the borders of a domain, for a model that passes messages. They leave and come beside the work of the device, which
// goes on with what needs none of them: between `begin_...` and `end_...` nothing may touch the rows of ghosts.
#pragma once

#include <vector>

#include "gpu_step.h"

namespace equipot {

// The first atoms by whether an edge leads to a ghost: those of which none does come first.
class GpuAtomOrder {
 public:
  void set(GpuModel& model, const std::vector<bool>& at_border);
  GpuInnerFirst get() const { return {static_cast<const long long*>(atoms_.get()), num_inner_}; }

 private:
  GpuMemory::Buffer atoms_;
  int64_t num_inner_ = 0;
};

class GpuExchange {
 public:
  explicit GpuExchange(GpuModel& model) : model_(model) {}
  ~GpuExchange();
  GpuExchange(const GpuExchange&) = delete;

  // While it lives, rows are exchanged by `exchange`; null: none are.
  class Use {
   public:
    Use(GpuExchange& of, GhostExchange* exchange) : of_(of) { of_.begin(exchange); }
    ~Use() { of_.end(); }
    Use(const Use&) = delete;

   private:
    GpuExchange& of_;
  };
  bool exists() const { return exchange_ != nullptr; }
  bool is_under_way() const { return under_way_; }

  // The ghosts' rows of x come from their owners.
  void begin_forward(const GpuContext& c, const GpuArray& x);
  void end_forward(const GpuContext& c, const GpuArray& x);
  // The ghosts' rows of a gradient are added to those of their owners.
  void begin_backward(const GpuContext& c, const GpuArray& gradient);
  void end_backward(const GpuContext& c, const GpuArray& gradient);

 private:
  // Memory of the host that stays.
  struct Staged {
    void* memory = nullptr;
    size_t size = 0;
  };
  char* staged(Staged& room, int64_t bytes);
  void begin(GhostExchange* exchange);
  void end() noexcept;

  GpuModel& model_;
  GhostExchange* exchange_ = nullptr;
  std::vector<long long> sent_;
  GpuMemory::Buffer sent_rows_;  // the same on the device
  GpuMemory::Buffer owners_, copies_, first_copy_;  // each atom once, and which of sent_ are its own
  int64_t num_owners_ = 0;
  GpuArray rows_;  // of sent_, under way
  Staged rows_on_host_, ghosts_on_host_;
  bool under_way_ = false;
};

}  // namespace equipot
