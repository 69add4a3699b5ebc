#include "model.h"

#include <dlfcn.h>
#include <equipot.h>

#include <algorithm>
#include <filesystem>
#include <stdexcept>

#include "torch_model.h"

namespace equipot {
namespace {

void require(equipot_status status) {
  if (status != EQUIPOT_OK) throw std::runtime_error(equipot_message());
}

class EngineModel : public Model {
 public:
  explicit EngineModel(const std::string& path) {
    require(equipot_open(path.c_str(), &model_));
    equipot_description about;
    require(equipot_describe(model_, &about));
    facts_.species.assign(about.species, about.species + about.num_species);
    facts_.reference_energies.assign(about.reference_energies, about.reference_energies + about.num_species);
    facts_.masses.assign(about.masses, about.masses + about.num_species);
    if (about.shortest_distances != nullptr)
      facts_.shortest_distances.assign(about.shortest_distances,
                                       about.shortest_distances + about.num_species * about.num_species);
    facts_.checksum = about.checksum;
    facts_.model_type = about.model_type, facts_.equipot_version = about.equipot_version;
    facts_.cutoff = about.cutoff, facts_.bytes_per_number = about.bytes_per_number;
    facts_.num_exchanges = about.num_exchanges, facts_.widest_exchange = about.widest_exchange;
    facts_.feature_width = about.feature_width, facts_.output_width = about.output_width;
    facts_.derivative_width = about.derivative_width, facts_.feels_field = about.feels_field != 0;
    facts_.has_energy = about.has_energy != 0;
    for (int32_t n = 0; n < about.num_outputs; ++n) {
      const equipot_output& output = about.outputs[n];
      facts_.outputs.push_back({output.name, output.per_atom != 0, output.mean != 0, output.is_derivative != 0, output.first,
                                output.width, output.total, output.charges});
    }
  }

  ~EngineModel() override { equipot_close(model_); }

  std::string check() override {
    char summary[1000];
    require(equipot_check(model_, summary, sizeof summary));
    return summary;
  }

  Evaluation evaluate(const Neighborhood& in, GhostExchange* exchange, Wanted wanted) override {
    const int64_t num_atoms = in.num_atoms();
    energies_.resize(num_atoms), forces_.resize(3 * num_atoms), virials_.resize(9 * num_atoms), owned_.resize(num_atoms);
    // Without atoms too an address: what is wanted decides on exchanges, and all ranks take part in them.
    if (wanted.heat) heat_virials_.resize(9 * std::max<int64_t>(num_atoms, 1));
    if (wanted.features) features_.resize(facts_.feature_width * num_atoms);
    if (wanted.outputs) outputs_.resize(facts_.output_width * num_atoms);
    if (wanted.derivatives) derivatives_.resize(facts_.derivative_width * std::max<int64_t>(num_atoms, 1));
    for (int64_t i = 0; i < num_atoms; ++i) owned_[i] = i < in.num_owned;
    Link link{exchange, facts_.bytes_per_number == 4};
    const equipot_exchange functions{&link, in.num_owned, Link::copy_to_ghosts, Link::add_to_owners};
    const equipot_edges edges{num_atoms, in.num_edges(), in.atom_types.data(), owned_.data(), in.center.data(),
                              in.neighbor.data(), in.edge_vec.data(), exchange == nullptr ? nullptr : &functions,
                              in.ids.empty() ? nullptr : in.ids.data(), wanted.field};
    double* const for_heat = wanted.heat ? heat_virials_.data() : nullptr;
    double* const features = wanted.features ? features_.data() : nullptr;
    double* const outputs = wanted.outputs ? outputs_.data() : nullptr;
    double* const derivatives = wanted.derivatives ? derivatives_.data() : nullptr;
    const equipot_results results{nullptr,  energies_.data(), forces_.data(), nullptr, virials_.data(),
                                  for_heat, features,         outputs,        derivatives};
    require(equipot_evaluate_edges(model_, &edges, &results));
    return {energies_.data(), forces_.data(), virials_.data(), for_heat, features, outputs, derivatives};
  }

  std::vector<double> uncertainties(const double* features, int64_t rows) override {
    std::vector<double> sigma(rows);
    require(equipot_energy_uncertainty(model_, rows, features, sigma.data()));
    return sigma;
  }

 private:
  // An exchange as the engine calls it.
  struct Link {
    GhostExchange* exchange;
    bool is_float;

