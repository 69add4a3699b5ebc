// A GPU without a GPU: compiles a kernel's text as C++ and runs its blocks one after the other. Without a compiler it only
// keeps the text, and a list of what would be started; results are arbitrary. It counts what is asked of it, and is as late
// as a GPU may be: the host gets what it copied when it waits, and must not have changed by then what it sent; what is copied aside is there when it is joined.
#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "gpu_device.h"
#include "gpu_launcher.h"

namespace {

using Run = void (*)(const void* parameter, const int64_t* grid, int64_t threads);

// The names of a text's kernels, each with whether its threads wait for each other.
std::map<std::string, bool> kernels_of(std::string source) {
  const std::string mark = "extern \"C\" __global__";
  // Kernels of several may wait, others not; that of a single one is looked at whole.
  const std::string text = equipot::gpu_warp_sums_text;
  if (const size_t at = source.find(text); at != std::string::npos) source.erase(at, text.size());
  const auto waits = [](const std::string& text) {
    for (const char* word : {"warp_sums", "__shfl", "__syncthreads"})
      if (text.find(word) != std::string::npos) return true;
    return false;
  };
  std::map<std::string, bool> found;
  for (size_t at = source.find(mark); at != std::string::npos;) {
    const size_t next = source.find(mark, at + 1), end = source.find("(const ", at);
    const size_t begin = source.find_last_of(" ", end - 1) + 1;
    const std::string name = source.substr(begin, end - begin);
    if (name != "name") found[name] = waits(source.substr(at, next - at));
    at = next;
  }
  // The kernels that macros name, as EQUIPOT_FOR_ROWS(blend).
  for (const auto& [macro, wait] : {std::pair("EQUIPOT_FOR_NUMBERS(", false), std::pair("EQUIPOT_FOR_ROWS(", true)})
    for (size_t at = source.find(macro); at != std::string::npos; at = source.find(macro, at + 1)) {
      const size_t begin = at + std::strlen(macro);
      const std::string name = source.substr(begin, source.find(')', begin) - begin);
      if (name != "name") found[name] = wait;
    }
  if (found.size() == 1) found.begin()->second = waits(source);
  return found;
}

class Emulator : public equipot::GpuDevice {
 public:
  enum Count { launches, bytes_up, bytes_down, waits, allocations, zeroed, beside };
  std::string directory, compiler;
  int64_t counts[7] = {};
  size_t in_use = 0, most = 0, memory = SIZE_MAX;  // bytes

  void* compile(const std::string& source, const char* name) override {
    const std::string stem = directory + "/" + std::to_string(std::hash<std::string>()(source));
    std::ofstream(stem + ".cu") << source;
    if (compiler.empty()) return new std::string(stem);  // kernels stay as long as the process
    void*& library = libraries_[source];
    if (library == nullptr) library = dlopen((stem + ".so").c_str(), RTLD_NOW | RTLD_LOCAL);  // of another process
    if (library == nullptr) {
      const std::string own = stem + "." + std::to_string(getpid());
      std::ofstream text(own + ".cpp");
      text << "#include \"cuda_on_cpu.h\"\n" << source;
      for (const auto& [kernel, wait] : kernels_of(source))
        text << "\nextern \"C\" void run_" << kernel << "(const void* parameter, const long* grid, long threads) { run_grid("
             << kernel << ", parameter, grid, threads, " << wait << "); }\n";
      text.close();
      const std::string command = compiler + " -o " + own + ".so " + own + ".cpp";
      if (std::system(command.c_str()) != 0) throw std::runtime_error("does not compile: " + command);
      std::rename((own + ".so").c_str(), (stem + ".so").c_str());
      library = dlopen((stem + ".so").c_str(), RTLD_NOW | RTLD_LOCAL);
    }
    void* run = library == nullptr ? nullptr : dlsym(library, (std::string("run_") + name).c_str());
    if (run == nullptr) throw std::runtime_error(dlerror());
    return run;
  }

  void launch(void* kernel, const equipot::GpuGrid& grid, int64_t threads, void* parameter) override {
    if (grid[0] < 1 || grid[1] < 1 || grid[2] < 1 || grid[1] > 65535 || grid[2] > 65535)
      throw std::runtime_error("a grid that no GPU has");
    ++counts[launches];
    counts[beside] += forked_ > 0;
    if (!compiler.empty()) {
      reinterpret_cast<Run>(kernel)(parameter, grid.data(), threads);
      return require_guards();
    }
    const std::string stem = *static_cast<std::string*>(kernel);
    std::ofstream(directory + "/launches.txt", std::ios::app)
        << stem.substr(stem.rfind('/') + 1) << ' ' << grid[0] << ' ' << grid[1] << ' ' << grid[2] << ' ' << threads << '\n';
  }

  void* stream() override { return nullptr; }

