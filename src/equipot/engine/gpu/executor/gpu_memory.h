// Memory of a GPU that goes from one array to the next, and to the next evaluation: once it is enough, nothing is
// allocated any more. All work is done in order, so what is given back may be taken at once.
//
// Arrays of one evaluation have places, as if there were memory without end. What lies in the first bytes of it is in one block,
// which is made as large as all places together after the first evaluation; what lies beyond, and what stays, has blocks of
// its own. (With nothing but those, few of which fit what comes later, half more would be taken.)
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "gpu_launcher.h"

namespace equipot {

// Places one after the other, the smallest free one that is large enough first.
class GpuPlaces {
 public:
  size_t end() const { return end_; }  // of the last one that has been taken

  size_t take(size_t bytes) {
    auto best = free_.end();
    for (auto place = free_.begin(); place != free_.end(); ++place)
      if (place->second >= bytes && (best == free_.end() || place->second < best->second)) best = place;
    if (best == free_.end()) {
      end_ += bytes;
      return end_ - bytes;
    }
    const auto [at, room] = *best;
    free_.erase(best);
    if (room > bytes) free_[at + bytes] = room - bytes;
    return at;
  }

  void give(size_t at, size_t bytes) {
    auto next = free_.upper_bound(at);
    if (next != free_.end() && next->first == at + bytes) bytes += next->second, next = free_.erase(next);
    if (next != free_.begin() && std::prev(next)->first + std::prev(next)->second == at)
      std::prev(next)->second += bytes;
    else
      free_[at] = bytes;
  }

 private:
  size_t end_ = 0;
  std::map<size_t, size_t> free_;  // bytes from each place on
};

class GpuMemory {
 public:
  class Buffer {
   public:
    Buffer() = default;
    Buffer(GpuMemory* owner, void* memory, size_t capacity) : owner_(owner), memory_(memory), capacity_(capacity) {}
    Buffer(Buffer&& other) noexcept { swap(other); }
    Buffer& operator=(Buffer&& other) noexcept {
      Buffer(std::move(other)).swap(*this);
      return *this;
    }
    ~Buffer() {
      if (memory_ != nullptr) owner_->give(*this);
    }
    void* get() const { return memory_; }

   private:
    friend GpuMemory;
    void swap(Buffer& other) {
      std::swap(owner_, other.owner_), std::swap(memory_, other.memory_), std::swap(capacity_, other.capacity_);
      std::swap(at_, other.at_), std::swap(bytes_, other.bytes_);
    }
    GpuMemory* owner_ = nullptr;
    void* memory_ = nullptr;
    size_t capacity_ = 0;         // of its own block, if it has one
    size_t at_ = 0, bytes_ = 0;  // its place, if it has one
  };

  explicit GpuMemory(GpuDevice& device) : device_(device) {
    const std::lock_guard guard(others().mutex);
    others().all.push_back(this);
  }
  GpuMemory(const GpuMemory&) = delete;
  ~GpuMemory() {
    {
      const std::lock_guard guard(others().mutex);
      std::erase(others().all, this);
    }
    try {
      if (waiting_) synchronize();  // copies of what is given back now
      make_block(0);
    } catch (const std::exception&) {  // of a device that has failed, which whoever asks it next is told
    }
    for (const HostBlock& block : host_) device_.free_host(block.memory);
  }

  GpuDevice& device() { return device_; }

  // While it lives, a model is evaluated; what was taken is given back before.
  class Evaluation {
   public:
    explicit Evaluation(GpuMemory& memory) : lock_(memory.in_use_), memory_(memory) { memory.begin(); }
    Evaluation(const Evaluation&) = delete;
    ~Evaluation() { memory_.end(); }

   private:
    const std::lock_guard<std::recursive_mutex> lock_;
    GpuMemory& memory_;
  };

  // For an array of this evaluation.
  Buffer take(size_t bytes) {
    bytes = rounded(bytes, 256);
    const size_t at = places_.take(bytes);
    Buffer found;
    try {
      found = at + bytes <= size_ ? Buffer(this, block_ + at, 0) : keep(bytes);
    } catch (const std::exception&) {
      places_.give(at, bytes);
      throw;
    }
    found.at_ = at, found.bytes_ = bytes;
    return found;
  }

  // For what stays. Sizes are rounded up, by an eighth at most, and memory is given on to one of the same rounded size only.
  Buffer keep(size_t bytes) {
    const std::lock_guard guard(in_use_);
    size_t step = 256;
    while (16 * step < bytes) step *= 2;
    const size_t capacity = rounded(bytes, step);
    std::vector<void*>& same = free_[capacity];
    if (same.empty()) return {this, allocate(capacity), capacity};
    void* const found = same.back();
    same.pop_back();
    return {this, found, capacity};
  }

  // Copies from the host's memory, which need not stay as it is.
  void up(void* to, const void* from, size_t bytes) {
    if (bytes == 0) return;
    void* staged = host(bytes);
    waiting_ = true;
    std::memcpy(staged, from, bytes);
    device_.copy_up(to, staged, bytes);
  }

  Buffer up(const void* from, size_t bytes) {
    Buffer to = take(bytes);
    up(to.get(), from, bytes);
    return to;
  }

