// Implementation of evaluator.h, for networks in float and in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <mutex>
#include <optional>

#include "evaluator.h"
#include "geometry.h"
#include "gradients.h"
#include "make_step.h"
#include "outputs.h"
#include "uncertainty.h"
#include "zbl.h"

namespace equipot::inline EQUIPOT_INSTRUCTIONS {

template <class T>
class NetworkEvaluator : public Evaluator {
 public:
  explicit NetworkEvaluator(const Program& program)
      : harmonics_(program), scale_(program.values<double>("scale")), shift_(program.values<double>("shift")),
        message_passing_(false), has_energy_(!program.json.has("energy") || program.json["energy"].number != 0) {
    const auto num_types = int64_t(program.json["species"].items.size());
    if (num_types < 1 || int64_t(scale_.size()) != num_types || int64_t(shift_.size()) != num_types)
      throw std::runtime_error("it does not have one scale and one shift for each species");
    if (program.json.has("kink")) {
      const Json& kink = program.json["kink"];
      kink_ = T(kink["at"].number), below_ = T(kink["below"].number), above_ = T(kink["above"].number);
    }
    if (program.json.has("pair_scales"))
      pair_scales_ = program.values<T>(program.json["pair_scales"].text, num_types * num_types);
    if (program.json.has("zbl")) zbl_.emplace(program.json["zbl"], num_types);
    Reader reader{program, {}};
    std::vector<Shape> shapes;
    std::vector<int> used, untouchable;  // by the steps so far; no more by later ones
    int64_t exchanges = 0, widest = 0;
    bool of_edges = false;
    for (const Json& json : program.json["steps"].items) {
      auto step = make_step<T>(reader, json, num_types, harmonics_.dim);
      std::vector<Shape> inputs;
      bool varies = false;
      for (const Json& name : json["inputs"].items) {
        step->inputs.push_back(reader.find(name.text));
        if (std::count(untouchable.begin(), untouchable.end(), step->inputs.back()) > 0)
          throw std::runtime_error("'" + name.text + "' is gone when a step reads it");
        inputs.push_back(shapes[step->inputs.back()]);
        varies = varies || steps_[step->inputs.back()]->differentiable;
      }
      for (const char* kind : {"linear", "element_factors", "silu", "exchange"})
        if (json["do"].text == kind) step->differentiable = varies;
      step->number = step->output = int(steps_.size());
      shapes.push_back(step->shape(inputs));
      if (shapes.back().width < 1)
        throw std::runtime_error("step " + std::to_string(steps_.size()) + " (" + json["do"].text +
                                 ") does not fit what it is given");
      for (const int taken : step->takes()) {
        if (std::count(used.begin(), used.end(), taken) > 0)
          throw std::runtime_error("step " + std::to_string(steps_.size()) + " takes an array that is used elsewhere");
        untouchable.push_back(taken);
      }
      for (const int input : step->inputs) used.push_back(input);
      if (json["do"].text == "exchange") ++exchanges, widest = std::max(widest, shapes.back().width);
      message_passing_ = message_passing_ || exchanges > 0 || json["do"].text == "interaction";
      of_edges = of_edges || !shapes.back().of_atoms;
      reader.names.push_back(json["out"].text);
      steps_.push_back(std::move(step));
    }
    const bool one_number = !steps_.empty() && shapes.back().of_atoms && shapes.back().width == 1 && steps_.back()->differentiable;
    if (has_energy_ && !one_number)
      throw std::runtime_error("its steps do not end with one number for each atom");
    if (message_passing_ && of_edges) throw std::runtime_error("its steps pass messages and make arrays of edges");
    if (program.json["num_exchanges"].number != double(exchanges) || program.json["widest_exchange"].number != double(widest))
      throw std::runtime_error("it declares other exchanges than the " + std::to_string(exchanges) + " of up to " +
                               std::to_string(widest) + " numbers in its steps");
    if (program.json.has("uncertainty")) last_layer_.emplace(reader, program.json["uncertainty"], shapes, steps_);
    if (last_layer_ && std::count(untouchable.begin(), untouchable.end(), last_layer_->array) > 0)
      throw std::runtime_error("the features of its last layer are gone when they are read");
    if (program.json.has("outputs")) outputs_.emplace(reader, program.json, shapes, num_types);
    if (!has_energy_ && (!outputs_ || outputs_->array + 1 != int(steps_.size()) || !outputs_->derivatives.empty() || last_layer_))
      throw std::runtime_error("it has no energy, and its steps do not end with the rows of outputs alone");
    if (outputs_ && std::count(untouchable.begin(), untouchable.end(), outputs_->array) > 0)
      throw std::runtime_error("its outputs beside the energy are gone when they are read");
    find_uses();
  }

