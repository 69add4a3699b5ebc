// The functions of equipot.h: arguments are checked here, exceptions end here.
#include "equipot.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "capsule.h"
#include "neighbors.h"
#include "opened.h"
#include "threads.h"

using namespace equipot;

namespace {

thread_local std::string message;

struct WrongResult : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class F>
equipot_status guarded(const F& work) {
  try {
    work();
    return EQUIPOT_OK;
  } catch (const BadFile& error) {
    message = error.what();
    return EQUIPOT_BAD_FILE;
  } catch (const WrongResult& error) {
    message = error.what();
    return EQUIPOT_WRONG_RESULT;
  } catch (const std::length_error&) {
    message = "there are more atoms or edges than memory can hold";
    return EQUIPOT_BAD_ARGUMENT;
  } catch (const std::logic_error& error) {  // invalid_argument, out_of_range, domain_error
    message = error.what();
    return dynamic_cast<const std::domain_error*>(&error) ? EQUIPOT_BAD_STRUCTURE : EQUIPOT_BAD_ARGUMENT;
  } catch (const std::bad_alloc&) {
    message = "not enough memory";
  } catch (const std::exception& error) {
    message = error.what();
  } catch (...) {
    message = "unknown error";
  }
  return EQUIPOT_FAILED;
}

void require(const void* pointer, const char* name) {
  if (pointer == nullptr) throw std::invalid_argument(std::string(name) + " is null");
}

class Exchange : public GhostExchange {
 public:
  explicit Exchange(const equipot_exchange& functions) : functions_(functions) {
    if (functions.to_ghosts == nullptr || functions.to_owners == nullptr || functions.num_owned < 0 || functions.num_sent < 0)
      throw std::invalid_argument("the exchange lacks a function, or its num_owned or num_sent is negative");
    if (functions.num_sent > 0) require(functions.sent, "the exchange's sent");
    for (const int64_t atom : sent())
      if (atom < 0 || atom >= functions.num_owned)
        throw std::invalid_argument("the exchange sends atom " + std::to_string(atom) + ", of " +
                                    std::to_string(functions.num_owned) + " that are owned");
  }
  int64_t num_owned() const override { return functions_.num_owned; }
  std::span<const int64_t> sent() const override { return {functions_.sent, size_t(functions_.num_sent)}; }
  bool is_gpu_aware() const override { return functions_.gpu_aware != 0; }
  void to_ghosts(const void* rows, void* ghosts, int64_t row_bytes) override {
    functions_.to_ghosts(functions_.context, rows, ghosts, row_bytes);
  }
  void to_owners(const void* ghosts, void* rows, int64_t row_bytes) override {
    functions_.to_owners(functions_.context, ghosts, rows, row_bytes);
  }

