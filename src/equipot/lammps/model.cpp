#include "model.h"

#include <dlfcn.h>
#include <equipot.h>

#include <algorithm>
#include <filesystem>
#include <sstream>
#include <stdexcept>

#include "build_info.h"

namespace equipot {
namespace {

void require(equipot_status status) {
  if (status != EQUIPOT_OK) throw std::runtime_error(equipot_message());
}

class EngineModel : public Model {
 public:
  EngineModel(const std::string& path, const std::string& device) : on_gpu_(device != "cpu") {
    require(equipot_open_on(path.c_str(), device.c_str(), &model_));
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

  bool takes_places() const override { return on_gpu_; }

  Evaluation evaluate(const Neighborhood& in, GhostExchange* exchange, Wanted wanted) override {
    const int64_t num_atoms = in.num_atoms();
    Evaluation found;
    // Without atoms too an address: what is wanted decides on exchanges, and all ranks take part in them.
    const auto room = [&](bool needed, std::vector<double>& rows, int64_t width) -> double* {
      if (!needed) return nullptr;
      rows.resize(width * std::max<int64_t>(num_atoms, 1));
      return rows.data();
    };
    double* const energies = room(wanted.atom_energies, energies_, 1);
    double* const forces = room(true, forces_, 3);
    double* const virials = room(wanted.atom_virials, virials_, 9);
    double* const for_heat = room(wanted.heat, heat_virials_, 9);
    double* const features = room(wanted.features, features_, facts_.feature_width);
    double* const outputs = room(wanted.outputs, outputs_, facts_.output_width);
    double* const derivatives = room(wanted.derivatives, derivatives_, facts_.derivative_width);
    int32_t closer = 0;
    const equipot_results results{&found.energy, energies, forces,  found.virial.data(), virials,
                                  for_heat,      features, outputs, derivatives,         &closer};
    equipot_exchange functions{};
    if (exchange != nullptr)
      functions = {exchange, in.num_owned, static_cast<int64_t>(exchange->sent().size()), exchange->sent().data(),
                   exchange->is_gpu_aware(), to_ghosts, to_owners};
    const equipot_exchange* const link_or_none = exchange == nullptr ? nullptr : &functions;
    const int64_t* const ids = in.ids.empty() ? nullptr : in.ids.data();
    if (in.places) {
      const Places& at = *in.places;
      const equipot_domain domain{num_atoms, in.num_owned, in.atom_types.data(), at.number, at.num_local,
                                  at.positions, at.atoms, at.moved, link_or_none, ids,
                                  at.watched.empty() ? nullptr : at.watched.data()};
      require(equipot_evaluate_domain(model_, &domain, &results));
      found.closer = closer != 0;
    } else {
      owned_.resize(num_atoms);
      for (int64_t i = 0; i < num_atoms; ++i) owned_[i] = i < in.num_owned;
      const equipot_edges edges{num_atoms, in.num_edges(), in.atom_types.data(), owned_.data(), in.center.data(),
                                in.neighbor.data(), in.edge_vec.data(), link_or_none, ids, wanted.field};
      require(equipot_evaluate_edges(model_, &edges, &results));
    }
    found.forces = forces, found.atom_energies = energies, found.atom_virials = virials, found.atom_heat_virials = for_heat;
    found.features = features, found.outputs = outputs, found.derivatives = derivatives;
    return found;
  }

  std::vector<double> uncertainties(const double* features, int64_t rows) override {
    std::vector<double> sigma(rows);
    require(equipot_energy_uncertainty(model_, rows, features, sigma.data()));
    return sigma;
  }

 private:
  static void to_ghosts(void* exchange, const void* rows, void* ghosts, int64_t row_bytes) {
    static_cast<GhostExchange*>(exchange)->to_ghosts(rows, ghosts, row_bytes);
  }

  static void to_owners(void* exchange, const void* ghosts, void* rows, int64_t row_bytes) {
    static_cast<GhostExchange*>(exchange)->to_owners(ghosts, rows, row_bytes);
  }

  const bool on_gpu_;
  equipot_model* model_ = nullptr;
  std::vector<double> energies_, forces_, virials_, heat_virials_, features_, outputs_, derivatives_;
  std::vector<uint8_t> owned_;
};

// Of NVIDIA GPUs that this node has; there need not be a driver that works.
bool node_has_gpu(std::string& name) {
  std::error_code none;
  for (const auto& file : std::filesystem::directory_iterator("/dev", none)) {
    name = file.path().filename().string();
    if (name.rfind("nvidia", 0) == 0 && name.size() > 6 && name.find_first_not_of("0123456789", 6) == std::string::npos)
      return true;
  }
  return false;
}

// Opens NVIDIA's compilers for the engine, which takes what suits the driver of those that this process has opened: where
// `equipot lammps build` found them, and beside the package that the plugin came with.
void open_nvrtc() {
  std::istringstream files(EQUIPOT_NVRTC);
  for (std::string file; std::getline(files, file, ':');) dlopen(file.c_str(), RTLD_LAZY | RTLD_LOCAL);
  Dl_info here;
  dladdr(reinterpret_cast<void*>(&open_model), &here);
  std::error_code none;
  const auto packages = std::filesystem::path(here.dli_fname).parent_path() / "../../nvidia";
  for (const auto& package : std::filesystem::directory_iterator(packages, none))
    for (const auto& file : std::filesystem::directory_iterator(package.path() / "lib", none))
      if (file.path().filename().string().rfind("libnvrtc.so", 0) == 0) dlopen(file.path().c_str(), RTLD_LAZY | RTLD_LOCAL);
}

struct Gpus {
  int count;
  std::string missing;  // why there is none
};

const Gpus& gpus() {
  static const Gpus found = [] {
    open_nvrtc();
    const int count = equipot_num_gpus();
    std::string missing = count > 0 ? "" : equipot_message();
    if (missing.rfind("equipot: ", 0) == 0) missing.erase(0, 9);
    return Gpus{count, missing};
  }();
  return found;
}

}  // namespace

std::unique_ptr<Model> open_model(const std::string& path, const std::string& device) {
  return std::make_unique<EngineModel>(path, device);
}

std::string choose_device(const std::string& wanted, int local_rank) {
  if (wanted == "cpu") return wanted;
  const auto& [count, missing] = gpus();
  if (wanted == "auto" && count == 0) return "cpu";
  if (count == 0) throw std::runtime_error("device " + wanted + ": " + missing + ". 'device auto' takes the CPU then.");
  if (wanted.rfind("cuda:", 0) != 0) return "cuda:" + std::to_string(local_rank % count);
  if (std::stoi(wanted.substr(5)) >= count)
    throw std::runtime_error("device " + wanted + ": this node has " + std::to_string(count) + " GPUs.");
  return wanted;
}

std::string unused_gpu() {
  std::string name;
  if (!node_has_gpu(name) || gpus().count > 0) return "";
  return "this node has an NVIDIA GPU (/dev/" + name + "), which is not used: " + gpus().missing +
         ". 'device auto' takes the CPU; say 'device cpu' if that is meant";
}

void set_num_threads(int count) { equipot_set_threads(count); }

}  // namespace equipot