  void evaluate(const Edges& given, const Results& results) override {
    check(given);
    const SortedEdges edges(given);
    const int64_t computed = num_computed(given);
    const int64_t num_edges = edges.first[computed];  // those of other centers lead to no energy
    std::vector<double> energies(size_t(given.num_atoms), 0.0), gradient;  // by the edges, made when there is room
    const EdgeGroups by_neighbor = group_edges(edges.neighbor, num_edges, given.num_atoms);
    if (results.features != nullptr) std::fill_n(results.features, given.num_atoms * last_layer_->width, 0.0);
    if (results.outputs != nullptr) std::fill_n(results.outputs, given.num_atoms * outputs_->num_values, 0.0);
    if (message_passing_)
      evaluate_whole(given, edges, by_neighbor, computed, energies, gradient, results);
    else
      evaluate_in_parts(given, edges, computed, energies, gradient, results);
    if (zbl_) add_repulsion(given, edges, num_edges, energies, gradient);
    const Gradients gradients{edges, computed, num_edges, by_neighbor, gradient, message_passing_, derivative_width()};
    gradients.write(given.num_atoms, energies, results);
  }

  int64_t feature_width() const override { return last_layer_ ? last_layer_->width : 0; }

  int64_t output_width() const override { return outputs_ ? outputs_->num_values : 0; }
  int64_t derivative_width() const override { return outputs_ ? 9 * int64_t(outputs_->derivatives.size()) : 0; }
  bool has_energy() const override { return has_energy_; }
  bool feels_field() const override { return outputs_ && outputs_->vector >= 0; }

  void deviations(int64_t rows, const double* features, double* sigma) const override {
    last_layer_->deviations(rows, features, sigma);
  }

 private:
  void check(const Edges& given) const {
    check_range(given.center, given.num_edges, given.num_atoms);
    check_range(given.neighbor, given.num_edges, given.num_atoms);
    for (int64_t i = 0; i < given.num_atoms; ++i)
      if (given.types[i] < 0 || given.types[i] >= int64_t(scale_.size()))
        throw std::invalid_argument("atom " + std::to_string(i) + " has type " + std::to_string(given.types[i]) +
                                    ", the model knows types 0 to " + std::to_string(scale_.size() - 1));
    if (given.exchange != nullptr && given.exchange->num_owned() > given.num_atoms)
      throw std::invalid_argument("more atoms are owned than there are");
  }

  // The first atoms, of which energies must be known.
  int64_t num_computed(const Edges& given) const {
    if (given.exchange != nullptr) return given.exchange->num_owned();
    int64_t last = given.num_atoms;
    if (!message_passing_ && given.owned != nullptr)
      while (last > 0 && !given.owned[last - 1]) --last;
    return last;
  }

  // Which step reads each array last, which arrays are needed on the way back, and which steps lead to the energy.
  void find_uses() {
    last_use_.assign(steps_.size(), 0);
    read_back_.assign(steps_.size(), false);
    for_energy_.assign(steps_.size(), false);
    for_energy_.back() = has_energy_;
    for (size_t s = steps_.size(); s-- > 0;)
      for (const int input : steps_[s]->inputs) for_energy_[input] = for_energy_[input] || for_energy_[s];
    for (size_t s = 0; s < steps_.size(); ++s) {
      last_use_[s] = std::max(last_use_[s], s);
      for (const int input : steps_[s]->inputs) last_use_[input] = s;
      for (const int read : steps_[s]->read_back()) read_back_[read] = true;
    }
    last_use_.back() = steps_.size();
    if (last_layer_) last_use_[last_layer_->array] = steps_.size();
    if (outputs_) last_use_[outputs_->array] = steps_.size();
  }

