// A step of a program on a GPU, and what one evaluation works on there. As step.h and context.h, which have more to check:
// a program comes here only after the engine for the CPU has read it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "evaluator.h"
#include "gpu_code.h"
#include "gpu_memory.h"
#include "gpu_rows.h"
#include "step.h"

namespace equipot {

// Rows of `width` numbers, one for each atom or edge.
struct GpuArray {
  GpuMemory::Buffer buffer;
  int64_t rows = 0, width = 0;

  bool exists() const { return buffer.get() != nullptr; }
  void* data() const { return buffer.get(); }
  int64_t size() const { return rows * width; }
};

// A gradient: it is added to if something has been written there already, otherwise it is overwritten.
struct GpuTarget {
  GpuArray& array;
  bool add;
};

struct GpuCompiled {
  void* function = nullptr;
  GpuCode code;
};

// What belongs to a model: memory, kernels, weights.
class GpuModel {
 public:
  GpuModel(GpuDevice& device, bool single, int64_t num_types);

  GpuDevice& device() { return device_; }
  GpuMemory& memory() { return memory_; }
  bool single() const { return single_; }
  int64_t num_types() const { return num_types_; }
  size_t number_size() const { return single_ ? sizeof(float) : sizeof(double); }
  template <class Address>
  Address offset(Address from, int64_t numbers) const {  // on the device
    return (Address)((const char*)from + numbers * int64_t(number_size()));
  }

  // One of the kernels in gpu_rows.h.
  void* rows(const char* name);
  GpuCompiled compile(GpuCode code);
  // Weights in the network's precision.
  GpuMemory::Buffer keep(const std::vector<double>& numbers);

 private:
  GpuDevice& device_;
  GpuMemory memory_;
  bool single_;
  int64_t num_types_;
  std::string code_;
  std::map<std::string, void*> kernels_;
};

class GpuExchange;

// The computed atoms, on the device: first those of which no edge leads to a ghost.
struct GpuInnerFirst {
  const long long* atoms = nullptr;
  int64_t num_inner = 0;
};

// Addresses are the device's.
struct GpuContext {
  GpuModel& model;
  int64_t num_atoms = 0, num_computed = 0, num_edges = 0, dim_sh = 0, num_types = 0;
  const long long *types = nullptr, *center = nullptr, *neighbor = nullptr;  // of atoms, of edges
  const long long* neighbor_types = nullptr;  // what `neighbor` counts in: the same, or, in a part of the atoms, those of all
  const long long *first_edge = nullptr;  // (num_atoms + 1) of each center
  const long long *order = nullptr, *start = nullptr;  // edges by neighbor
  GpuMemory::Buffer own_center, own_first_edge;  // of a part
  const long long* counting = nullptr;  // 0, 1, 2, ...: edges by center
  const long long* by_type = nullptr;  // computed atoms by type, each type's padded with -1 to whole tiles
  int64_t padded = 0;  // their number
  void *length = nullptr, *sh = nullptr;  // (num_edges), (num_edges, dim_sh)
  void* geometry = nullptr;  // (num_edges, dim_sh + 1) the gradient by harmonics and distance, which is added to
  GpuExchange* exchange = nullptr;  // null: none
  GpuInnerFirst inner_first;  // with an exchange
  int coming = -1;  // the array whose ghosts' rows are on their way
  mutable std::map<std::pair<int64_t, double>, GpuArray> records;  // of edges (gpu_code.h), by intervals and cutoff
  std::vector<GpuArray> values, grads;
  std::vector<std::vector<GpuArray>> kept;  // of each step, for its way back
  std::vector<int64_t> values_rows, values_width;

  GpuArray make(int64_t rows, int64_t width, int64_t room = 0) const {
    return {model.memory().take(size_t(std::max(rows, room) * width) * model.number_size()), rows, width};
  }

  GpuArray& put(int array, GpuArray value) {
    values_rows[size_t(array)] = value.rows, values_width[size_t(array)] = value.width;
    return values[size_t(array)] = std::move(value);
  }

  GpuArray& value(int array) { return values[size_t(array)]; }
  void arrive();  // what is coming; whatever is asked for afterwards may read it
  GpuArray& gradient(int array) { return grads[size_t(array)]; }

  // The gradient by an array, of which the first `rows` rows are going to be written, all of them.
  GpuTarget target(int array, int64_t rows);
  void zero(const GpuArray& array) const;

  // A kernel with a thread for each number of `rows` rows of `width`.
  void run(const char* name, GpuRowArrays<void> arrays, int64_t rows, int64_t width) const;
  // One with a warp for each row.
  void run_warps(const char* name, GpuRowArrays<void> arrays, int64_t rows, int64_t width) const;
  template <class Arrays>
  void launch(const GpuCompiled& kernel, int64_t blocks, Arrays& arrays, int64_t parts = 1) const {
    if (blocks == 0) return;
    model.device().launch(kernel.function, {blocks, kernel.code.blocks_y, kernel.code.blocks_z * parts}, kernel.code.threads,
                          &arrays);
  }
};

struct GpuStep {
  int number = 0;  // in the program
  int output = 0;
  std::vector<int> inputs;
  bool differentiable = true;
  bool sends_home = false;  // its first input comes from an exchange, and the gradient by that is complete after this step

  virtual ~GpuStep() = default;
  virtual std::vector<int> read_back() const { return {}; }  // arrays whose values backward reads
  virtual bool works_beside_exchange() const { return false; }  // of its first input: it waits for ghosts' rows where it needs them
  virtual void forward(GpuContext& c) const = 0;
  virtual void backward(GpuContext& c) const = 0;
};

// What steps are made from.
struct GpuReader : Reader {
  GpuModel& model;
  int64_t num_types, dim_sh;

  std::vector<double> values(const std::string& name) const { return program.values<double>(name); }
};

// With which column the second array begins, if there is one.
struct GpuSplit {
  int64_t x = INT64_MAX, y = INT64_MAX;
};

// A linear map of rows as they lie, with weights on the device, and its transpose.
class GpuLinear {
 public:
  GpuLinear(GpuModel& model, const LinearMap& map, const std::vector<double>& weights, int64_t sets = 1,
            const std::vector<double>& bias = {}, GpuSplit split = {});

  // `by_type`: of the computed atoms; the others as in GpuLinearArrays.
  struct How {
    bool add = false, by_type = false, activate = false;
    const void *slope_at = nullptr, *type_rows = nullptr;
    const GpuArray* second_x = nullptr;
    const GpuTarget* second_y = nullptr;
  };
  // y (rows) = map(x), or added to it. Rows of x and y may be longer than the map's.
  void apply(const GpuContext& c, int64_t rows, const GpuArray& x, const GpuArray& y, const How& how) const;

 private:
  GpuMemory::Buffer items_, sources_, weights_, bias_;
  int64_t num_items_ = 0, set_ = 0, biased_ = 0;
};

struct GpuLinearBothWays {
  GpuLinear forth, back;

  GpuLinearBothWays(GpuModel& model, const LinearMap& map, const std::vector<double>& weights, int64_t sets = 1,
                    const std::vector<double>& bias = {}, int64_t second_x = INT64_MAX)
      : forth(model, map, weights, sets, bias, {.x = second_x}),
        back(model, transposed(map), transposed_weights(map, weights.data(), sets), sets, {}, {.y = second_x}) {}
};

// Null for a step that only others know.
std::unique_ptr<GpuStep> make_message_passing(const GpuReader& reader, const Json& json);
std::unique_ptr<GpuStep> make_strictly_local(const GpuReader& reader, const Json& json);

}  // namespace equipot
