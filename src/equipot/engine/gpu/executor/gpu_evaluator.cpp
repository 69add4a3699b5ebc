#include "gpu_evaluator.h"

#include <cstdlib>
#include <mutex>
#include <optional>

#include "gpu_exchange.h"
#include "gpu_geometry.h"
#include "gpu_neighbors.h"
#include "gpu_step.h"
#include "sorted_edges.h"

namespace equipot {
namespace {

using Buffer = GpuMemory::Buffer;

// Edges on the device.
struct DeviceEdges {
  int64_t num_atoms = 0, num_computed = 0, num_edges = 0;
  const void *center = nullptr, *neighbor = nullptr, *first_edge = nullptr, *order = nullptr, *start = nullptr;
  const double* vec = nullptr;
  const void* close = nullptr;  // (2) of GpuNeighbors; null: that has been looked at
  const std::vector<int64_t>* first_on_host = nullptr;
  GhostExchange* exchange = nullptr;
  GpuInnerFirst inner_first;  // with an exchange
};

// Atoms with their edges, which are evaluated together.
struct Part {
  int64_t first_atom, last_atom, first_edge, last_edge;

  int64_t num_atoms() const { return last_atom - first_atom; }
  int64_t num_edges() const { return last_edge - first_edge; }
};

// Of a strictly local model, whose arrays have rows for edges: 4.7 GB with 9 kB each (Allegro, l_max 2, 32 channels). More would
// make no GPU busier.
int64_t most_edges_at_once = 1 << 19;

class GpuEvaluator : public Evaluator {
 public:
  GpuEvaluator(const Program& program, std::shared_ptr<GpuDevice> device)
      : device_(std::move(device)),
        model_(*device_, program.json["dtype"].text == "float32", int64_t(program.json["species"].items.size())),
        scale_(model_.memory().keep(program.values<double>("scale"))),
        shift_(model_.memory().keep(program.values<double>("shift"))), neighbors_(model_, program.json["cutoff"].number) {
    const bool has_energy = !program.json.has("energy") || program.json["energy"].number != 0;
    if (!has_energy || program.json.has("outputs"))
      throw std::runtime_error("it predicts more than energies and forces (model.outputs), which the engine does on a CPU only: use the device cpu");
    make_geometry(program);
    GpuReader reader{{program, {}}, model_, model_.num_types(), dim_sh_};
    std::vector<bool> exchanges;
    for (const Json& json : program.json["steps"].items) {
      auto step = make_message_passing(reader, json);
      if (step) by_parts_ = false;
      else step = make_strictly_local(reader, json);
      if (!step)
        throw std::runtime_error("its step '" + json["do"].text + "' runs on a CPU only: use the device cpu");
      const std::string& kind = json["do"].text;
      message_passing_ = message_passing_ || kind == "interaction" || kind == "exchange";
      exchanges.push_back(kind == "exchange");
      bool varies = false;
      for (const Json& name : json["inputs"].items) {
        step->inputs.push_back(reader.find(name.text));
        varies = varies || steps_[size_t(step->inputs.back())]->differentiable;
      }
      for (const char* passing : {"linear", "element_factors", "silu", "exchange"})
        if (kind == passing) step->differentiable = varies;
      if (kind == "embedding") step->differentiable = false;
      step->number = step->output = int(steps_.size());
      reader.names.push_back(json["out"].text);
      steps_.push_back(std::move(step));
    }
    find_uses(exchanges);
    model_.rows("linear_rows");  // compiles all of its text
    model_.memory().synchronize();  // weights are there
  }

