#include "model.h"

#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>
#include <torch/cuda.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/script.h>
#include <torch/version.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "archive.h"
#include "ghost_exchange.h"
#include "json.h"

namespace equipot {
namespace {

using at::Tensor;

constexpr int format_version = 1;  // FORMAT_VERSION of equipot/deploy/metadata.py

bool has_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchema({name, ""}).has_value();
}

// One line: what happened inside TorchScript stands last in its messages, after its own traceback; otherwise the first.
std::string cause_of(const std::exception& error) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  std::istringstream lines(torch_error ? torch_error->what_without_backtrace() : error.what());
  std::string first, inner;
  for (std::string line; std::getline(lines, line);) {
    if (first.empty() && line.find_first_not_of(" \t") != std::string::npos) first = line;
    if (line.rfind("RuntimeError: ", 0) == 0 || line.rfind("torch.jit.Error: ", 0) == 0 || line.rfind("builtins.", 0) == 0)
      inner = line;
  }
  if (!inner.empty()) return inner;
  return first.empty() ? "unknown error" : first;
}

template <class T>
std::vector<T> words(const std::string& text) {
  std::istringstream stream(text);
  std::vector<T> found;
  for (T word; stream >> word;) found.push_back(word);
  return found;
}

class AttachedExchange {
 public:
  explicit AttachedExchange(GhostExchange* exchange) : attached_(exchange != nullptr) {
    if (attached_) attach(exchange);
  }
  ~AttachedExchange() {
    if (attached_) attach(nullptr);
  }
  AttachedExchange(const AttachedExchange&) = delete;
  AttachedExchange& operator=(const AttachedExchange&) = delete;

 private:
  static void attach(GhostExchange* exchange) {
    static const auto handle = c10::Dispatcher::singleton()
                                   .findSchemaOrThrow("equipot::attach_exchange", "")
                                   .typed<void(int64_t)>();
    handle.call(reinterpret_cast<int64_t>(exchange));
  }
  bool attached_;
};

ModelFacts read_facts(const std::string& path, const torch::jit::ExtraFilesMap& extra) {
  const auto text = [&](const char* key) -> const std::string& {
    const std::string& found = extra.at(key);
    if (found.empty())
      throw std::runtime_error(path + ": not a model written by 'equipot deploy' (it does not say its " + key + ").");
    return found;
  };
  const int version = std::stoi(text("format_version"));
  if (version > format_version)
    throw std::runtime_error(path + ": written in model format " + std::to_string(version) + " by equipot " +
                             text("equipot_version") + "; this plugin reads formats up to " +
                             std::to_string(format_version) + ". Upgrade equipot and build the plugin again.");
  ModelFacts facts;
  facts.model_type = text("model_type"), facts.dtype = text("dtype");
  facts.equipot_version = text("equipot_version"), facts.torch_version = text("torch_version");
  facts.species = words<std::string>(text("species"));
  facts.atomic_energies = words<double>(text("atomic_energies"));
  facts.cutoff = std::stod(text("cutoff")), facts.interaction_range = std::stod(text("interaction_range"));
  facts.num_exchanges = std::stoi(text("num_exchanges")), facts.widest_exchange = std::stoll(text("widest_exchange"));
  if (facts.num_exchanges > 0 && facts.widest_exchange == 0)
    throw std::runtime_error(path + ": deployed by an equipot whose message passing does not cross the borders of "
                                    "domains. Run 'equipot deploy' again.");
  return facts;
}

}  // namespace

struct Model::Torch {
  torch::jit::Module module;
  torch::Device device = torch::kCPU;
  Tensor atom_energies, forces, atom_virials;  // the last result, on the CPU
  // On the device, and what they were made from: atoms stay the same for many steps, and what follows from a tensor of
  // types (their order by species) is kept as long as the tensor.
  Tensor atom_types, owned;
  std::vector<int64_t> types_of_tensor;
  int64_t num_owned = -1;
};