  // Filled with numbers that are none.
  void* allocate(size_t bytes) override {
    if (bytes > memory_left()) return nullptr;
    ++counts[allocations];
    in_use += bytes, most = std::max(most, in_use);
    void* found = std::memset(std::malloc(bytes + guard), 0xff, bytes);
    std::memset(static_cast<char*>(found) + bytes, 0x5a, guard);
    sizes_[found] = bytes;
    return found;
  }
  void free(void* memory) noexcept override {
    in_use -= sizes_.extract(memory).mapped();
    std::free(memory);
  }
  void* allocate_host(size_t bytes) override {
    void* memory = std::malloc(bytes);
    host_[static_cast<char*>(memory)] = bytes;
    return memory;
  }
  void free_host(void* memory) noexcept override {
    host_.erase(static_cast<char*>(memory));
    std::free(memory);
  }
  void zero(void* memory, size_t bytes) override {
    ++counts[zeroed];
    std::memset(memory, 0, bytes);
    require_guards();
  }
  void copy_up(void* to, const void* from, size_t bytes) override {
    require_host(from, bytes);
    counts[bytes_up] += int64_t(bytes);
    std::memcpy(to, from, bytes);
    require_guards();
    sent_.push_back({static_cast<const char*>(from), std::string(static_cast<const char*>(from), bytes)});
  }
  void copy_down(void* to, const void* from, size_t bytes) override {
    require_host(to, bytes);
    counts[bytes_down] += int64_t(bytes);
    coming_.push_back({static_cast<char*>(to), std::string(static_cast<const char*>(from), bytes)});
  }
  void synchronize() override {
    ++counts[waits];
    for (const auto& [from, bytes] : sent_)
      if (std::memcmp(from, bytes.data(), bytes.size()) != 0) throw std::runtime_error("what was sent has changed before it could be");
    for (const auto& [to, bytes] : coming_) std::memcpy(to, bytes.data(), bytes.size());
    sent_.clear(), coming_.clear();
  }
  void fork() override { ++forked_; }
  void copy_up_aside(void* to, const void* from, size_t bytes) override {
    require_forked(), require_host(from, bytes);
    counts[bytes_up] += int64_t(bytes);
    aside_up_.push_back({static_cast<char*>(to), static_cast<const char*>(from), {static_cast<const char*>(from), bytes}});
    std::memset(to, 0xff, bytes);  // it is not there yet
  }
  void copy_down_aside(void* to, const void* from, size_t bytes) override {
    require_forked(), require_host(to, bytes);
    counts[bytes_down] += int64_t(bytes);
    aside_down_.push_back({static_cast<char*>(to), static_cast<const char*>(from), {static_cast<const char*>(from), bytes}});
  }
  void synchronize_aside() override {
    ++counts[waits];
    finish_aside();
  }
  void join() override {
    require_forked();
    finish_aside();
    --forked_;
  }
  void enter(const std::function<void()>& work) override { work(); }
  size_t memory_left() override { return memory - std::min(in_use, memory); }
  std::string name() override { return "emulated GPU"; }

 private:
  struct Aside {
    char* to;
    const char* from;
    std::string bytes;  // when it was asked for
  };

  static constexpr size_t guard = 64;  // bytes behind an array

  void require_guards() const {
    for (const auto& [memory, bytes] : sizes_)
      for (size_t n = 0; n < guard; ++n)
        if (static_cast<const char*>(memory)[bytes + n] != 0x5a) throw std::runtime_error("something has been written behind an array");
  }

  void finish_aside() {
    for (const auto* copies : {&aside_up_, &aside_down_})
      for (const auto& [to, from, bytes] : *copies) {
        if (std::memcmp(from, bytes.data(), bytes.size()) != 0)
          throw std::runtime_error("what is copied aside has changed meanwhile");
        std::memcpy(to, bytes.data(), bytes.size());
      }
    aside_up_.clear(), aside_down_.clear();
  }
  void require_forked() const {
    if (forked_ == 0) throw std::runtime_error("copies aside that nothing has forked");
  }
  void require_host(const void* memory, size_t bytes) const {
    const auto* address = static_cast<char*>(const_cast<void*>(memory));
    const auto after = host_.upper_bound(const_cast<char*>(address));
    if (after == host_.begin() || address + bytes > std::prev(after)->first + std::prev(after)->second)
      throw std::runtime_error("a copy of memory that is not the device's own");
  }

  std::map<std::string, void*> libraries_;
  std::map<void*, size_t> sizes_;
  std::map<char*, size_t> host_;
  std::vector<std::pair<const char*, std::string>> sent_;
  std::vector<std::pair<char*, std::string>> coming_;
  std::vector<Aside> aside_up_, aside_down_;
  int forked_ = 0;  // by models that take turns
};

}  // namespace

// How many kernels have been started.
extern "C" int64_t launches(const Emulator* emulator) { return emulator->counts[Emulator::launches]; }

// Since it was made: launches, bytes up, bytes down, waits, allocations, arrays made zero, launches beside copies.
extern "C" void counts(const Emulator* emulator, int64_t* to) { std::memcpy(to, emulator->counts, sizeof emulator->counts); }

// Gives the device so many bytes, and says how many have been in use at most since then.
extern "C" int64_t set_memory(Emulator* emulator, int64_t bytes) {
  emulator->memory = size_t(bytes);
  return int64_t(std::exchange(emulator->most, emulator->in_use));
}

// Sources (.cu) and libraries go to `directory`.
extern "C" equipot::GpuDevice* emulator(const char* directory, const char* compiler) {
  Emulator* emulator = new Emulator;  // its kernels are known by its address
  emulator->directory = directory, emulator->compiler = compiler;
  return emulator;
}
