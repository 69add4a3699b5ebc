// Messages of pair_style equipot between ranks: rows of the model travel as whole numbers of doubles.
#include <cstring>

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "pair_equipot.h"

using namespace LAMMPS_NS;

void PairEquipot::set_message_size(int64_t bytes_per_row)
{
  bytes = bytes_per_row;
  const auto width = static_cast<int>((bytes + sizeof(double) - 1) / sizeof(double));
  if (width > comm_width)
    error->one(FLERR, "equipot: the model exchanges {} bytes per atom, more than it declares; deploy it again", bytes);
  comm_forward = comm_reverse = comm_reverse_off = width;
}

template <class T> void PairEquipot::copy_rows(T *rows, int64_t width)
{
  const double start = MPI_Wtime();
  exchanged_rows = reinterpret_cast<char *>(rows);
  set_message_size(width * sizeof(T));
  comm->forward_comm(this);
  time_in_exchange += MPI_Wtime() - start;
}

// A ghost of this rank may have been passed on to another rank as its ghost. What comes back from there is kept with
// the slot, which LAMMPS sends home later. Rows that several slots share go home once, with the first of them.
template <class T> void PairEquipot::add_rows(T *rows, int64_t width)
{
  const double start = MPI_Wtime();
  exchanged_rows = reinterpret_cast<char *>(rows);
  single_precision = sizeof(T) == sizeof(float);
  set_message_size(width * sizeof(T));
  slots.assign(row_of.size() * bytes, 0);
  for (int64_t row = neighborhood.num_owned; row < neighborhood.num_atoms(); ++row)
    std::memcpy(&slots[slot_of[row] * bytes], exchanged_rows + row * bytes, bytes);
  comm->reverse_comm(this);
  time_in_exchange += MPI_Wtime() - start;
}

int PairEquipot::pack_forward_comm(int n, int *slots_to_send, double *buffer, int, int *)
{
  for (int i = 0; i < n; ++i) {
    const int64_t row = row_of[slots_to_send[i]];
    char *to = reinterpret_cast<char *>(buffer + static_cast<int64_t>(i) * comm_forward);
    if (row >= 0)
      std::memcpy(to, exchanged_rows + row * bytes, bytes);
    else
      std::memset(to, 0, bytes);
  }
  return n * comm_forward;
}

void PairEquipot::unpack_forward_comm(int n, int first, double *buffer)
{
  for (int i = 0; i < n; ++i) {
    const int64_t row = row_of[first + i];
    if (row >= neighborhood.num_owned)
      std::memcpy(exchanged_rows + row * bytes, buffer + static_cast<int64_t>(i) * comm_forward, bytes);
  }
}

int PairEquipot::pack_reverse_comm(int n, int first, double *buffer)
{
  for (int i = 0; i < n; ++i)
    std::memcpy(buffer + static_cast<int64_t>(i) * comm_reverse, &slots[(first + i) * bytes], bytes);
  return n * comm_reverse;
}

void PairEquipot::unpack_reverse_comm(int n, int *receiving_slots, double *buffer)
{
  for (int i = 0; i < n; ++i) {
    const int slot = receiving_slots[i];
    const int64_t row = row_of[slot];
    if (row < 0) continue;
    char *to = slot < atom->nlocal ? exchanged_rows + row * bytes : &slots[slot * bytes];
    const double *from = buffer + static_cast<int64_t>(i) * comm_reverse;
    if (single_precision)
      add_row(reinterpret_cast<float *>(to), from);
    else
      add_row(reinterpret_cast<double *>(to), from);
  }
}

template <class T> void PairEquipot::add_row(T *to, const double *buffer) const
{
  const T *from = reinterpret_cast<const T *>(buffer);
  for (size_t k = 0; k < bytes / sizeof(T); ++k) to[k] += from[k];
}

template void PairEquipot::copy_rows(float *, int64_t);
template void PairEquipot::copy_rows(double *, int64_t);
template void PairEquipot::add_rows(float *, int64_t);
template void PairEquipot::add_rows(double *, int64_t);
