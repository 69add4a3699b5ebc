#include "row_exchange.h"

#include <dlfcn.h>

#include <algorithm>
#include <utility>

namespace equipot {
namespace {

constexpr int tag = 7431;
constexpr int64_t longest = 1 << 30;    // bytes of a message, which MPI counts in 32 bits

// Adds its lifetime to a sum of seconds.
struct Stopwatch {
  double &sum, begin = MPI_Wtime();
  ~Stopwatch() { sum += MPI_Wtime() - begin; }
};

}    // namespace

// Open MPI and its kin answer the first question, MPICH and its kin the second. Asked of the library that MPI is in.
bool mpi_takes_gpu_memory()
{
  Dl_info here;
  if (dladdr(reinterpret_cast<void *>(&MPI_Allreduce), &here) == 0) return false;
  void *const mpi = dlopen(here.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  if (mpi == nullptr) return false;
  int answer = 0;
  if (const auto ask = reinterpret_cast<int (*)()>(dlsym(mpi, "MPIX_Query_cuda_support"))) answer = ask();
  else if (const auto ask = reinterpret_cast<int (*)(int, int *)>(dlsym(mpi, "MPIX_GPU_query_support"))) {
    constexpr int of_cuda = 0;
    if (ask(of_cuda, &answer) != MPI_SUCCESS) answer = 0;
  }
  dlclose(mpi);
  return answer != 0;
}

void RowExchange::set(int64_t num_owned, std::vector<Home> ghosts)
{
  num_owned_ = num_owned, ghosts_ = std::move(ghosts), connected_ = false;
}

void RowExchange::connect()
{
  if (connected_) return;
  int size = 0;
  MPI_Comm_size(world_, &size);
  std::vector<int> wanted(size, 0), asked(size, 0);
  std::vector<int64_t> rows;
  for (const Home &home : ghosts_) ++wanted[home.rank], rows.push_back(home.row);
  {
    const Stopwatch watch{seconds};
    MPI_Alltoall(wanted.data(), 1, MPI_INT, asked.data(), 1, MPI_INT, world_);
  }
  neighbors_.clear();
  int64_t num_sent = 0, num_ghosts = 0;
  for (int rank = 0; rank < size; ++rank) {
    if (wanted[rank] == 0 && asked[rank] == 0) continue;
    neighbors_.push_back({rank, {num_sent, asked[rank]}, {num_ghosts, wanted[rank]}});
    num_sent += asked[rank], num_ghosts += wanted[rank];
  }
  sent_.resize(num_sent);
  to_owners(rows.data(), sent_.data(), sizeof(int64_t));
  connected_ = true;
}

void RowExchange::to_ghosts(const void *rows, void *ghosts, int64_t row_bytes)
{
  move(rows, &Neighbor::sent, ghosts, &Neighbor::ghosts, row_bytes);
}

void RowExchange::to_owners(const void *ghosts, void *rows, int64_t row_bytes)
{
  move(ghosts, &Neighbor::ghosts, rows, &Neighbor::sent, row_bytes);
}

void RowExchange::move(const void *from, Range Neighbor::*out, void *to, Range Neighbor::*in, int64_t row_bytes)
{
  const Stopwatch watch{seconds};
  std::vector<MPI_Request> requests;
  // Calls work(first byte, bytes) for the messages that these rows take.
  const auto for_messages = [&](const Range &rows, const auto &work) {
    const int64_t end = (rows.first + rows.number) * row_bytes;
    for (int64_t at = rows.first * row_bytes; at < end; at += longest) work(at, static_cast<int>(std::min(end - at, longest)));
  };
  for (const Neighbor &n : neighbors_)
    for_messages(n.*in, [&](int64_t at, int bytes) {
      MPI_Irecv(static_cast<char *>(to) + at, bytes, MPI_BYTE, n.rank, tag, world_, &requests.emplace_back());
    });
  for (const Neighbor &n : neighbors_)
    for_messages(n.*out, [&](int64_t at, int bytes) {
      MPI_Isend(static_cast<const char *>(from) + at, bytes, MPI_BYTE, n.rank, tag, world_, &requests.emplace_back());
    });
  MPI_Waitall(static_cast<int>(requests.size()), requests.data(), MPI_STATUSES_IGNORE);
}

void RowExchange::add_to_owners(double *rows, int64_t width)
{
  connect();
  std::vector<double> copies(sent_.size() * width);
  to_owners(rows + num_owned_ * width, copies.data(), width * static_cast<int64_t>(sizeof(double)));
  for (size_t n = 0; n < sent_.size(); ++n)
    for (int64_t k = 0; k < width; ++k) rows[sent_[n] * width + k] += copies[n * width + k];
}

}  // namespace equipot