Model::Model(const std::string& path, const std::string& device) : path_(path), torch_(std::make_unique<Torch>()) {
  if (!std::filesystem::is_regular_file(path))
    throw std::runtime_error(path + ": no such file. Expected a model written by 'equipot deploy'.");
  Archive(path).require_checksums();
  load_operators();
  c10::Dispatcher::singleton().findSchemaOrThrow("equipot::keep_memory", "").typed<void()>().call();
  torch::jit::ExtraFilesMap extra;
  for (const char* key : {"format_version", "model_type", "dtype", "species", "atomic_energies", "cutoff",
                          "interaction_range", "num_exchanges", "widest_exchange", "equipot_version",
                          "torch_version", "capsule"})
    extra[key] = "";
  try {
    torch_->device = torch::Device(device);
    torch_->module = torch::jit::load(path, torch_->device, extra);
  } catch (const std::exception& error) {
    throw std::runtime_error(path + ": not a model written by 'equipot deploy', or by a newer torch: " + cause_of(error));
  }
  facts_ = read_facts(path, extra);
  capsule_ = extra.at("capsule");
  torch_->module.eval();
}

Model::~Model() = default;

Evaluation Model::evaluate(const Neighborhood& in, GhostExchange* exchange) {
  const AttachedExchange attached(exchange);
  // As in Python (deploy/jit.py): without the profiling executor, which compiles anew for new numbers of edges.
  const torch::jit::GraphOptimizerEnabledGuard optimizer(false);
  const int64_t num_atoms = in.num_atoms(), num_edges = in.num_edges();
  const auto wrap = [](const auto& values, at::IntArrayRef shape, at::ScalarType type) {
    return torch::from_blob(const_cast<void*>(static_cast<const void*>(values.data())), shape, type);
  };
  try {
    const Tensor edge_index = torch::stack({wrap(in.center, {num_edges}, at::kLong),
                                            wrap(in.neighbor, {num_edges}, at::kLong)});
    if (in.atom_types != torch_->types_of_tensor || in.num_owned != torch_->num_owned) {
      torch_->types_of_tensor = in.atom_types, torch_->num_owned = in.num_owned;
      torch_->atom_types = wrap(in.atom_types, {num_atoms}, at::kLong).clone().to(torch_->device);
      torch_->owned = (torch::arange(num_atoms) < in.num_owned).to(torch_->device);
    }
    const auto results = torch_->module
                             .forward({wrap(in.edge_vec, {num_edges, 3}, at::kDouble).to(torch_->device),
                                       edge_index.to(torch_->device), torch_->atom_types, torch_->owned})
                             .toTuple();
    const auto on_cpu = [&](int i) { return results->elements()[i].toTensor().to(at::kCPU).contiguous(); };
    torch_->atom_energies = on_cpu(0), torch_->forces = on_cpu(1), torch_->atom_virials = on_cpu(2);
  } catch (const std::exception& error) {
    throw std::runtime_error("the model " + path_ + " failed on " + std::to_string(in.num_owned) + " atoms with " +
                             std::to_string(num_edges) + " neighbors: " + cause_of(error));
  }
  return {torch_->atom_energies.const_data_ptr<double>(), torch_->forces.const_data_ptr<double>(),
          torch_->atom_virials.const_data_ptr<double>()};
}

namespace {

// Largest deviation and largest reference value of one quantity.
struct Comparison {
  double deviation = 0, scale = 1;

  void add(double found, double right, double offset = 0) {
    const double difference = std::abs(found - right);
    deviation = std::isfinite(difference) ? std::max(deviation, difference) : INFINITY;
    scale = std::max(scale, std::abs(right - offset));
  }
};

std::string scientific(double value) {
  std::ostringstream text;
  text.precision(2);
  text << value;
  return text.str();
}

Neighborhood reference_structure(const Json& reference) {
  const auto positions = reference["positions"].numbers<double>(), cell = reference["cell"].numbers<double>();
  const auto edges = reference["edge_index"].numbers<int64_t>();
  const auto shifts = reference["edge_shift"].numbers<double>();
  Neighborhood in;
  in.atom_types = reference["atom_types"].numbers<int64_t>();
  in.num_owned = in.num_atoms();
  const size_t num_edges = edges.size() / 2;
  in.center.assign(edges.begin(), edges.begin() + num_edges);
  in.neighbor.assign(edges.begin() + num_edges, edges.end());
  for (size_t e = 0; e < num_edges; ++e)
    for (int a = 0; a < 3; ++a) {
      double length = positions.at(3 * in.neighbor[e] + a) - positions.at(3 * in.center[e] + a);
      for (int b = 0; b < 3; ++b) length += shifts.at(3 * e + b) * cell.at(3 * b + a);
      in.edge_vec.push_back(length);
    }
  return in;
}

}  // namespace

