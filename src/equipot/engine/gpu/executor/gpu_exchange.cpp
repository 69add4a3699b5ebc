#include "gpu_exchange.h"

#include <algorithm>
#include <utility>

#include "edges.h"

namespace equipot {
namespace {

int64_t row_bytes(const GpuArray& x, const GpuModel& model) { return x.width * int64_t(model.number_size()); }

int64_t num_ghosts(const GpuContext& c) { return c.num_atoms - c.num_computed; }

void* ghosts_of(const GpuContext& c, const GpuArray& x) {
  return c.model.offset(x.data(), c.num_computed * x.width);
}

}  // namespace

void GpuAtomOrder::set(GpuModel& model, const std::vector<bool>& at_border) {
  std::vector<long long> atoms;
  for (const bool border : {false, true}) {
    num_inner_ = border ? int64_t(atoms.size()) : 0;
    for (size_t i = 0; i < at_border.size(); ++i)
      if (at_border[i] == border) atoms.push_back(int64_t(i));
  }
  atoms_ = model.memory().keep(atoms);
}

GpuExchange::~GpuExchange() {
  for (const Staged& room : {rows_on_host_, ghosts_on_host_})
    if (room.memory != nullptr) model_.device().free_host(room.memory);
}

// After an error copies may still be under way.
void GpuExchange::end() noexcept {
  try {
    if (std::exchange(under_way_, false)) model_.device().synchronize_aside();
  } catch (const std::exception&) {  // of a device that has failed
  }
  rows_ = {}, exchange_ = nullptr;
}

void GpuExchange::begin(GhostExchange* exchange) {
  exchange_ = exchange;
  if (exchange == nullptr) return;
  const auto sent = exchange->sent();
  if (sent_rows_.get() != nullptr && std::equal(sent.begin(), sent.end(), sent_.begin(), sent_.end())) return;
  sent_rows_ = {};  // unless all of it works
  sent_.assign(sent.begin(), sent.end());
  const EdgeGroups groups = group_edges(sent.data(), int64_t(sent.size()), exchange->num_owned());
  std::vector<long long> owners, first{0};
  for (int64_t i = 0; i < exchange->num_owned(); ++i)
    if (groups.start[size_t(i) + 1] > groups.start[size_t(i)])
      owners.push_back(i), first.push_back(groups.start[size_t(i) + 1]);
  num_owners_ = int64_t(owners.size());
  GpuMemory& memory = model_.memory();
  owners_ = memory.keep(owners), first_copy_ = memory.keep(first), copies_ = memory.keep(groups.edges);
  sent_rows_ = memory.keep(sent_);
}

char* GpuExchange::staged(Staged& room, int64_t bytes) {
  if (room.size < size_t(bytes)) {
    GpuDevice& device = model_.device();
    device.synchronize_aside();
    if (room.memory != nullptr) device.free_host(std::exchange(room.memory, nullptr));
    room.size = 0;
    room.memory = device.allocate_host(size_t(bytes) + size_t(bytes) / 16);
    room.size = size_t(bytes) + size_t(bytes) / 16;
  }
  return static_cast<char*>(room.memory);
}

void GpuExchange::begin_forward(const GpuContext& c, const GpuArray& x) {
  const int64_t bytes = row_bytes(x, model_), num_sent = int64_t(sent_.size());
  char* const rows = exchange_->is_gpu_aware() ? nullptr : staged(rows_on_host_, num_sent * bytes);
  rows_ = c.make(num_sent, x.width);
  GpuRowArrays<void> arrays{};
  arrays.a = x.data(), arrays.index = static_cast<const long long*>(sent_rows_.get()), arrays.out = rows_.data();
  c.run("gather_rows", arrays, num_sent, x.width);
  model_.device().fork();
  under_way_ = true;
  if (rows != nullptr && num_sent > 0) model_.device().copy_down_aside(rows, rows_.data(), size_t(num_sent * bytes));
}

void GpuExchange::end_forward(const GpuContext& c, const GpuArray& x) {
  GpuDevice& device = model_.device();
  const int64_t bytes = row_bytes(x, model_), size = num_ghosts(c) * bytes;
  if (exchange_->is_gpu_aware()) {
    device.synchronize_aside();
    device.enter([&] { exchange_->to_ghosts(rows_.data(), ghosts_of(c, x), bytes); });
  } else {
    char* const ghosts = staged(ghosts_on_host_, size);
    device.synchronize_aside();
    exchange_->to_ghosts(rows_on_host_.memory, ghosts, bytes);
    if (size > 0) device.copy_up_aside(ghosts_of(c, x), ghosts, size_t(size));
  }
  device.join();
  under_way_ = false, rows_ = {};
}

void GpuExchange::begin_backward(const GpuContext& c, const GpuArray& gradient) {
  const int64_t bytes = row_bytes(gradient, model_), size = num_ghosts(c) * bytes;
  char* const ghosts = exchange_->is_gpu_aware() ? nullptr : staged(ghosts_on_host_, size);
  rows_ = c.make(int64_t(sent_.size()), gradient.width);
  model_.device().fork();
  under_way_ = true;
  if (ghosts != nullptr && size > 0) model_.device().copy_down_aside(ghosts, ghosts_of(c, gradient), size_t(size));
}

void GpuExchange::end_backward(const GpuContext& c, const GpuArray& gradient) {
  GpuDevice& device = model_.device();
  const int64_t bytes = row_bytes(gradient, model_), size = rows_.rows * bytes;
  if (exchange_->is_gpu_aware()) {
    device.synchronize_aside();
    device.enter([&] { exchange_->to_owners(ghosts_of(c, gradient), rows_.data(), bytes); });
  } else {
    char* const rows = staged(rows_on_host_, size);
    device.synchronize_aside();
    exchange_->to_owners(ghosts_on_host_.memory, rows, bytes);
    if (size > 0) device.copy_up_aside(rows_.data(), rows, size_t(size));
  }
  device.join();
  under_way_ = false;
  GpuRowArrays<void> arrays{};
  arrays.a = rows_.data(), arrays.out = gradient.data();
  arrays.index = static_cast<const long long*>(owners_.get()), arrays.start = static_cast<const long long*>(first_copy_.get());
  arrays.sender = static_cast<const long long*>(copies_.get());
  c.run("add_copies", arrays, num_owners_, gradient.width);
  rows_ = {};
}

}  // namespace equipot
