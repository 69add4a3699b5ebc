// A pool of threads for loops over blocks of work.
//
// Not OpenMP: its library would be one more to install, is a second one beside torch's, and does not survive fork().
// Blocks are handed out one after the other; which thread takes one has no influence on its result.
#pragma once

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace equipot {

class Threads {
 public:
  // That of this process, never destroyed: a thread may still wait in it at the end.
  static Threads& pool() {
    static Threads* threads = new Threads;
    if (threads->process_ != getpid()) {  // a child: fork() has copied no thread
      const int count = threads->count_;
      threads = new Threads;
      threads->count_ = count;
    }
    return *threads;
  }

  // At most so many at a time; 0: OMP_NUM_THREADS, or all cores this process may use.
  void set_count(int count) { count_ = count > 0 ? count : default_count(); }
  int count() const { return count_; }

  // Calls work(block, worker) for all blocks; worker < count(). What it throws first is thrown here, at the end. A call
  // while another one runs, from within or from another thread, does its work in its own thread.
  template <class F>
  void run(int64_t blocks, const F& work) {
    bool idle = false;
    if (blocks < 2 || count_ < 2 || !busy_.compare_exchange_strong(idle, true)) {
      for (int64_t block = 0; block < blocks; ++block) work(block, 0);
      return;
    }
    const int helpers = int(std::min<int64_t>(count_, blocks)) - 1;
    while (int(workers_.size()) < helpers) {
      const int worker = int(workers_.size()) + 1;
      workers_.emplace_back([this, worker, seen = generation_] { wait_for_work(worker, seen); });
      workers_.back().detach();
    }
    work_ = [&work](int64_t block, int worker) { work(block, worker); };
    error_ = nullptr;
    {
      const std::lock_guard lock(mutex_);
      next_ = 0, blocks_ = blocks, wanted_ = helpers, working_ = int(workers_.size());
      ++generation_;
    }
    wake_.notify_all();
    take_blocks(0);
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return working_ == 0; });
    work_ = nullptr;
    const std::exception_ptr error = error_;
    lock.unlock();
    busy_ = false;
    if (error) std::rethrow_exception(error);
  }

 private:
  Threads() : process_(getpid()), count_(default_count()) {}

  static int default_count() {
    if (const char* text = std::getenv("OMP_NUM_THREADS"))
      if (const int count = std::atoi(text); count > 0) return count;
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return std::max(1, CPU_COUNT(&allowed));
    return std::max(1u, std::thread::hardware_concurrency());
  }

  void take_blocks(int worker) {
    try {
      for (int64_t block; (block = next_.fetch_add(1)) < blocks_;) work_(block, worker);
    } catch (...) {
      next_ = blocks_;
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }

  void wait_for_work(int worker, uint64_t seen) {
    for (;;) {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      const bool wanted = worker <= wanted_;
      lock.unlock();
      if (wanted) take_blocks(worker);
      lock.lock();
      if (--working_ == 0) done_.notify_one();
    }
  }

  pid_t process_;
  int count_;
  std::atomic<bool> busy_ = false;
  std::atomic<int64_t> next_ = 0;
  int64_t blocks_ = 0;
  int wanted_ = 0, working_ = 0;  // helpers
  uint64_t generation_ = 0;
  std::function<void(int64_t, int)> work_;
  std::exception_ptr error_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
};

}  // namespace equipot