  void evaluate(const Edges& given, const Results& results) override {
    const std::lock_guard guard(in_use_);
    refuse(given.num_atoms, given.types, results);
    if (given.field != nullptr) throw std::invalid_argument("energies in a field are computed on a CPU only: use the device cpu");
    if (given.exchange != nullptr && given.exchange->num_owned() > given.num_atoms)
      throw std::invalid_argument("more atoms are owned than there are");
    check_range(given.center, given.num_edges, given.num_atoms);
    check_range(given.neighbor, given.num_edges, given.num_atoms);
    const SortedEdges edges(given);
    DeviceEdges here;
    here.num_atoms = given.num_atoms, here.num_computed = num_computed(given), here.exchange = given.exchange;
    here.num_edges = edges.first[size_t(here.num_computed)];
    const EdgeGroups by_neighbor = group_edges(edges.neighbor, here.num_edges, given.num_atoms);
    GpuMemory& memory = model_.memory();
    const GpuMemory::Evaluation evaluation(memory);
    const auto numbers = size_t(here.num_edges) * sizeof(int64_t);
    const Buffer center = memory.up(edges.center, numbers), neighbor = memory.up(edges.neighbor, numbers);
    const Buffer first = memory.up(edges.first), order = memory.up(by_neighbor.edges), start = memory.up(by_neighbor.start);
    const Buffer vec = memory.up(edges.vec, size_t(here.num_edges) * 3 * sizeof(double));
    here.center = center.get(), here.neighbor = neighbor.get(), here.first_edge = first.get();
    here.order = order.get(), here.start = start.get(), here.vec = static_cast<const double*>(vec.get());
    here.first_on_host = &edges.first;
    GpuAtomOrder inner_first;
    if (given.exchange != nullptr && message_passing_) {
      std::vector<bool> at_border(size_t(here.num_computed), false);
      for (int64_t e = 0; e < here.num_edges; ++e)
        if (edges.neighbor[e] >= here.num_computed) at_border[size_t(edges.center[e])] = true;
      inner_first.set(model_, at_border);
      here.inner_first = inner_first.get();
    }
    std::optional<Buffer> owned;
    if (given.owned != nullptr) owned = memory.up(given.owned, size_t(given.num_atoms));
    send_types(here.num_atoms, here.num_computed, given.types);
    run(here, owned ? static_cast<const unsigned char*>(owned->get()) : nullptr, results);
  }

  bool finds_neighbors() const override { return true; }

  void evaluate_structure(const Structure& structure, const Results& results) override {
    const std::lock_guard guard(in_use_);
    refuse(structure.num_atoms, structure.types, results);
    const GpuMemory::Evaluation evaluation(model_.memory());
    send_types(structure.num_atoms, structure.num_atoms, structure.types);
    neighbors_.update(structure, static_cast<const long long*>(type_rows_.get()));
    run(found_edges(structure.num_atoms, structure.num_atoms), nullptr, results);
    if (too_close_) neighbors_.refuse(structure);
  }

  void evaluate_domain(const Domain& domain, const int64_t* ids, const Results& results) override {
    const std::lock_guard guard(in_use_);
    if (!domain.moved) neighbors_.forget();  // now: what follows may fail
    refuse(domain.num_atoms, domain.types, results);
    const GpuMemory::Evaluation evaluation(model_.memory());
    send_types(domain.num_atoms, domain.num_owned, domain.types);
    neighbors_.update(domain, ids, static_cast<const long long*>(type_rows_.get()));
    DeviceEdges edges = found_edges(domain.num_atoms, domain.num_owned);
    edges.exchange = domain.exchange, edges.inner_first = neighbors_.inner_first();
    run(edges, nullptr, results);
    if (too_close_) neighbors_.refuse(domain, ids);
  }

  int64_t feature_width() const override { return 0; }
  int64_t output_width() const override { return 0; }
  int64_t derivative_width() const override { return 0; }
  bool has_energy() const override { return true; }
  bool feels_field() const override { return false; }
  bool adds_up() const override { return true; }
  void deviations(int64_t, const double*, double*) const override {}  // of features that there are none of

 private:
  void make_geometry(const Program& program) {
    const Harmonics<double> harmonics(program);
    dim_sh_ = harmonics.dim;
    GpuKink kink;
    if (program.json.has("kink")) {
      const Json& json = program.json["kink"];
      kink = {json["at"].number, json["below"].number, json["above"].number};
    }
    const bool scaled = program.json.has("pair_scales");
    if (scaled) pair_scales_ = model_.keep(program.values<double>(program.json["pair_scales"].text));
    std::optional<Zbl> zbl;
    if (program.json.has("zbl")) {
      zbl.emplace(program.json["zbl"], model_.num_types());
      numbers_ = model_.memory().keep(zbl->numbers), radii_ = model_.memory().keep(zbl->radii);
      if (!zbl->reach.empty()) reach_ = model_.memory().keep(zbl->reach);
    }
    zbl_ = zbl.has_value();
    const std::string text = gpu_geometry_code(model_.single(), harmonics, kink, scaled, zbl ? &*zbl : nullptr);
    edge_forward_ = device_->compile(text, "edge_forward"), edge_backward_ = device_->compile(text, "edge_backward");
  }