  // Distances, or gradients by them, of some edges from `first` on: times the scale of their types.
  void scale_by_pair(const Edges& given, const SortedEdges& edges, int64_t first, int64_t count, T* numbers) const {
    if (pair_scales_.empty()) return;
    const auto num_types = int64_t(scale_.size());
    for (int64_t e = first; e < first + count; ++e)
      numbers[e - first] *= pair_scales_[given.types[edges.center[e]] * num_types + given.types[edges.neighbor[e]]];
  }

  void run_forward(Context<T>& c, bool with_outputs) const {
    c.values.resize(steps_.size()), c.all_grads.resize(steps_.size() * c.num_moments), c.kept.resize(steps_.size());
    c.grads = c.all_grads.data();
    c.values_rows.resize(steps_.size()), c.values_width.resize(steps_.size());
    for (size_t s = 0; s < steps_.size(); ++s) {
      if (!with_outputs && !for_energy_[s]) continue;
      steps_[s]->forward(c);
      for (const int input : steps_[s]->inputs)
        if (last_use_[input] == s && !read_back_[input]) c.release(c.values[input]);
    }
  }

  void run_backward(Context<T>& c) const {
    for (size_t s = steps_.size(); s-- > 0;) {
      for (int moment = 0; moment < c.num_moments; ++moment) {
        c.select(moment);
        if (steps_[s]->differentiable && c.grads[s].exists()) steps_[s]->backward(c);
        c.release(c.grads[s]);
      }
      c.release(c.values[s]);
      for (Array<T>& array : c.kept[s]) c.release(array);
      c.kept[s].clear();
    }
  }

  // Energies, features and outputs of the atoms first ..., and the gradients that backward starts from.
  void finish(Context<T>& c, const Edges& given, int64_t first, double* energies, const Results& results) const {
    if (has_energy_) finish_energies(c, given, first, energies, results);
    if (wants_outputs(given, results)) finish_outputs(c, given, first, energies, results);
  }

  void finish_energies(Context<T>& c, const Edges& given, int64_t first, double* energies, const Results& results) const {
    const int output = int(steps_.size()) - 1;
    for (int moment = c.num_about_center; moment > 0; --moment) c.select(moment), c.grad(output);  // zero: r_k - r_k
    c.select(0);
    const Array<T>& rows = c.values[output];
    const Array<T>& grad = c.grad(output);
    for (int64_t i = 0; i < c.num_computed; ++i) {
      const bool owned = given.owned == nullptr || given.owned[first + i];
      const int64_t type = given.types[first + i];
      energies[first + i] = owned ? scale_[type] * double(rows[i][0]) + shift_[type] : 0.0;
      grad[i][0] = owned ? T(scale_[type]) : T(0);
      if (results.features == nullptr || !owned) continue;
      double* row = results.features + (first + i) * last_layer_->width;
      last_layer_->copy(c, i, row);
      for (int64_t k = 0; k < last_layer_->width; ++k) row[k] *= scale_[type];
    }
  }

  static bool wants_outputs(const Edges& given, const Results& results) {
    return results.outputs != nullptr || results.derivatives != nullptr || given.field != nullptr;
  }

  // Moments beyond the energy: those for the heat flux, then three for each derivative.
  void count_moments(Context<T>& c, const Results& results) const {
    c.num_about_center = message_passing_ && results.atom_heat_virials != nullptr ? 3 : 0;
    c.num_moments = 1 + c.num_about_center;
    if (results.derivatives != nullptr) c.num_moments += 3 * int(outputs_->derivatives.size());
  }

  void finish_outputs(Context<T>& c, const Edges& given, int64_t first, double* energies, const Results& results) const {
    const Array<T>& rows = c.values[outputs_->array];
    const auto is_owned = [&](int64_t i) { return given.owned == nullptr || given.owned[first + i]; };
    std::vector<double> own(size_t(outputs_->num_values));
    for (int64_t i = 0; i < c.num_computed; ++i) {
      if (!is_owned(i)) continue;
      double* found = results.outputs == nullptr ? own.data() : results.outputs + (first + i) * outputs_->num_values;
      outputs_->values(rows[i], given.types[first + i], found);
      if (given.field != nullptr) energies[first + i] += outputs_->apply(given.field, found);
    }
    const auto begin_backward = [&](int moment, const std::vector<T>& slopes) {  // those of each type
      c.select(moment);
      const Array<T>& grad = c.grad(outputs_->array);
      for (int64_t i = 0; i < c.num_computed; ++i)
        if (is_owned(i)) std::copy_n(slopes.data() + given.types[first + i] * grad.width, grad.width, grad[i]);
    };
    if (given.field != nullptr) begin_backward(0, outputs_->energy_slopes(given.field));
    for (int moment = 1 + c.num_about_center; moment < c.num_moments; ++moment) {
      const int n = moment - 1 - c.num_about_center;
      begin_backward(moment, outputs_->vector_slopes(outputs_->derivatives[n / 3], n % 3, given.field));
    }
  }