std::string Model::check() {
  const double relative = facts_.dtype == "float32" ? 1e-4 : 1e-9;  // RELATIVE_TOLERANCE of deploy/capsule.py
  Comparison energy, forces, virials;
  size_t num_structures = 0;
  try {
    const Json capsule = Json::parse(capsule_);
    for (const Json& reference : capsule["references"].items) {
      const Neighborhood in = reference_structure(reference);
      const Evaluation found = evaluate(in);
      const auto right_energies = reference["atom_energies"].numbers<double>();
      const auto right_forces = reference["forces"].numbers<double>();
      const auto right_virials = reference["atom_virials"].numbers<double>();
      for (size_t i = 0; i < right_energies.size(); ++i)
        energy.add(found.atom_energies[i], right_energies[i], facts_.atomic_energies.at(in.atom_types[i]));
      for (size_t i = 0; i < right_forces.size(); ++i) forces.add(found.forces[i], right_forces[i]);
      for (size_t i = 0; i < right_virials.size(); ++i) virials.add(found.atom_virials[i], right_virials[i]);
      ++num_structures;
    }
  } catch (const std::logic_error& error) {
    throw std::runtime_error(path_ + ": the self-check capsule is damaged. Run 'equipot deploy' again.");
  }
  const std::string summary = std::to_string(num_structures) + " reference structures, energies off by " +
                              scientific(energy.deviation) + " eV/atom, forces by " + scientific(forces.deviation) +
                              " eV/A, virials by " + scientific(virials.deviation) + " eV";
  for (const Comparison& one : {energy, forces, virials})
    if (!(one.deviation <= relative * one.scale) || num_structures == 0)
      throw std::runtime_error(path_ + ": the model does not reproduce its reference structures here: " + summary +
                               ". Deploy it again with this installation, and build the plugin again.");
  return summary;
}

void load_operators() {
  if (!has_operator("equipot::attach_exchange")) {
    if (has_operator("equipot::ghost_exchange"))
      throw std::runtime_error("this process runs equipot without its kernels (EQUIPOT_KERNELS=off, or no compiler); "
                               "LAMMPS needs them.");
    Dl_info here;
    dladdr(reinterpret_cast<void*>(&load_operators), &here);
    const auto library = std::filesystem::path(here.dli_fname).parent_path() / "libequipot_ops.so";
    if (!dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL))
      throw std::runtime_error(std::string("the operators cannot be loaded: ") + dlerror() +
                               ". Run 'equipot lammps build' again.");
  }
}

std::string choose_device(const std::string& wanted, int local_rank) {
  const auto num_gpus = static_cast<int>(torch::cuda::is_available() ? torch::cuda::device_count() : 0);
  if (wanted == "cpu") return wanted;
  if (wanted == "auto" && num_gpus == 0) return "cpu";
  if (num_gpus == 0)
    throw std::runtime_error("device " + wanted + ": torch finds no GPU here. Use 'device cpu' or 'device auto'.");
  if (wanted.rfind("cuda:", 0) != 0) return "cuda:" + std::to_string(local_rank % num_gpus);
  if (std::stoi(wanted.substr(5)) >= num_gpus)
    throw std::runtime_error("device " + wanted + ": this node has " + std::to_string(num_gpus) + " GPUs.");
  return wanted;
}

std::string unused_gpu() {
  std::error_code none;
  for (const auto& file : std::filesystem::directory_iterator("/dev", none)) {
    const std::string name = file.path().filename().string();
    if (name.rfind("nvidia", 0) == 0 && name.find_first_not_of("0123456789", 6) == std::string::npos && name.size() > 6 &&
        !torch::cuda::is_available())
      return "this node has an NVIDIA GPU (" + file.path().string() + "), which torch " TORCH_VERSION
             " cannot use; 'device auto' takes the CPU. Build the plugin with a torch that has CUDA, or say 'device cpu'";
  }
  return "";
}

int num_threads() { return at::get_num_threads(); }

}  // namespace equipot