  template <class Number>
  Buffer up(const std::vector<Number>& numbers) {
    return up(numbers.data(), numbers.size() * sizeof(Number));
  }

  template <class Number>
  Buffer keep(const std::vector<Number>& numbers) {
    Buffer to = keep(numbers.size() * sizeof(Number));
    up(to.get(), numbers.data(), numbers.size() * sizeof(Number));
    return to;
  }

  // Memory of the host for copies, until those of this evaluation are done.
  void* host(size_t bytes) {
    for (HostBlock& block : host_)
      if (block.capacity - block.used >= bytes) {
        void* found = static_cast<char*>(block.memory) + block.used;
        block.used += (bytes + 63) / 64 * 64;
        block.used = std::min(block.used, block.capacity);
        return found;
      }
    const size_t capacity = std::max<size_t>(bytes + bytes / 16, 1 << 20);
    host_.push_back({device_.allocate_host(capacity), capacity, 0});
    return host(bytes);
  }

  // Copies to memory that `host` gave; it is there after `synchronize`.
  void down(void* to, const void* from, size_t bytes) {
    waiting_ = true;
    device_.copy_down(to, from, bytes);
  }

  // The host waits for all that has been asked for.
  void synchronize() {
    device_.synchronize();
    waiting_ = false;
  }

 private:
  struct HostBlock {
    void* memory;
    size_t capacity, used = 0;
  };

  static size_t rounded(size_t bytes, size_t step) { return std::max<size_t>((bytes + step - 1) / step * step, step); }

  // Where one block of the host's memory did not do, there will be one that does.
  void begin() {
    if (waiting_) synchronize();  // for an evaluation that an error has ended
    if (host_.size() > 1) {
      size_t total = 0;
      for (const HostBlock& block : std::exchange(host_, {})) total += block.capacity, device_.free_host(block.memory);
      host_ = {{device_.allocate_host(total), total, 0}};
    }
    for (HostBlock& block : host_) block.used = 0;
    if (failed_) make_block(0);  // without it more may fit
    failed_ = false, places_ = GpuPlaces();
  }

  void end() noexcept {
    const size_t wanted = places_.end() + places_.end() / 16;  // the next evaluation may have a few more edges
    if (places_.end() <= size_ || waiting_ || wanted >= refused_) return;
    try {
      make_block(wanted);
      if (size_ == 0) refused_ = wanted;
    } catch (const std::exception&) {  // of a device that has failed, which the next evaluation is told
    }
  }

  // In place of the one that there is. There is none afterwards if memory does not suffice.
  void make_block(size_t size) {
    release();
    if (block_ != nullptr) device_.free(std::exchange(block_, nullptr));
    size_ = 0;
    if (size > 0) block_ = static_cast<char*>(device_.allocate(size));
    if (block_ != nullptr) size_ = size;
  }

  // What no array uses goes back to the driver, when nothing that was asked for can work on it any more.
  void release() {
    if (!free_.empty() || block_ != nullptr) device_.synchronize();
    for (const auto& [capacity, blocks] : free_)
      for (void* memory : blocks) device_.free(memory);
    free_.clear();
  }

  void* allocate(size_t capacity) {
    void* found = device_.allocate(capacity);
    if (found == nullptr) release(), found = device_.allocate(capacity);
    if (found == nullptr) ask_others(), found = device_.allocate(capacity);
    if (found != nullptr) return found;
    failed_ = true;
    throw std::runtime_error("not enough memory on " + device_.name() + ": an array of " +
                             std::to_string(capacity >> 20) + " MB is needed, " + std::to_string(device_.memory_left() >> 20) +
                             " MB are left; evaluate fewer atoms at a time, or spread them over more GPUs");
  }

  // Models of which none is evaluated just now give back what they keep for their next evaluation.
  void ask_others() {
    const std::lock_guard guard(others().mutex);
    for (GpuMemory* other : others().all)
      if (other != this && &other->device_ == &device_)
        if (const std::unique_lock idle(other->in_use_, std::try_to_lock); idle) other->make_block(0);
  }

  struct Others {
    std::mutex mutex;
    std::vector<GpuMemory*> all;
  };
  static Others& others() {
    static auto* known = new Others;  // never destroyed: models may be closed when the process ends
    return *known;
  }

  void give(const Buffer& buffer) {
    const std::lock_guard guard(in_use_);
    if (buffer.bytes_ > 0) places_.give(buffer.at_, buffer.bytes_);
    if (buffer.capacity_ > 0) free_[buffer.capacity_].push_back(buffer.memory_);
  }

  GpuDevice& device_;
  std::map<size_t, std::vector<void*>> free_;  // by capacity
  GpuPlaces places_;  // of this evaluation
  char* block_ = nullptr;
  size_t size_ = 0;             // of the block
  size_t refused_ = SIZE_MAX;  // what it cannot have
  bool failed_ = false;  // memory was short
  std::vector<HostBlock> host_;
  bool waiting_ = false;  // copies may be under way
  std::recursive_mutex in_use_;  // while a model is evaluated, opened or closed: others may want what is idle
};

}  // namespace equipot
