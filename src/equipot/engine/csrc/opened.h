// Opening a model file: all of it is read and checked before an evaluation.
#pragma once

#include "equipot.h"

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "archive.h"
#include "distances.h"
#include "evaluator.h"
#include "gpu_evaluator.h"
#include "output_facts.h"
#include "text.h"

// Everything of an open file.
struct equipot_model {
  std::string path;
  bool on_gpu = false;
  std::unique_ptr<equipot::Program> program;
  std::unique_ptr<equipot::Evaluator> evaluator;
  std::vector<std::string> species;
  std::vector<const char*> symbols;
  std::vector<double> reference_energies, masses, shortest_distances;
  std::string capsule, uncertainty, model_type, equipot_version;
  std::vector<equipot::OutputFacts> output_facts;
  std::vector<equipot_output> outputs;
  equipot_description description{};
};

namespace equipot {

constexpr int format_version = 1;  // FORMAT_VERSION of equipot/deploy/metadata.py

struct BadFile : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline std::string text_of(const Archive& archive, const std::string& name) {
  const std::string_view* found = archive.find("extra/" + name);
  return found == nullptr ? "" : std::string(*found);
}

inline Archive read_file(const char* path) {
  std::error_code unknown;  // a name that is too long, a folder that is closed
  if (std::filesystem::is_directory(path, unknown))
    throw BadFile(std::string(path) + ": expected a model file written by 'equipot deploy', found a folder. Of a run, 'equipot deploy " +
                  path + "' makes one.");
  if (!std::filesystem::is_regular_file(path, unknown))
    throw BadFile(std::string(path) + ": no such file. Expected a model written by 'equipot deploy'.");
  return Archive(path);
}

inline void put_on(equipot_model& model, const std::shared_ptr<GpuDevice>& gpu) {
  try {
    model.evaluator = make_gpu_evaluator(*model.program, gpu);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(model.path + ": " + error.what());
  }
  model.description.feature_width = model.evaluator->feature_width(), model.description.feels_field = model.evaluator->feels_field();
}

// `device`: of equipot_open_on.
inline std::unique_ptr<equipot_model> open(const char* path, Archive archive, const std::string& device = "cpu") {
  auto opened = std::make_unique<equipot_model>();
  equipot_model& model = *opened;
  model.path = path;
  const std::shared_ptr<GpuDevice> gpu = device == "cpu" ? nullptr : open_gpu(device);  // first: a message about it
  model.on_gpu = gpu != nullptr;
  try {
    archive.require_checksums();
    const std::string format = text_of(archive, "format_version");
    if (format.empty() && archive.find("data.pkl") != nullptr && archive.find("constants.pkl") == nullptr)
      throw std::runtime_error(model.path + ": a training checkpoint, not a deployed model. Run 'equipot deploy " +
                               model.path + "' first.");
    if (format.empty()) throw std::runtime_error(model.path + ": not a model written by 'equipot deploy'.");
    if (std::atoi(format.c_str()) > format_version)
      throw std::runtime_error(model.path + ": written in model format " + format + " by equipot " +
                               text_of(archive, "equipot_version") + "; this engine reads formats up to " +
                               std::to_string(format_version) + ". Upgrade equipot, and build again what uses it.");
    const std::string_view *program = archive.find("engine/program.json"), *weights = archive.find("engine/weights.safetensors");
    if ((program == nullptr || weights == nullptr) && text_of(archive, "outputs").size() > 2)  // more than {}
      throw std::runtime_error(model.path + ": it predicts more than energies and forces (model.outputs), and has no "
                               "program for equipot's engine. Run 'equipot deploy' again, or the file by TorchScript, from ASE.");
    if (program == nullptr || weights == nullptr)
      throw std::runtime_error(model.path + ": deployed by an equipot without an engine (" +
                               text_of(archive, "equipot_version") + "). Run 'equipot deploy' again.");
    model.program = std::make_unique<Program>(model.path, *program, *weights);
    try {
      model.evaluator = make_evaluator(*model.program);
    } catch (const std::exception& error) {
      throw std::runtime_error(model.path + ": " + error.what() + ".");
    }
    model.capsule = text_of(archive, "capsule"), model.uncertainty = text_of(archive, "uncertainty");
    model.model_type = text_of(archive, "model_type"), model.equipot_version = text_of(archive, "equipot_version");
    const Json& json = model.program->json;
    for (const Json& symbol : json["species"].items) model.species.push_back(symbol.text);
    for (const std::string& symbol : model.species) model.symbols.push_back(symbol.c_str());
    model.reference_energies = model.program->values<double>("shift");
    model.masses = json["masses"].numbers<double>();
    model.output_facts = output_facts(json);
    for (const OutputFacts& facts : model.output_facts)
      model.outputs.push_back({facts.name.c_str(), facts.unit.c_str(), facts.shape.data(), int32_t(facts.shape.size()),
                               facts.per_atom, facts.mean, !facts.derivative_of.empty(), facts.first, facts.width, facts.total.c_str(), facts.charges.c_str()});
    const double cutoff = json["cutoff"].number;
    if (!(cutoff > 0 && cutoff < 1e4))
      throw std::runtime_error(model.path + ": its cutoff must be a positive number of A, found " + short_text(cutoff) + ".");
    model.shortest_distances = shortest_distances(text_of(archive, "shortest_distances"), model.species);
    if (model.masses.size() != model.species.size()) throw std::runtime_error(model.path + ": it lacks masses.");
    model.description = {.num_species = int32_t(model.species.size()),
                         .species = model.symbols.data(),
                         .reference_energies = model.reference_energies.data(),
                         .masses = model.masses.data(),
                         .cutoff = cutoff,
                         .num_exchanges = int32_t(json["num_exchanges"].number),
                         .widest_exchange = int64_t(json["widest_exchange"].number),
                         .bytes_per_number = json["dtype"].text == "float32" ? 4 : 8,
                         .model_type = model.model_type.c_str(),
                         .equipot_version = model.equipot_version.c_str(),
                         .checksum = archive.checksum(),
                         .feature_width = model.evaluator->feature_width(),
                         .shortest_distances = model.shortest_distances.empty() ? nullptr : model.shortest_distances.data(),
                         .num_outputs = int32_t(model.outputs.size()),
                         .outputs = model.outputs.data(),
                         .output_width = model.evaluator->output_width(),
                         .derivative_width = model.evaluator->derivative_width(),
                         .has_energy = model.evaluator->has_energy(),
                         .feels_field = model.evaluator->feels_field()};
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& error) {
    throw BadFile(error.what());
  }
  if (gpu) put_on(model, gpu);
  model.program->weights.clear();  // the evaluator has its own; the archive goes
  return opened;
}

}  // namespace equipot
