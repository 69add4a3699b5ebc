// The passes of form.h over the edges of an evaluation, and the radial networks that give their weights.
#pragma once

#include <functional>

#include "gpu_arrays.h"
#include "gpu_step.h"
#include "message_passing.h"

namespace equipot {

// A perceptron at every edge: dense layers with SiLU between them.
class GpuPerceptron {
 public:
  GpuPerceptron(GpuModel& model, const Perceptron<double>& network);

  // What the first layer gives, before SiLU.
  GpuArray first(const GpuContext& c, const GpuArray& x) const;
  const std::vector<GpuLinearBothWays>& layers() const { return layers_; }
  // From what the first layer gives, before SiLU, on; `hidden` takes what each layer but the last gives, first there first.
  GpuArray forward_from_first(const GpuContext& c, std::vector<GpuArray>& hidden) const;
  // From the gradient by the result to that by what the first layer gives.
  GpuArray backward_to_first(const GpuContext& c, const std::vector<GpuArray>& hidden, GpuArray gradient) const;

 private:
  std::vector<GpuLinearBothWays> layers_;
  std::vector<int64_t> widths_;  // that each layer gives
};

class GpuBessel {
 public:
  GpuBessel(GpuModel& model, const Bessel<double>& basis);

  int64_t size() const { return size_; }
  GpuArray forward(const GpuContext& c) const;
  void backward(const GpuContext& c, const GpuArray& gradient) const;  // to c.geometry

 private:
  GpuRowArrays<void> arrays(const GpuContext& c) const;
  GpuMemory::Buffer frequencies_;
  GpuRowArrays<void> facts_{};
  int64_t size_;
};

// A table of paths. Edges lie in the order of their centers.
class GpuConvolution {
 public:
  GpuConvolution(GpuModel& model, const Plan<double>& plan, bool tabulated);

  int64_t dim_out() const { return plan_.dim_out; }

  struct Given {
    const void *x = nullptr, *w = nullptr;  // rows of atoms, weights of edges
    const void* table = nullptr;
    int64_t intervals = 0;
    double cutoff = 0;
  };
  // Calls ghosts_are_there() as late as it can: before what reads their rows of x.
  GpuArray send(const GpuContext& c, const Given& given, const std::function<void()>& ghosts_are_there) const;
  // From the gradient by the messages to those by x, which is overwritten, by w, and by the geometry, which are added. Calls
  // ghosts_are_done() as early as it can: when it has asked for their gradients by x.
  void receive(const GpuContext& c, const Given& given, const GpuArray& gradient, const GpuArray& by_x, void* by_w,
               const std::function<void()>& ghosts_are_done) const;

 private:
  const void* records(const GpuContext& c, const Given& given) const;
  GpuArrays<void> arrays_of(const GpuContext& c, const Given& given) const;
  // `items`, or those from the first on.
  struct Rows {
    const long long* items;
    int64_t first, number;
  };
  // With an exchange, if atoms are many, rows are taken in two turns; otherwise between() comes before all of them or behind.
  struct Turns {
    Rows first, last;
    std::function<void()> between;
    bool last_needs_it;  // or it needs the first
  };
  void run(const GpuContext& c, const GpuCompiled& pass, GpuArrays<void> arrays, void* GpuArrays<void>::*to,
           const GpuArray& rows, bool filled, const Turns& turns) const;

  Plan<double> plan_;
  GpuCompiled center_, neighbor_, make_records_;
  bool by_records_, fills_messages_, fills_x_;
};

}  // namespace equipot
