// What one evaluation works on: atoms, edges, the arrays between the steps of a program, and their gradients.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "aligned.h"
#include "edges.h"
#include "ghost_exchange.h"
#include "threads.h"

namespace equipot::inline EQUIPOT_INSTRUCTIONS {

// Memory that goes from one array to the next, and to the next evaluation.
template <class T>
class Pool {
 public:
  struct Free {
    void operator()(T* numbers) const { Aligned<T>().deallocate(numbers, 0); }
  };
  struct Buffer {
    std::unique_ptr<T[], Free> numbers;
    int64_t capacity = 0;
  };

  Buffer take(int64_t count) {
    // The smallest that is large enough.
    size_t best = free_.size();
    for (size_t n = 0; n < free_.size(); ++n)
      if (free_[n].capacity >= count && (best == free_.size() || free_[n].capacity < free_[best].capacity)) best = n;
    if (best == free_.size() || free_[best].capacity > 2 * count + 4096) {
      make_room(count * int64_t(sizeof(T)));
      return {std::unique_ptr<T[], Free>(Aligned<T>().allocate(size_t(std::max<int64_t>(count, 1)))), count};
    }
    std::swap(free_[best], free_.back());
    Buffer found = std::move(free_.back());
    free_.pop_back();
    return found;
  }

  void give(Buffer buffer) {
    if (buffer.numbers) free_.push_back(std::move(buffer));
  }

  // A large array takes the place of unused ones, which go.
  void make_room(int64_t bytes) {
    constexpr int64_t large = 1 << 27;
    for (int64_t left = bytes; bytes > large && left > 0 && !free_.empty(); free_.pop_back())
      left -= free_.back().capacity * int64_t(sizeof(T));
  }

  // Between evaluations: what has not fitted for a while goes.
  void trim(size_t most) {
    while (free_.size() > most) free_.erase(free_.begin());
  }

 private:
  std::vector<Buffer> free_;
};

// Rows of `width` numbers, one for each atom or edge.
template <class T>
struct Array {
  typename Pool<T>::Buffer buffer;
  int64_t rows = 0, width = 0;

  bool exists() const { return buffer.numbers != nullptr; }
  T* data() const { return buffer.numbers.get(); }
  T* operator[](int64_t row) const { return buffer.numbers.get() + row * width; }
  int64_t size() const { return rows * width; }
};

template <class T>
struct Context {
  int64_t num_atoms = 0;
  int64_t num_computed = 0;  // atoms, the first ones, of which rows of features are computed
  int64_t num_edges = 0;
  const int64_t* types = nullptr;  // (num_atoms)
  const int64_t* center = nullptr;  // (num_edges), ascending
  const int64_t* neighbor = nullptr;  // (num_edges)
  const int64_t* neighbor_type = nullptr;  // (num_edges), for strictly local models
  const int64_t* first_edge = nullptr;  // (num_atoms + 1) of each center
  const EdgeGroups* by_neighbor = nullptr;  // edges of computed centers; for message passing
  const EdgeGroups* by_type = nullptr;  // computed atoms, where there are several types
  const T* length = nullptr;  // (num_edges) Å
  const T* sh = nullptr;  // (num_edges, dim_sh)
  const double* edge_vec = nullptr;  // (num_edges, 3) Å; for moments
  T* grad_length = nullptr;  // both are added to
  T* grad_sh = nullptr;
  int64_t dim_sh = 0;
  GhostExchange* exchange = nullptr;
  Pool<T>* pool = nullptr;
  std::vector<Array<T>> values;  // of each array of the program
  std::vector<Array<T>> all_grads;  // the same for each moment
  Array<T>* grads = nullptr;  // of the moment at hand
  std::vector<std::vector<Array<T>>> kept;  // of each step, for its way back

  Array<T> make(int64_t rows, int64_t width) const { return {pool->take(rows * width), rows, width}; }

  void release(Array<T>& array) const {
    pool->give(std::move(array.buffer));
    array = {};
  }

  // What is differentiated: 0 is the energy; for the heat flux there are 1 + a, sum_k (r_k - r_i)^a U_k over all atoms
  // k, with i the atom whose row it is differentiated by, or the center of the edge; behind these, sums of outputs.
  int num_moments = 1, num_about_center = 0, moment = 0;

  bool is_about_center() const { return 0 < moment && moment <= num_about_center; }

  void select(int next) {
    grads = all_grads.data() + next * int64_t(values.size());
    grad_length += (next - moment) * num_edges, grad_sh += (next - moment) * num_edges * dim_sh;
    moment = next;
  }

  // The gradient by an array, zero when it is first asked for.
  Array<T>& grad(int array) {
    Array<T>& found = grads[array];
    if (!found.exists()) {
      found = make(values_rows[array], values_width[array]);
      std::fill_n(found.data(), found.size(), T(0));
    }
    return found;
  }

  // An array's place; its shape is remembered when the array itself is gone.
  Array<T>& put(int array, Array<T> value) {
    values_rows[array] = value.rows, values_width[array] = value.width;
    return values[array] = std::move(value);
  }

  std::vector<int64_t> values_rows, values_width;
};

// Calls work(first, count) for `step` of the rows at a time, from several threads if they are many.
template <class F>
void for_rows(int64_t rows, int64_t step, const F& work) {
  Threads::pool().run((rows + step - 1) / step, [&](int64_t block, int) {
    const int64_t first = block * step;
    work(first, std::min(step, rows - first));
  });
}

constexpr int64_t rows_at_once = 48;  // a multiple of the tiles in matmul.h; what lies between steps stays in a cache

}  // namespace equipot