  // Which step reads each array last, and which arrays are needed on the way back; `exchanges`: which come from one.
  void find_uses(const std::vector<bool>& exchanges) {
    last_use_.assign(steps_.size(), 0), read_back_.assign(steps_.size(), false);
    std::vector<bool> used(steps_.size(), false);
    for (const auto& step : steps_) {
      const auto first = step->inputs.empty() ? 0 : size_t(step->inputs[0]);
      step->sends_home = step->works_beside_exchange() && exchanges[first] && !used[first] && steps_[first]->differentiable;
      for (const int input : step->inputs) used[size_t(input)] = true;
    }
    for (size_t s = 0; s < steps_.size(); ++s) {
      last_use_[s] = std::max(last_use_[s], s);
      for (const int input : steps_[s]->inputs) last_use_[size_t(input)] = s;
      for (const int read : steps_[s]->read_back()) read_back_[size_t(read)] = true;
    }
    last_use_.back() = steps_.size();
  }

  void refuse(int64_t num_atoms, const int64_t* types, const Results& results) const {
    const auto only_on_cpu = [](bool wanted, const char* what) {
      if (wanted) throw std::invalid_argument(std::string(what) + " are computed on a CPU only: use the device cpu");
    };
    only_on_cpu(results.features != nullptr, "features, and uncertainties,");
    only_on_cpu(results.outputs != nullptr || results.derivatives != nullptr, "outputs beside energy and forces");
    only_on_cpu(results.atom_heat_virials != nullptr && message_passing_, "heat virials of a model that passes messages");
    for (int64_t i = 0; i < num_atoms; ++i)
      if (types[i] < 0 || types[i] >= model_.num_types())
        throw std::invalid_argument("atom " + std::to_string(i) + " has type " + std::to_string(types[i]) +
                                    ", the model knows types 0 to " + std::to_string(model_.num_types() - 1));
  }

  // The first atoms, of which energies must be known.
  int64_t num_computed(const Edges& given) const {
    if (given.exchange != nullptr) return given.exchange->num_owned();
    int64_t last = given.num_atoms;
    if (!message_passing_ && given.owned != nullptr)
      while (last > 0 && !given.owned[last - 1]) --last;
    return last;
  }

  DeviceEdges found_edges(int64_t num_atoms, int64_t num_computed) const {
    return {.num_atoms = num_atoms, .num_computed = num_computed, .num_edges = neighbors_.num_edges(),
            .center = neighbors_.center(), .neighbor = neighbors_.neighbor(), .first_edge = neighbors_.first_edge(),
            .order = neighbors_.order(), .start = neighbors_.start(), .vec = neighbors_.vec(), .close = neighbors_.close(),
            .first_on_host = &neighbors_.first_edge_on_host()};
  }

  // Types, and the order of the computed atoms by them, are sent only when they are others than before.
  void send_types(int64_t num_atoms, int64_t num_computed, const int64_t* types) {
    if (num_computed == typed_ && std::equal(types_.begin(), types_.end(), types, types + num_atoms)) return;
    typed_ = -1;
    types_.assign(types, types + num_atoms);
    type_rows_ = model_.memory().keep(types_);
    const EdgeGroups groups = group_edges(types, num_computed, model_.num_types());
    std::vector<long long> order;
    for (int64_t type = 0; type < model_.num_types(); ++type) {
      order.insert(order.end(), groups.edges.begin() + groups.start[size_t(type)],
                   groups.edges.begin() + groups.start[size_t(type) + 1]);
      while (order.size() % gpu_tile_rows != 0) order.push_back(-1);
    }
    padded_ = int64_t(order.size());
    by_type_ = model_.memory().keep(order);
    typed_ = num_computed;  // last: memory may be short
  }

  void make_room_to_count(int64_t num_edges) {
    if (num_edges <= counted_) return;
    counted_ = 0;
    const int64_t count = num_edges + num_edges / 16;
    counting_ = model_.memory().keep(size_t(count) * sizeof(long long));
    counted_ = count;
    GpuRowArrays<void> arrays{};
    arrays.out = counting_.get(), arrays.rows = counted_, arrays.width = 1;
    device_->launch(model_.rows("count_up"), {(counted_ + 127) / 128, 1, 1}, 128, &arrays);
  }

