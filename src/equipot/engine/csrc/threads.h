// A pool of threads for loops over blocks of work.
//
// Not OpenMP: its library would be one more to install, is a second one beside torch's, and does not survive fork().
// Blocks are handed out one after the other; which thread takes one has no influence on its result.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>

namespace equipot {

class Threads {
 public:
  // That of this process, never destroyed: a thread may still wait in it at the end.
  static Threads& pool() {
    static Threads* threads = new Threads;
    if (threads->process_ != getpid()) {  // a child: fork() has copied no thread
      const int count = threads->count_;
      threads = new Threads;
      threads->set_count(count);
    }
    return *threads;
  }

  // At most so many at a time; 0: OMP_NUM_THREADS, or all cores this process may use.
  void set_count(int count) { count_ = count > 0 ? count : default_count(); }
  int count() const { return count_; }

  // Calls work(block, worker) for all blocks; worker < count(). What it throws first is thrown here, at the end. A call
  // while another one runs, from within or from another thread, does its work in its own thread. worker < most, too:
  // another thread may change count() at any time.
  template <class F>
  void run(int64_t blocks, const F& work, int most = INT_MAX) {
    bool idle = false;
    most = std::min(most, count_.load());
    if (blocks < 2 || most < 2 || !busy_.compare_exchange_strong(idle, true)) {
      for (int64_t block = 0; block < blocks; ++block) work(block, 0);
      return;
    }
    int helpers = int(std::min<int64_t>(most, blocks)) - 1;
    while (workers_ < helpers) {
      const int worker = workers_ + 1;
      try {
        std::thread([this, worker, seen = generation_] { wait_for_work(worker, seen); }).detach();
      } catch (const std::system_error&) {  // the system gives no more
        break;
      }
      ++workers_;
    }
    helpers = std::min(helpers, workers_);
    work_ = [&work](int64_t block, int worker) { work(block, worker); };
    error_ = nullptr;
    {
      const std::lock_guard lock(mutex_);
      next_ = 0, blocks_ = blocks, wanted_ = helpers, working_ = workers_;
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
  std::atomic<int> count_;
  std::atomic<bool> busy_ = false;
  std::atomic<int64_t> next_ = 0;
  int64_t blocks_ = 0;
  int workers_ = 0, wanted_ = 0, working_ = 0;  // helpers
  uint64_t generation_ = 0;
  std::function<void(int64_t, int)> work_;
  std::exception_ptr error_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
};

}  // namespace equipot