    static void copy_to_ghosts(void* context, void* rows, int64_t num_atoms, int64_t width) {
      const Link& link = *static_cast<Link*>(context);
      if (link.is_float) link.exchange->copy_to_ghosts(static_cast<float*>(rows), num_atoms, width);
      else link.exchange->copy_to_ghosts(static_cast<double*>(rows), num_atoms, width);
    }

    static void add_to_owners(void* context, void* rows, int64_t num_atoms, int64_t width) {
      const Link& link = *static_cast<Link*>(context);
      if (link.is_float) link.exchange->add_to_owners(static_cast<float*>(rows), num_atoms, width);
      else link.exchange->add_to_owners(static_cast<double*>(rows), num_atoms, width);
    }
  };

  equipot_model* model_ = nullptr;
  std::vector<double> energies_, forces_, virials_, heat_virials_, features_, outputs_, derivatives_;
  std::vector<uint8_t> owned_;
};

// The functions of torch_model.cpp; null where the plugin was built without it, or it cannot be loaded.
const TorchFunctions* torch_functions(std::string* failure = nullptr) {
  static std::string reason;
  static const TorchFunctions* const found = []() -> const TorchFunctions* {
    Dl_info here;
    dladdr(reinterpret_cast<void*>(&open_model), &here);
    const auto library = std::filesystem::path(here.dli_fname).parent_path() / "equipottorch.so";
    if (!std::filesystem::exists(library)) {
      reason = "the plugin was built without a torch that has CUDA";
      return nullptr;
    }
    void* const handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    const auto get = handle ? reinterpret_cast<const TorchFunctions* (*)()>(dlsym(handle, "equipot_torch")) : nullptr;
    if (get == nullptr) reason = dlerror();
    return get ? get() : nullptr;
  }();
  if (failure != nullptr) *failure = reason;
  return found;
}

// Of NVIDIA GPUs that this node has; torch need not be able to use them.
bool node_has_gpu(std::string& name) {
  std::error_code none;
  for (const auto& file : std::filesystem::directory_iterator("/dev", none)) {
    name = file.path().filename().string();
    if (name.rfind("nvidia", 0) == 0 && name.size() > 6 && name.find_first_not_of("0123456789", 6) == std::string::npos)
      return true;
  }
  return false;
}

// Without loading torch on a node that has no GPU.
int num_gpus() {
  std::string name;
  const TorchFunctions* torch = node_has_gpu(name) ? torch_functions() : nullptr;
  return torch == nullptr ? 0 : torch->num_gpus();
}

}  // namespace

std::unique_ptr<Model> open_model(const std::string& path, const std::string& device) {
  if (device == "cpu") return std::make_unique<EngineModel>(path);
  std::string failure;
  const TorchFunctions* torch = torch_functions(&failure);
  if (torch == nullptr) throw std::runtime_error("device " + device + ": " + failure);
  return std::unique_ptr<Model>(torch->open(path, device));
}

std::string choose_device(const std::string& wanted, int local_rank) {
  if (wanted == "cpu") return wanted;
  const int count = num_gpus();
  if (wanted == "auto" && count == 0) return "cpu";
  if (count == 0) {
    std::string failure, name;
    if (node_has_gpu(name) && torch_functions(&failure) == nullptr)
      throw std::runtime_error("device " + wanted + ": " + failure + ". Use 'device cpu' or 'device auto'.");
    throw std::runtime_error("device " + wanted + ": there is no GPU here. Use 'device cpu' or 'device auto'.");
  }
  if (wanted.rfind("cuda:", 0) != 0) return "cuda:" + std::to_string(local_rank % count);
  if (std::stoi(wanted.substr(5)) >= count)
    throw std::runtime_error("device " + wanted + ": this node has " + std::to_string(count) + " GPUs.");
  return wanted;
}

std::string unused_gpu() {
  std::string name, failure;
  if (!node_has_gpu(name) || num_gpus() > 0) return "";
  torch_functions(&failure);
  return "this node has an NVIDIA GPU (/dev/" + name + "), which is not used (" +
         (failure.empty() ? "torch finds none" : failure) +
         "); 'device auto' takes the CPU. Build the plugin with a torch that has CUDA, or say 'device cpu'";
}

void set_num_threads(int count) { equipot_set_threads(count); }

}  // namespace equipot