  GpuContext context(const DeviceEdges& edges) {
    GpuContext c{model_};
    const auto indices = [](const void* address) { return static_cast<const long long*>(address); };
    c.num_atoms = edges.num_atoms, c.num_computed = edges.num_computed, c.num_edges = edges.num_edges;
    c.dim_sh = dim_sh_, c.num_types = model_.num_types(), c.types = c.neighbor_types = indices(type_rows_.get());
    c.center = indices(edges.center), c.neighbor = indices(edges.neighbor), c.first_edge = indices(edges.first_edge);
    c.order = indices(edges.order), c.start = indices(edges.start), c.counting = indices(counting_.get());
    c.by_type = indices(by_type_.get()), c.padded = padded_;
    c.values.resize(steps_.size()), c.grads.resize(steps_.size()), c.kept.resize(steps_.size());
    c.values_rows.resize(steps_.size()), c.values_width.resize(steps_.size());
    if (exchange_.exists()) c.exchange = &exchange_, c.inner_first = edges.inner_first;
    return c;
  }

  std::vector<Part> parts_of(const DeviceEdges& edges) const {
    const Part all{0, edges.num_computed, 0, edges.num_edges};
    if (!by_parts_ || edges.num_edges <= most_edges_at_once) return {all};
    const std::vector<int64_t>& first = *edges.first_on_host;
    std::vector<Part> parts;
    for (int64_t begin = 0, i = 0; i < edges.num_computed; ++i)
      if (i + 1 == edges.num_computed || first[size_t(i) + 2] - first[size_t(begin)] > most_edges_at_once) {
        parts.push_back({begin, i + 1, first[size_t(begin)], first[size_t(i) + 1]});
        begin = i + 1;
      }
    return parts;
  }

  // Where rows of `width` numbers of edges begin in the part.
  void* rows_of(const Part& part, const GpuArray& array) const {
    return model_.offset(array.data(), part.first_edge * array.width);
  }

  // The part as if there were nothing else: its atoms and edges are counted from 0.
  void narrow(GpuContext& c, const Part& part) const {
    const auto shifted = [&](const long long* from, int64_t count, int64_t by) {
      Buffer to = c.model.memory().take(size_t(count) * sizeof(long long));
      GpuRowArrays<void> arrays{};
      arrays.index = from, arrays.out = to.get(), arrays.more = by;
      c.run("shift_down", arrays, count, 1);
      return to;
    };
    c.own_center = shifted(c.center + part.first_edge, part.num_edges(), part.first_atom);
    c.own_first_edge = shifted(c.first_edge + part.first_atom, part.num_atoms() + 1, part.first_edge);
    c.center = static_cast<const long long*>(c.own_center.get());
    c.first_edge = static_cast<const long long*>(c.own_first_edge.get());
    c.neighbor += part.first_edge, c.types += part.first_atom;
    c.num_atoms = c.num_computed = part.num_atoms(), c.num_edges = part.num_edges();
  }

