// An exchange whose ghosts are all images of the first owned atom; it says which thread has called it.
#include <cstdint>
#include <thread>

#include "ghost_exchange.h"

namespace {

class Images : public equipot::GhostExchange {
 public:
  int64_t owned = 0;
  std::thread::id thread;

  int64_t num_owned() const override { return owned; }
  void copy_to_ghosts(float* rows, int64_t atoms, int64_t width) override { copy(rows, atoms, width); }
  void copy_to_ghosts(double* rows, int64_t atoms, int64_t width) override { copy(rows, atoms, width); }
  void add_to_owners(float* rows, int64_t atoms, int64_t width) override { add(rows, atoms, width); }
  void add_to_owners(double* rows, int64_t atoms, int64_t width) override { add(rows, atoms, width); }

 private:
  template <class T>
  void copy(T* rows, int64_t atoms, int64_t width) {
    thread = std::this_thread::get_id();
    for (int64_t n = owned * width; n < atoms * width; ++n) rows[n] = rows[n % width];
  }
  template <class T>
  void add(T* rows, int64_t atoms, int64_t width) {
    thread = std::this_thread::get_id();
    for (int64_t n = owned * width; n < atoms * width; ++n) rows[n % width] += rows[n];
  }
};

}  // namespace

extern "C" equipot::GhostExchange* images(int64_t num_owned) {
  Images* exchange = new Images;
  exchange->owned = num_owned;
  return exchange;
}

extern "C" bool called_by_this_thread(const Images* exchange) { return exchange->thread == std::this_thread::get_id(); }
