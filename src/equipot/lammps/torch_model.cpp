// The model by TorchScript, for GPUs.
#include "torch_model.h"

#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>
#include <torch/cuda.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/script.h>

#include <cmath>
#include <filesystem>
#include <sstream>

#include "archive.h"
#include "capsule.h"
#include "distances.h"

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
  if (extra.at("energy") == "False")
    throw std::runtime_error(path + ": it has no energies and forces (model.energy: false), which dynamics takes.");
  ModelFacts facts;
  facts.model_type = text("model_type"), facts.equipot_version = text("equipot_version");
  facts.species = words<std::string>(text("species"));
  facts.cutoff = std::stod(text("cutoff")), facts.bytes_per_number = text("dtype") == "float32" ? 4 : 8;
  facts.num_exchanges = std::stoi(text("num_exchanges")), facts.widest_exchange = std::stoll(text("widest_exchange"));
  facts.shortest_distances = shortest_distances(extra.at("shortest_distances"), facts.species);
  if (facts.num_exchanges > 0 && facts.widest_exchange == 0)
    throw std::runtime_error(path + ": deployed by an equipot whose message passing does not cross the borders of "
                                    "domains. Run 'equipot deploy' again.");
  return facts;
}

// Loads the operators that model files call, if this process does not have them yet: the library beside this one.
void load_operators() {
  if (has_operator("equipot::attach_exchange")) return;
  if (has_operator("equipot::ghost_exchange"))
    throw std::runtime_error("this process runs equipot without its kernels (EQUIPOT_KERNELS=off, or no compiler); "
                             "LAMMPS needs them on a GPU.");
  Dl_info here;
  dladdr(reinterpret_cast<void*>(&load_operators), &here);
  const auto library = std::filesystem::path(here.dli_fname).parent_path() / "libequipot_ops.so";
  if (!dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL))
    throw std::runtime_error(std::string("the operators cannot be loaded: ") + dlerror() +
                             ". Run 'equipot lammps build' again.");
}

class TorchModel : public Model {
 public:
  TorchModel(const std::string& path, const std::string& device);
  std::string check() override;
  Evaluation evaluate(const Neighborhood& in, GhostExchange* exchange, Wanted wanted) override;

 private:
  std::string path_, capsule_;
  torch::jit::Module module_;
  torch::Device device_ = torch::kCPU;
  Tensor atom_energies_, forces_, atom_virials_;  // the last result, on the CPU
  // On the device, and what they were made from: atoms stay the same for many steps, and what follows from a tensor of
  // types (their order by species) is kept as long as the tensor.
  Tensor atom_types_, owned_;
  std::vector<int64_t> types_of_tensor_;
  int64_t num_owned_ = -1;
};

TorchModel::TorchModel(const std::string& path, const std::string& device) : path_(path) {
  if (!std::filesystem::is_regular_file(path))
    throw std::runtime_error(path + ": no such file. Expected a model written by 'equipot deploy'.");
  Archive archive(path);
  archive.require_checksums();
  load_operators();
  c10::Dispatcher::singleton().findSchemaOrThrow("equipot::keep_memory", "").typed<void()>().call();
  torch::jit::ExtraFilesMap extra;
  for (const char* key : {"format_version", "model_type", "dtype", "species", "atomic_energies", "cutoff",
                          "interaction_range", "num_exchanges", "widest_exchange", "equipot_version",
                          "torch_version", "shortest_distances", "capsule", "energy"})
    extra[key] = "";
  try {
    device_ = torch::Device(device);
    module_ = torch::jit::load(path, device_, extra);
  } catch (const std::exception& error) {
    throw std::runtime_error(path + ": not a model written by 'equipot deploy', or by a newer torch: " + cause_of(error));
  }
  facts_ = read_facts(path, extra);
  facts_.checksum = archive.checksum();
  capsule_ = extra.at("capsule");
  facts_.reference_energies = words<double>(extra.at("atomic_energies"));
  module_.eval();
}

Evaluation TorchModel::evaluate(const Neighborhood& in, GhostExchange* exchange, Wanted wanted) {
  if (wanted.heat && facts_.num_exchanges > 0)
    throw std::runtime_error("'compute centroid/stress/atom' of a message-passing model, which heat fluxes need, is "
                             "there on CPUs only; use 'device cpu', or 'stress/atom' for stresses");
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
    if (in.atom_types != types_of_tensor_ || in.num_owned != num_owned_) {
      types_of_tensor_ = in.atom_types, num_owned_ = in.num_owned;
      atom_types_ = wrap(in.atom_types, {num_atoms}, at::kLong).clone().to(device_);
      owned_ = (torch::arange(num_atoms) < in.num_owned).to(device_);
    }
    const auto results = module_
                             .forward({wrap(in.edge_vec, {num_edges, 3}, at::kDouble).to(device_),
                                       edge_index.to(device_), atom_types_, owned_})
                             .toTuple();
    const auto on_cpu = [&](int i) { return results->elements()[i].toTensor().to(at::kCPU).contiguous(); };
    atom_energies_ = on_cpu(0), forces_ = on_cpu(1), atom_virials_ = on_cpu(2);
    for (const Tensor& rows : {atom_energies_, forces_, atom_virials_})
      if (!std::isfinite(rows.sum().item<double>()))
        throw std::runtime_error("its results are not finite: the structure is far from what the model was trained on");
  } catch (const std::exception& error) {
    throw std::runtime_error("the model " + path_ + " failed on " + std::to_string(in.num_owned) + " atoms with " +
                             std::to_string(num_edges) + " neighbors: " + cause_of(error));
  }
  return {atom_energies_.const_data_ptr<double>(), forces_.const_data_ptr<double>(),
          atom_virials_.const_data_ptr<double>(), atom_virials_.const_data_ptr<double>()};
}

std::string TorchModel::check() {
  bool right = false;
  std::string found;
  try {
    found = check_capsule(
        capsule_, facts_.bytes_per_number == 4, facts_.reference_energies, {},
        [&](const capsule::Structure& s, std::vector<double>& energies, std::vector<double>& forces,
            std::vector<double>& virials, std::vector<double>&, std::vector<double>&) {
          const auto n = int64_t(s.types.size());
          const Evaluation e = evaluate({n, s.types, s.center, s.neighbor, s.edge_vec, {}}, nullptr, {});
          energies.assign(e.atom_energies, e.atom_energies + n), forces.assign(e.forces, e.forces + 3 * n);
          virials.assign(e.atom_virials, e.atom_virials + 9 * n);
        },
        right);
  } catch (const std::logic_error& error) {
    throw std::runtime_error(path_ + ": the self-check capsule is damaged. Run 'equipot deploy' again.");
  }
  if (!right)
    throw std::runtime_error(path_ + ": the model does not reproduce its reference structures here: " + found +
                             ". Deploy it again with this installation, and build the plugin again.");
  return found;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const TorchFunctions* equipot_torch() {
  static const TorchFunctions functions{
      [](const std::string& path, const std::string& device) -> Model* { return new TorchModel(path, device); },
      []() -> int { return torch::cuda::is_available() ? static_cast<int>(torch::cuda::device_count()) : 0; }};
  return &functions;
}

}  // namespace equipot