  // gradient: (moments, num_edges, 3), those for the heat flux about the neighbor.
  void evaluate_whole(const Edges& given, const SortedEdges& edges, const EdgeGroups& by_neighbor, int64_t computed,
                      std::vector<double>& energies, std::vector<double>& gradient, const Results& results) {
    const int64_t num_edges = edges.first[computed], dim = harmonics_.dim;
    Context<T> c;
    // Another thread may be evaluating, too.
    Pool<T> own;
    const std::unique_lock memory(in_use_, std::try_to_lock);
    c.pool = memory ? &pool_ : &own, c.exchange = given.exchange;
    c.num_atoms = given.num_atoms, c.num_computed = computed, c.num_edges = num_edges, c.dim_sh = dim;
    c.types = given.types, c.center = edges.center, c.neighbor = edges.neighbor, c.first_edge = edges.first.data();
    c.by_neighbor = &by_neighbor, c.edge_vec = edges.vec;
    count_moments(c, results);
    const int num_moments = c.num_moments;
    std::optional<EdgeGroups> by_type;
    if (scale_.size() > 1) {
      by_type = group_edges(given.types, computed, int64_t(scale_.size()));
      c.by_type = &*by_type;
    }
    Array<T> length = c.make(num_edges, 1), sh = c.make(num_edges, dim);
    constexpr int64_t step = 4096;  // a multiple of every vector
    for_rows(num_edges, step, [&](int64_t first, int64_t count) {
      harmonics_.forward(edges.vec, first, first + count, length.data(), sh.data());
      scale_by_pair(given, edges, first, count, length[first]);
      for (int64_t e = first; e < first + count; ++e) length[e][0] += length[e][0] < kink_ ? below_ : above_;
    });
    c.length = length.data(), c.sh = sh.data();
    run_forward(c, wants_outputs(given, results));
    Array<T> grad_length = c.make(num_moments * num_edges, 1), grad_sh = c.make(num_moments * num_edges, dim);
    std::fill_n(grad_length.data(), grad_length.size(), T(0)), std::fill_n(grad_sh.data(), grad_sh.size(), T(0));
    c.grad_length = grad_length.data(), c.grad_sh = grad_sh.data();
    finish(c, given, 0, energies.data(), results);
    run_backward(c);
    c.pool->make_room(3 * num_edges * num_moments * int64_t(sizeof(double)));
    gradient.resize(size_t(3 * num_edges * num_moments));
    for (int64_t m = 0; m < num_moments; ++m)
      for_rows(num_edges, step, [&](int64_t first, int64_t count) {
        scale_by_pair(given, edges, first, count, grad_length[m * num_edges + first]);
        harmonics_.backward(edges.vec, first, first + count, grad_length[m * num_edges], grad_sh[m * num_edges],
                            gradient.data() + 3 * m * num_edges);
      });
    for (Array<T>* array : {&length, &sh, &grad_length, &grad_sh}) c.release(*array);
    c.pool->trim(64);
  }

  // What a thread needs for some atoms with all their edges.
  struct Part {
    Pool<T> pool;
    std::vector<T> length, sh, grad_length, grad_sh;
    std::vector<int64_t> center, neighbor_type, first_edge;
  };

