// Chooses, by the processor, among the sets of instructions that evaluator.cpp was compiled for.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "evaluator.h"

// Weak: null for a set that was not compiled.
#define COMPILED(set)                                                               \
  namespace set {                                                                   \
  __attribute__((weak)) std::unique_ptr<Evaluator> make_network(const Program&);    \
  }

namespace equipot {

COMPILED(baseline)
COMPILED(avx2)
COMPILED(avx512)

namespace {

struct InstructionSet {
  const char* name;
  std::unique_ptr<Evaluator> (*make)(const Program&);
  bool (*is_here)();
};

#if defined(__x86_64__)
// What recipe.txt has the compiler use, and the operating system keeps.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512cd") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
#endif

const InstructionSet sets[] = {{"avx512", avx512::make_network, has_avx512},
                               {"avx2", avx2::make_network, has_avx2},
                               {"baseline", baseline::make_network, [] { return true; }}};

const InstructionSet& choose() {
  const char* wanted = std::getenv("EQUIPOT_INSTRUCTIONS");
  if (wanted != nullptr && *wanted == 0) wanted = nullptr;
  std::string usable;
  for (const InstructionSet& set : sets) {
    if (set.make == nullptr || !set.is_here()) continue;
    if (wanted == nullptr || wanted == std::string(set.name)) return set;
    usable += (usable.empty() ? "" : ", ") + std::string(set.name);
  }
  if (wanted == nullptr) throw std::runtime_error("the engine was not compiled for a set of instructions that this processor has");
  throw std::runtime_error("EQUIPOT_INSTRUCTIONS is '" + std::string(wanted) + "'; compiled for and found in this processor: " + usable);
}

const InstructionSet& chosen() {
  static const InstructionSet& set = choose();
  return set;
}

}  // namespace

const char* instructions() { return chosen().name; }

std::unique_ptr<Evaluator> make_evaluator(const Program& program) { return chosen().make(program); }

}  // namespace equipot