  // If two atoms are too close, nothing is written.
  void run(const DeviceEdges& edges, const unsigned char* owned, const Results& results) {
    GpuMemory& memory = model_.memory();
    make_room_to_count(edges.num_edges);
    const GpuExchange::Use exchanging(exchange_, message_passing_ ? edges.exchange : nullptr);
    const GpuContext all = context(edges);
    const GpuArray length = all.make(all.num_edges, 1), sh = all.make(all.num_edges, dim_sh_);
    GpuEdgeArrays<void> of_edges{};
    of_edges.vec = edges.vec, of_edges.center = all.center, of_edges.neighbor = all.neighbor, of_edges.types = all.types;
    of_edges.owned = owned, of_edges.pair_scales = pair_scales_.get(), of_edges.length = length.data(), of_edges.sh = sh.data();
    of_edges.numbers = doubles(numbers_), of_edges.radii = doubles(radii_), of_edges.reach = doubles(reach_);
    of_edges.num_edges = all.num_edges, of_edges.num_types = model_.num_types();
    launch_edges(edge_forward_, of_edges);

    const auto n = size_t(all.num_atoms);
    const size_t partials = (n + gpu_atoms_of_partial - 1) / gpu_atoms_of_partial;
    const Buffer energies = memory.take(n * sizeof(double)), forces = memory.take(3 * n * sizeof(double));
    const Buffer virials = memory.take(9 * n * sizeof(double)), sums = memory.take(10 * partials * sizeof(double));
    GpuArray geometry;
    for (const Part& part : parts_of(edges)) {
      GpuContext c = context(edges);
      c.length = rows_of(part, length), c.sh = rows_of(part, sh);
      if (part.num_atoms() < all.num_computed) narrow(c, part);
      run_forward(c);
      GpuAtomArrays<void> of_part{};
      const int last = int(steps_.size()) - 1;
      of_part.rows = c.value(last).data(), of_part.slopes = c.target(last, c.num_computed).array.data();
      of_part.types = c.types, of_part.owned = owned == nullptr ? nullptr : owned + part.first_atom;
      of_part.scale = doubles(scale_), of_part.shift = doubles(shift_), of_part.energies = doubles(energies) + part.first_atom;
      // The last part has the atoms that are not computed, too.
      of_part.num_atoms = (part.last_atom == all.num_computed ? all.num_atoms : part.last_atom) - part.first_atom;
      of_part.num_computed = c.num_computed;
      launch_atoms("readout", of_part, of_part.num_atoms);
      if (!geometry.exists()) {
        geometry = all.make(all.num_edges, dim_sh_ + 1);
        all.zero(geometry);
      }
      c.geometry = rows_of(part, geometry);
      run_backward(c);
    }
    GpuAtomArrays<void> of_atoms{};
    of_atoms.types = all.types, of_atoms.energies = doubles(energies), of_atoms.forces = doubles(forces);
    of_atoms.virials = doubles(virials), of_atoms.partials = doubles(sums);
    of_atoms.num_atoms = all.num_atoms, of_atoms.num_computed = all.num_computed;
    {
      const Buffer gradient = memory.take(size_t(all.num_edges) * 3 * sizeof(double));
      Buffer pairs;
      if (zbl_) pairs = memory.take(size_t(all.num_edges) * sizeof(double));
      of_edges.geometry = geometry.data(), of_edges.gradient = doubles(gradient), of_edges.pair_energy = doubles(pairs);
      launch_edges(edge_backward_, of_edges);
      of_atoms.first_edge = all.first_edge, of_atoms.order = all.order, of_atoms.start = all.start, of_atoms.vec = edges.vec;
      of_atoms.gradient = doubles(gradient), of_atoms.pair_energy = doubles(pairs);
      launch_atoms("atom_sums", of_atoms, 3 * all.num_atoms);
    }
    if (results.energy != nullptr || results.virial != nullptr) launch_atoms("add_atoms", of_atoms, 10 * int64_t(partials));
    fetch(n, edges.close, energies, forces, virials, sums, results);
  }

  static double* doubles(const Buffer& buffer) { return static_cast<double*>(buffer.get()); }

  void launch_edges(void* kernel, GpuEdgeArrays<void>& arrays) {
    if (arrays.num_edges > 0) device_->launch(kernel, {(arrays.num_edges + 127) / 128, 1, 1}, 128, &arrays);
  }

  void launch_atoms(const char* name, GpuAtomArrays<void>& arrays, int64_t threads) {
    if (threads > 0) device_->launch(model_.rows(name), {(threads + 127) / 128, 1, 1}, 128, &arrays);
  }

  void run_forward(GpuContext& c) const {
    for (size_t s = 0; s < steps_.size(); ++s) {
      for (const int input : steps_[s]->inputs)
        if (input == c.coming && !(steps_[s]->works_beside_exchange() && input == steps_[s]->inputs[0])) c.arrive();
      steps_[s]->forward(c);
      for (const int input : steps_[s]->inputs)
        if (last_use_[size_t(input)] == s && !read_back_[size_t(input)]) c.value(input) = {};
    }
  }

  void run_backward(GpuContext& c) const {
    for (size_t s = steps_.size(); s-- > 0;) {
      if (steps_[s]->differentiable && c.grads[s].exists()) steps_[s]->backward(c);
      c.grads[s] = {}, c.values[s] = {};
      c.kept[s].clear();
    }
  }