  void evaluate_in_parts(const Edges& given, const SortedEdges& edges, int64_t computed, std::vector<double>& energies,
                         std::vector<double>& gradient, const Results& results) const {
    constexpr int64_t edges_in_part = 256, atoms_in_part = 256;
    Context<T> counted;
    count_moments(counted, results);
    const int64_t all_edges = edges.first[computed], num_moments = counted.num_moments;
    gradient.resize(size_t(3 * all_edges * num_moments));
    std::vector<int64_t> bounds{0};
    for (int64_t i = 1; i <= computed; ++i)
      if (i == computed || edges.first[i + 1] - edges.first[bounds.back()] > edges_in_part ||
          i - bounds.back() >= atoms_in_part)
        bounds.push_back(i);
    std::vector<Part> of_workers(size_t(Threads::pool().count()));
    Threads::pool().run(int64_t(bounds.size()) - 1, [&](int64_t part, int worker) {
      auto& [pool, length, sh, grad_length, grad_sh, center, neighbor_type, first_edge] = of_workers[worker];
      const int64_t first = bounds[part], count = bounds[part + 1] - first;
      const int64_t begin = edges.first[first], num_edges = edges.first[first + count] - begin;
      const int64_t dim = harmonics_.dim;
      length.resize(num_edges), sh.resize(num_edges * dim);
      grad_length.assign(num_moments * num_edges, T(0)), grad_sh.assign(num_moments * num_edges * dim, T(0));
      center.resize(num_edges), neighbor_type.resize(num_edges), first_edge.resize(count + 1);
      for (int64_t e = 0; e < num_edges; ++e) {
        center[e] = edges.center[begin + e] - first;
        neighbor_type[e] = given.types[edges.neighbor[begin + e]];
      }
      for (int64_t i = 0; i <= count; ++i) first_edge[i] = edges.first[first + i] - begin;
      Context<T> c;
      c.pool = &pool, c.dim_sh = dim, c.num_moments = int(num_moments);
      c.num_atoms = c.num_computed = count, c.num_edges = num_edges;
      c.types = given.types + first, c.center = center.data(), c.neighbor_type = neighbor_type.data();
      c.first_edge = first_edge.data();
      harmonics_.forward(edges.vec + 3 * begin, 0, num_edges, length.data(), sh.data());
      scale_by_pair(given, edges, begin, num_edges, length.data());
      c.length = length.data(), c.sh = sh.data(), c.grad_length = grad_length.data(), c.grad_sh = grad_sh.data();
      run_forward(c, wants_outputs(given, results));
      finish(c, given, first, energies.data(), results);
      run_backward(c);
      for (int64_t m = 0; m < num_moments; ++m) {
        T* of_length = grad_length.data() + m * num_edges;
        scale_by_pair(given, edges, begin, num_edges, of_length);
        harmonics_.backward(edges.vec + 3 * begin, 0, num_edges, of_length, grad_sh.data() + m * num_edges * dim,
                            gradient.data() + 3 * (m * all_edges + begin));
      }
    }, int(of_workers.size()));
  }

  void add_repulsion(const Edges& given, const SortedEdges& edges, int64_t num_edges, std::vector<double>& energies,
                     std::vector<double>& gradient) const {
    for (int64_t e = 0; e < num_edges; ++e) {
      const int64_t i = edges.center[e];
      if (given.owned != nullptr && !given.owned[i]) continue;
      const double* vec = edges.vec + 3 * e;
      const double r = std::sqrt(vec[0] * vec[0] + vec[1] * vec[1] + vec[2] * vec[2]);
      double slope;
      energies[i] += zbl_->pair(given.types[i], given.types[edges.neighbor[e]], r, slope);
      for (int a = 0; a < 3; ++a) gradient[3 * e + a] += slope * vec[a] / r;
    }
  }

  Harmonics<T> harmonics_;
  std::vector<double> scale_, shift_;  // eV, of each type
  std::vector<T> pair_scales_;  // of distances, by the types of center and neighbor; empty: one
  T kink_ = 0, below_ = 0, above_ = 0;  // added to distances, so that they find one of two pieces of splines
  bool message_passing_, has_energy_;
  std::optional<Zbl> zbl_;
  std::optional<LastLayer<T>> last_layer_;
  std::optional<Outputs<T>> outputs_;
  std::vector<std::unique_ptr<Step<T>>> steps_;
  std::vector<size_t> last_use_;
  std::vector<bool> read_back_, for_energy_;
  Pool<T> pool_;
  std::mutex in_use_;  // pool_
};

}  // namespace equipot
