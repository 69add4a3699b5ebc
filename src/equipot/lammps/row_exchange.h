// Messages between ranks: rows go straight from an atom's owner to the ranks that have it as a ghost. Knows MPI and no LAMMPS.
#pragma once

#include <mpi.h>

#include <compare>
#include <cstdint>
#include <vector>

#include "ghost_exchange.h"

namespace equipot {

// Where an atom is at home: a rank, and its row there; -1: it is none of the model's.
struct Home {
  int rank = 0;
  int64_t row = -1;
  auto operator<=>(const Home &) const = default;
};

// Whether the MPI of this process says that it takes addresses of an NVIDIA GPU's memory.
bool mpi_takes_gpu_memory();

class RowExchange : public GhostExchange {
 public:
  explicit RowExchange(MPI_Comm world) : world_(world) {}

  // `ghosts`, in ascending order, are all of this rank's, none of which is at home here.
  void set(int64_t num_owned, std::vector<Home> ghosts);
  // By all ranks together, before rows are exchanged; again after `set`.
  void connect();

  void let_gpu(bool aware) { is_gpu_aware_ = aware; }
  int64_t num_owned() const override { return num_owned_; }
  std::span<const int64_t> sent() const override { return sent_; }
  bool is_gpu_aware() const override { return is_gpu_aware_; }
  void to_ghosts(const void *rows, void *ghosts, int64_t row_bytes) override;
  void to_owners(const void *ghosts, void *rows, int64_t row_bytes) override;

  // Of `rows` (atoms, width), the ghosts' are added to those of their owners; the ghosts' stay as they are. Connects.
  void add_to_owners(double *rows, int64_t width);

  double seconds = 0;    // spent in messages

 private:
  // Consecutive rows.
  struct Range {
    int64_t first, number;
  };
  struct Neighbor {
    int rank;
    Range sent, ghosts;
  };

  // The rows `out` to each neighbor, the rows `in` from it.
  void move(const void *from, Range Neighbor::*out, void *to, Range Neighbor::*in, int64_t row_bytes);

  MPI_Comm world_;
  bool is_gpu_aware_ = false;
  int64_t num_owned_ = 0;
  std::vector<Home> ghosts_;
  bool connected_ = false;
  std::vector<int64_t> sent_;
  std::vector<Neighbor> neighbors_;
};

}  // namespace equipot