  // The one time that the host waits.
  void fetch(size_t n, const void* close, const Buffer& energies, const Buffer& forces, const Buffer& virials,
             const Buffer& sums, const Results& results) {
    struct Copy {
      double* to;
      const void* from;
      size_t count;
      void* staged = nullptr;
    };
    const size_t partials = (n + gpu_atoms_of_partial - 1) / gpu_atoms_of_partial;
    double found_close[2] = {};
    std::vector<double> parts(results.energy != nullptr || results.virial != nullptr ? 10 * partials : 0);
    Copy copies[] = {{close == nullptr ? nullptr : found_close, close, 2},
                     {results.atom_energies, energies.get(), n},
                     {results.forces, forces.get(), 3 * n},
                     {results.atom_virials, virials.get(), 9 * n},
                     {results.atom_heat_virials, virials.get(), 9 * n},
                     {parts.empty() ? nullptr : parts.data(), sums.get(), 10 * partials}};
    for (Copy& copy : copies) {
      if (copy.to == nullptr || copy.count == 0) continue;
      copy.staged = model_.memory().host(copy.count * sizeof(double));
      model_.memory().down(copy.staged, copy.from, copy.count * sizeof(double));
    }
    model_.memory().synchronize();
    if (copies[0].staged != nullptr) std::memcpy(found_close, copies[0].staged, sizeof found_close);
    too_close_ = found_close[0] != 0;
    if (too_close_) return;
    if (results.closer != nullptr) *results.closer = found_close[1] != 0;
    for (const Copy& copy : copies)
      if (copy.staged != nullptr) std::memcpy(copy.to, copy.staged, copy.count * sizeof(double));
    double total[10] = {};
    for (size_t k = 0; k < parts.size(); ++k) total[k % 10] += parts[k];
    if (results.energy != nullptr) *results.energy = total[0];
    if (results.virial != nullptr) std::copy_n(total + 1, 9, results.virial);
  }

  std::shared_ptr<GpuDevice> device_;
  int64_t dim_sh_ = 0;
  GpuModel model_;
  Buffer scale_, shift_;
  GpuNeighbors neighbors_;
  Buffer pair_scales_, numbers_, radii_, reach_;
  void *edge_forward_ = nullptr, *edge_backward_ = nullptr;
  bool message_passing_ = false, by_parts_ = true, zbl_ = false;
  std::vector<std::unique_ptr<GpuStep>> steps_;
  std::vector<size_t> last_use_;
  std::vector<bool> read_back_;
  // Of the evaluation before.
  bool too_close_ = false;
  GpuExchange exchange_{model_};
  std::vector<int64_t> types_;
  int64_t typed_ = -1, padded_ = 0, counted_ = 0;
  Buffer type_rows_, by_type_, counting_;
  std::mutex in_use_;
};

std::shared_ptr<GpuDevice> emulator;

}  // namespace

std::unique_ptr<Evaluator> make_gpu_evaluator(const Program& program, std::shared_ptr<GpuDevice> device) {
  return std::make_unique<GpuEvaluator>(program, std::move(device));
}

std::shared_ptr<GpuDevice> open_gpu(const std::string& name) {
  int ordinal = 0;
  const size_t digits = name.find_first_not_of("0123456789", 5);
  if (name.size() > 5 && name.size() < 12 && name.compare(0, 5, "cuda:") == 0 && digits == std::string::npos)
    ordinal = std::atoi(name.c_str() + 5);
  else if (name != "cuda")
    throw std::invalid_argument("the device '" + name + "' is not known, expected cpu, cuda or cuda:NUMBER");
  return emulator ? emulator : driver_device(ordinal);
}

int count_gpus() { return emulator ? 1 : count_driver_devices(); }

}  // namespace equipot

// For tests; 0: as many as there were.
extern "C" __attribute__((visibility("default"))) void equipot_set_gpu_edges_at_once(int64_t edges) {
  equipot::most_edges_at_once = edges > 0 ? edges : 1 << 19;
}

// For tests: null is NVIDIA's driver again. The device must outlive the models that are opened on it.
extern "C" __attribute__((visibility("default"))) void equipot_set_gpu_device(equipot::GpuDevice* device) {
  equipot::emulator = {device, [](equipot::GpuDevice*) {}};
}