 private:
  equipot_exchange functions_;
};

void require_uncertainty(const equipot_model& model) {
  if (model.evaluator->feature_width() == 0 && model.on_gpu)
    throw std::invalid_argument(model.path + ": uncertainties are computed on a CPU only. Open it on the device cpu");
  if (model.evaluator->feature_width() == 0)
    throw std::invalid_argument(model.path + ": deployed without an uncertainty. Run 'equipot deploy --uncertainty'");
}

// Of the reference structures, from sums of their features, beside those in the file; the end of a line about them.
std::string check_uncertainties(const equipot_model& model, const std::vector<double>& sums, bool& right) {
  const auto references = Json::parse(model.uncertainty)["references"].numbers<double>();
  std::vector<double> found(sums.size() / size_t(model.evaluator->feature_width()));
  model.evaluator->deviations(int64_t(found.size()), sums.data(), found.data());
  double worst = found.size() == references.size() ? 0 : INFINITY;
  for (size_t n = 0; n < std::min(found.size(), references.size()); ++n) {
    const double off = std::abs(found[n] - references[n]) / std::max(references[n], 1e-9);
    worst = std::isfinite(off) ? std::max(worst, off) : INFINITY;
  }
  // As `compare_uncertainties` of deploy/uncertainty.py.
  right = right && worst <= (model.description.bytes_per_number == 4 ? 1e-2 : 1e-7);
  return ", uncertainties by " + short_text(100 * worst) + " %";
}

void require_finite(const Results& sums) {
  double total = sums.energy == nullptr ? 0 : *sums.energy;
  for (int k = 0; k < 9 && sums.virial != nullptr; ++k) total += sums.virial[k];
  if (!std::isfinite(total))
    throw WrongResult("the energy or the virial is not finite: the structure is far from what the model was trained on, or the "
                      "model is broken");
}

// Calls work(results) with what is wanted of the evaluator, and adds up the rest.
template <class F>
void evaluate(equipot_model& model, int64_t num_atoms, const double* field, const equipot_results& results,
              const int64_t* ids, const F& work) {
  std::vector<double> energies, virials;
  Results to{results.atom_energies, results.forces, results.atom_virials, results.atom_heat_virials, results.features,
             results.outputs, results.derivatives, nullptr, nullptr, results.closer};
  const int64_t width = model.evaluator->output_width(), derivatives = model.evaluator->derivative_width();
  if (to.features != nullptr) require_uncertainty(model);
  if (to.outputs != nullptr && width == 0)
    throw std::invalid_argument(model.path + ": it predicts energies and forces only (no model.outputs)");
  if (to.derivatives != nullptr && derivatives == 0)
    throw std::invalid_argument(model.path + ": it has no outputs that are derivatives (derivative_of)");
  if (field != nullptr && !model.evaluator->feels_field())
    throw std::invalid_argument(model.path + ": its energy does not depend on an electric field (model.field)");
  const bool adds_up = model.evaluator->adds_up();
  if (adds_up) to.energy = results.energy, to.virial = results.virial;
  if (results.energy != nullptr && to.atom_energies == nullptr && !adds_up) {
    energies.resize(size_t(num_atoms));
    to.atom_energies = energies.data();
  }
  if (results.virial != nullptr && to.atom_virials == nullptr && !adds_up) {
    virials.resize(size_t(9 * num_atoms));
    to.atom_virials = virials.data();
  }
  work(to);
  double energy = 0, virial[9] = {}, trace = 0;
  for (int64_t i = 0; i < num_atoms; ++i) {
    if (to.atom_energies != nullptr) energy += to.atom_energies[i];
    if (results.virial != nullptr && !adds_up)
      for (int k = 0; k < 9; ++k) virial[k] += to.atom_virials[9 * i + k];
    if (to.atom_virials != nullptr) trace += to.atom_virials[9 * i] + to.atom_virials[9 * i + 4] + to.atom_virials[9 * i + 8];
    if (const double* heat = to.atom_heat_virials) trace += heat[9 * i] + heat[9 * i + 4] + heat[9 * i + 8];
    const double force = to.forces == nullptr ? 0 : to.forces[3 * i] + to.forces[3 * i + 1] + to.forces[3 * i + 2];
    double output = 0;
    for (int64_t k = 0; k < width && to.outputs != nullptr; ++k) output += to.outputs[width * i + k];
    for (int64_t k = 0; k < derivatives && to.derivatives != nullptr; ++k) output += to.derivatives[derivatives * i + k];
    if (!std::isfinite(energy) || !std::isfinite(force) || !std::isfinite(trace) || !std::isfinite(output))
      throw WrongResult("the model's results are not finite for atom " + std::to_string(ids == nullptr ? i : ids[i]) +
                        ": the structure is far from what the model was trained on, or the model is broken");
  }
  if (adds_up) return require_finite(to);
  if (results.energy != nullptr) *results.energy = energy;
  if (results.virial != nullptr) std::copy_n(virial, 9, results.virial);
}

void evaluate(equipot_model& model, const Edges& edges, const equipot_results& results, const int64_t* ids = nullptr) {
  const auto id = [&](int64_t atom) { return ids == nullptr || uint64_t(atom) >= uint64_t(edges.num_atoms) ? atom : ids[atom]; };
  for (int64_t e = 0; e < edges.num_edges; ++e) {
    const double* v = edges.edge_vec + 3 * e;
    require_distance(id(edges.center[e]), id(edges.neighbor[e]), v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
  }
  evaluate(model, edges.num_atoms, edges.field, results, ids, [&](const Results& to) { model.evaluator->evaluate(edges, to); });
}

void require_edges(const equipot_edges& given) {
  if (given.num_atoms < 0 || given.num_edges < 0) throw std::invalid_argument("num_atoms or num_edges is negative");
  if (given.num_atoms > 0) require(given.types, "types");
  if (given.num_edges > 0)
    require(given.center, "center"), require(given.neighbor, "neighbor"), require(given.edge_vec, "edge_vec");
}

void require_domain(const equipot_domain& given) {
  if (given.num_owned < 0 || given.num_atoms < given.num_owned || given.num_local < 0 || given.num_places < given.num_local)
    throw std::invalid_argument("there are fewer atoms than owned ones, or fewer places than local ones");
  if (given.num_atoms > 0) require(given.types, "types");
  if (given.num_places > 0) require(given.positions, "positions"), require(given.atoms, "atoms");
  if (given.exchange != nullptr && given.exchange->num_owned != given.num_owned)
    throw std::invalid_argument("the exchange has another num_owned than the domain");
}

void look_closer(const equipot_model& model, const NeighborList& list, const int64_t* types, const double* watched, int32_t* closer) {
  if (closer == nullptr) return;
  *closer = 0;
  for (size_t e = 0; e < list.center.size() && watched != nullptr; ++e) {
    const double* v = list.edge_vec.data() + 3 * e;
    const double least = watched[types[list.center[e]] * model.description.num_species + types[list.neighbor[e]]];
    if (v[0] * v[0] + v[1] * v[1] + v[2] * v[2] < least * least) *closer = 1;
  }
}

void evaluate_on_cpu(equipot_model& model, const Domain& domain, const equipot_results& results, const int64_t* ids) {
  const NeighborList list = find_neighbors(domain, ids, model.description.cutoff);
  std::vector<uint8_t> owned(size_t(domain.num_atoms), 0);
  std::fill_n(owned.begin(), domain.num_owned, uint8_t(1));
  evaluate(model, {domain.num_atoms, int64_t(list.center.size()), domain.types, owned.data(), list.center.data(),
                   list.neighbor.data(), list.edge_vec.data(), domain.exchange, nullptr},
           results, ids);
  look_closer(model, list, domain.types, domain.watched, results.closer);
}

}  // namespace

extern "C" {

#define EXPORT __attribute__((visibility("default")))

EXPORT int equipot_abi(void) { return EQUIPOT_ABI; }

EXPORT const char* equipot_message(void) { return message.c_str(); }

EXPORT equipot_status equipot_open(const char* path, equipot_model** model) {
  return guarded([&] {
    require(path, "path"), require(model, "model");
    *model = nullptr;
    *model = open(path, read_file(path)).release();
  });
}

EXPORT equipot_status equipot_open_on(const char* path, const char* device, equipot_model** model) {
  return guarded([&] {
    require(path, "path"), require(device, "device"), require(model, "model");
    *model = nullptr;
    *model = open(path, read_file(path), device).release();
  });
}

EXPORT equipot_status equipot_open_memory(const char* name, const void* bytes, size_t size, equipot_model** model) {
  return equipot_open_memory_on(name, bytes, size, "cpu", model);
}

EXPORT equipot_status equipot_open_memory_on(const char* name, const void* bytes, size_t size, const char* device,
                                             equipot_model** model) {
  return guarded([&] {
    require(name, "name"), require(bytes, "bytes"), require(device, "device"), require(model, "model");
    *model = nullptr;
    *model = open(name, Archive(name, std::string(static_cast<const char*>(bytes), size)), device).release();
  });
}

EXPORT int equipot_num_gpus(void) {
  int count = 0;
  const equipot_status status = guarded([&] { count = count_gpus(); });
  if (status == EQUIPOT_OK && count == 0) message = "the driver finds no GPU";
  return status == EQUIPOT_OK ? count : 0;
}

EXPORT void equipot_close(equipot_model* model) { delete model; }

EXPORT equipot_status equipot_describe(const equipot_model* model, equipot_description* description) {
  return guarded([&] {
    require(model, "model"), require(description, "description");
    *description = model->description;
  });
}

EXPORT equipot_status equipot_evaluate_edges(equipot_model* model, const equipot_edges* edges,
                                             const equipot_results* results) {
  return guarded([&] {
    require(model, "model"), require(edges, "edges"), require(results, "results");
    require_edges(*edges);
    std::unique_ptr<Exchange> exchange;
    if (edges->exchange != nullptr) exchange = std::make_unique<Exchange>(*edges->exchange);
    evaluate(*model, {edges->num_atoms, edges->num_edges, edges->types, edges->owned, edges->center, edges->neighbor,
                      edges->edge_vec, exchange.get(), edges->field},
             *results, edges->ids);
  });
}

EXPORT equipot_status equipot_evaluate(equipot_model* model, const equipot_structure* structure,
                                       const equipot_results* results) {
  return guarded([&] {
    require(model, "model"), require(structure, "structure"), require(results, "results");
    if (structure->num_atoms < 0) throw std::invalid_argument("num_atoms is negative");
    if (structure->num_atoms > 0) require(structure->types, "types"), require(structure->positions, "positions");
    const int32_t* periodic = structure->periodic;
    if (periodic[0] || periodic[1] || periodic[2]) require(structure->cell, "cell");
    if (model->evaluator->finds_neighbors())
      return evaluate(*model, structure->num_atoms, structure->field, *results, nullptr, [&](const Results& to) {
        model->evaluator->evaluate_structure(
            {structure->num_atoms, structure->types, structure->positions, structure->cell, periodic, structure->watched,
             structure->anew != 0},
            to);
      });
    const NeighborList list = find_neighbors(structure->num_atoms, structure->positions, structure->cell, periodic,
                                             model->description.cutoff);
    evaluate(*model, {structure->num_atoms, int64_t(list.center.size()), structure->types, nullptr, list.center.data(),
                      list.neighbor.data(), list.edge_vec.data(), nullptr, structure->field},
             *results);
    look_closer(*model, list, structure->types, structure->watched, results->closer);
  });
}

EXPORT equipot_status equipot_evaluate_domain(equipot_model* model, const equipot_domain* domain,
                                              const equipot_results* results) {
  return guarded([&] {
    require(model, "model"), require(domain, "domain"), require(results, "results");
    require_domain(*domain);
    if (domain->exchange == nullptr && domain->num_atoms > domain->num_owned && model->description.num_exchanges > 0)
      throw std::invalid_argument(model->path + ": it passes messages, so atoms that other domains own take an exchange");
    std::unique_ptr<Exchange> exchange;
    if (domain->exchange != nullptr) exchange = std::make_unique<Exchange>(*domain->exchange);
    const Domain given{domain->num_atoms, domain->num_owned, domain->types, domain->num_places, domain->num_local, domain->positions,
                       domain->atoms, domain->moved != 0, exchange.get(), domain->watched};
    if (model->evaluator->finds_neighbors())
      evaluate(*model, given.num_atoms, nullptr, *results, domain->ids,
               [&](const Results& to) { model->evaluator->evaluate_domain(given, domain->ids, to); });
    else
      evaluate_on_cpu(*model, given, *results, domain->ids);
  });
}

EXPORT equipot_status equipot_energy_uncertainty(const equipot_model* model, int64_t num_rows, const double* features,
                                                 double* sigma) {
  return guarded([&] {
    require(model, "model");
    if (num_rows < 0) throw std::invalid_argument("num_rows is negative");
    if (num_rows > 0) require(features, "features"), require(sigma, "sigma");
    require_uncertainty(*model);
    model->evaluator->deviations(num_rows, features, sigma);
    for (int64_t n = 0; n < num_rows; ++n)
      if (!std::isfinite(sigma[n]))
        throw WrongResult("the uncertainty of row " + std::to_string(n) + " is not finite: its features are not, or too large");
  });
}

EXPORT equipot_status equipot_check(equipot_model* model, char* summary, size_t size) {
  struct Failed {
    std::exception_ptr why;  // of the evaluation: memory, a device
  };
  return guarded([&] {
    require(model, "model");
    bool right = false;
    std::string found;
    const int64_t width = model->evaluator->feature_width();
    std::vector<double> features, sums;
    try {
      found = check_capsule(
          model->capsule, model->description.bytes_per_number == 4, model->reference_energies, model->output_facts,
          [&](const capsule::Structure& s, std::vector<double>& energies, std::vector<double>& forces,
              std::vector<double>& virials, std::vector<double>& outputs, std::vector<double>& derivatives) {
            const auto n = int64_t(s.types.size());
            outputs.resize(size_t(n * model->description.output_width));
            derivatives.resize(size_t(n * model->description.derivative_width));
            energies.resize(n), forces.resize(3 * n), virials.resize(9 * n), features.resize(width * n);
            Results results{energies.data(), forces.data(), virials.data()};
            if (width > 0) results.features = features.data();
            if (!outputs.empty()) results.outputs = outputs.data();
            if (!derivatives.empty()) results.derivatives = derivatives.data();
            try {
              model->evaluator->evaluate({n, int64_t(s.center.size()), s.types.data(), nullptr, s.center.data(),
                                          s.neighbor.data(), s.edge_vec.data(), nullptr},
                                         results);
            } catch (const std::logic_error&) {  // what the capsule says makes no sense
              throw;
            } catch (...) {
              throw Failed{std::current_exception()};
            }
            const size_t begin = sums.size();
            sums.resize(begin + size_t(width), 0.0);
            for (int64_t k = 0; k < width * n; ++k) sums[begin + size_t(k % width)] += features[size_t(k)];
          },
          right);
      if (width > 0) found += check_uncertainties(*model, sums, right);
    } catch (const Failed& failed) {
      std::rethrow_exception(failed.why);
    } catch (const std::exception& error) {
      throw BadFile(model->path + ": the self-check capsule is damaged (" + error.what() + "). Run 'equipot deploy' again.");
    }
    if (summary != nullptr && size > 0) {
      const size_t length = std::min(size - 1, found.size());
      std::memcpy(summary, found.data(), length);
      summary[length] = 0;
    }
    if (!right) throw WrongResult(model->path + ": the model does not reproduce its reference structures here: " + found);
  });
}

EXPORT void equipot_set_threads(int num_threads) { Threads::pool().set_count(num_threads); }

EXPORT int equipot_threads(void) { return Threads::pool().count(); }

EXPORT const char* equipot_instructions(void) {
  const char* found = nullptr;
  guarded([&] { found = instructions(); });
  return found;
}

EXPORT const char* equipot_sources(void) { return EQUIPOT_SOURCES; }

}  // extern "C"
