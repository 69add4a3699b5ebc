// Memory of a GPU that goes from one array to the next, and to the next evaluation: once it is enough, nothing is
// allocated any more. All work is done in order, so what is given back may be taken at once.
#pragma once

#include <algorithm>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "gpu_launcher.h"

namespace equipot {

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
      if (memory_ != nullptr) owner_->give(memory_, capacity_);
    }
    void* get() const { return memory_; }

   private:
    void swap(Buffer& other) {
      std::swap(owner_, other.owner_), std::swap(memory_, other.memory_), std::swap(capacity_, other.capacity_);
    }
    GpuMemory* owner_ = nullptr;
    void* memory_ = nullptr;
    size_t capacity_ = 0;
  };

  explicit GpuMemory(GpuDevice& device) : device_(device) {}
  GpuMemory(const GpuMemory&) = delete;
  ~GpuMemory() {
    try {
      if (waiting_) synchronize();  // copies of what is given back now
    } catch (const std::exception&) {  // of a device that has failed, which whoever asks it next is told
    }
    release();
    for (const Block& block : host_) device_.free_host(block.memory);
  }

  GpuDevice& device() { return device_; }

  // Sizes are rounded up, by an eighth at most, and memory is given on to one of the same rounded size only: an evaluation that
  // asks for the same as the one before finds all of it.
  Buffer take(size_t bytes) {
    size_t step = 256;
    while (16 * step < bytes) step *= 2;
    const size_t capacity = std::max<size_t>((bytes + step - 1) / step * step, step);
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

  // Memory of the host for copies, until `begin` says that those before are done.
  void* host(size_t bytes) {
    for (Block& block : host_)
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

  // A new evaluation. Where one block of the host's memory did not do, there will be one that does.
  void begin() {
    if (waiting_) synchronize();  // for an evaluation that an error has ended
    if (host_.size() > 1) {
      size_t total = 0;
      for (const Block& block : host_) total += block.capacity, device_.free_host(block.memory);
      host_ = {{device_.allocate_host(total), total, 0}};
    }
    for (Block& block : host_) block.used = 0;
  }

  // What no array uses goes back to the driver.
  void release() {
    for (const auto& [capacity, blocks] : free_)
      for (void* memory : blocks) device_.free(memory);
    free_.clear();
  }

 private:
  struct Block {
    void* memory;
    size_t capacity, used = 0;
  };

  void* allocate(size_t capacity) {
    try {
      return device_.allocate(capacity);
    } catch (const std::bad_alloc&) {
      release();
    }
    try {
      return device_.allocate(capacity);
    } catch (const std::bad_alloc&) {
      throw std::runtime_error("not enough memory on " + device_.name() + ": an array of " +
                               std::to_string(capacity >> 20) + " MB is needed, " + std::to_string(device_.memory_left() >> 20) +
                               " MB are left; evaluate fewer atoms at a time, or spread them over more GPUs");
    }
  }

  void give(void* memory, size_t capacity) { free_[capacity].push_back(memory); }

  GpuDevice& device_;
  std::map<size_t, std::vector<void*>> free_;  // by capacity
  std::vector<Block> host_;
  bool waiting_ = false;  // copies may be under way
};

}  // namespace equipot
