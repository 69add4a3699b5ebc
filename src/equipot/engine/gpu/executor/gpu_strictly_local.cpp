// The steps of strictly_local.h on a GPU, where all edges are at hand at once.
#include "strictly_local.h"

#include <optional>

#include "gpu_arrays.h"
#include "gpu_convolution.h"

namespace equipot {
namespace {

struct GpuBesselStep : GpuStep {
  GpuBessel basis;

  GpuBesselStep(const GpuReader& reader, const Json& json) : basis(reader.model, Bessel<double>(reader, json["basis"])) {}

  void forward(GpuContext& c) const override { c.put(output, basis.forward(c)); }
  void backward(GpuContext& c) const override { basis.backward(c, c.gradient(output)); }
};

// What it gives is computed by the steps that read it.
struct GpuEnvelope : GpuStep {
  void forward(GpuContext&) const override {}
  void backward(GpuContext&) const override {}
};

struct GpuEdgePerceptron : GpuStep {
  Perceptron<double> read;
  GpuPerceptron network;
  std::vector<int64_t> widths;  // taken of each input
  bool types, by_pair;
  std::vector<GpuLinearBothWays> parts;  // of the first layer, for two inputs each
  GpuMemory::Buffer first;  // all of it

  GpuEdgePerceptron(const GpuReader& reader, const Json& json)
      : read(reader, json["layers"]), network(reader.model, read), widths(json["widths"].numbers<int64_t>()),
        types(json["types"].number != 0), by_pair(json.has("by_pair")), first(reader.model.keep(read.layers[0].weights)) {
    if (widths.empty()) throw std::runtime_error("a perceptron of types alone is evaluated on a CPU only: use the device cpu");
    const auto& layer = read.layers[0];
    auto row = layer.weights.begin() + (types ? 2 * reader.num_types * layer.out : 0);
    for (size_t n = 0; n < widths.size() && !by_pair; n += 2) {
      const int64_t one = widths[n], other = n + 1 < widths.size() ? widths[n + 1] : 0, size = (one + other) * layer.out;
      const LinearBlock blocks[] = {{1, one, layer.out, 0, 0}, {1, other, layer.out, one, 0}};
      const std::vector<double> weights(row, row + size), no_bias;
      parts.emplace_back(reader.model, make_linear_map(blocks, other > 0 ? 2 : 1, one + other, layer.out, size), weights, 1, no_bias,
                         one);
      row += size;
    }
  }

  GpuRowArrays<void> arrays_of(const GpuContext& c) const {
    GpuRowArrays<void> arrays{};
    arrays.types = c.types, arrays.neighbor_types = c.neighbor_types;
    arrays.index = c.center, arrays.sender = c.neighbor;
    return arrays;
  }

  void forward(GpuContext& c) const override {
    GpuArray hidden = c.make(c.num_edges, read.layers[0].out);
    if (by_pair) {
      const GpuArray& x = c.value(inputs[0]);
      GpuRowArrays<void> arrays = arrays_of(c);
      arrays.out = hidden.data(), arrays.a = x.data(), arrays.b = first.get(), arrays.stride = x.width, arrays.more = widths[0];
      arrays.power = int(c.num_types);
      c.run("multiply_by_pair", arrays, hidden.rows, hidden.width);
    }
    for (size_t n = 0; n < parts.size(); ++n)
      parts[n].forth.apply(c, c.num_edges, c.value(inputs[2 * n]), hidden,
                           {.add = n > 0, .type_rows = types && n == 0 ? first.get() : nullptr,
                            .second_x = 2 * n + 1 < inputs.size() ? &c.value(inputs[2 * n + 1]) : nullptr});
    std::vector<GpuArray>& kept = c.kept[size_t(number)];
    kept.push_back(std::move(hidden));
    c.put(output, network.forward_from_first(c, kept));
  }

  void backward(GpuContext& c) const override {
    const GpuArray by_first = network.backward_to_first(c, c.kept[size_t(number)], std::move(c.gradient(output)));
    if (by_pair) {
      const auto [to, add] = target(c, 0);
      GpuRowArrays<void> arrays = arrays_of(c);
      arrays.a = by_first.data(), arrays.b = first.get(), arrays.out = to.data(), arrays.stride = to.width, arrays.add = add;
      arrays.more = by_first.width, arrays.power = int(c.num_types);
      c.run("multiply_by_pair_back", arrays, c.num_edges, widths[0]);
    }
    for (size_t n = 0; n < parts.size(); ++n) {
      const auto [to, add] = target(c, 2 * n);
      std::optional<GpuTarget> second;
      if (2 * n + 1 < inputs.size()) second.emplace(target(c, 2 * n + 1));
      parts[n].back.apply(c, c.num_edges, by_first, to, {.add = add, .second_y = second ? &*second : nullptr});
    }
  }

  GpuTarget target(GpuContext& c, size_t n) const {
    const bool whole = c.values_width[size_t(inputs[n])] == widths[n];
    return c.target(inputs[n], whole ? c.num_edges : 0);
  }
};

struct GpuBlend : GpuStep {
  GpuRowArrays<void> facts{};

  GpuBlend(const GpuReader& reader, const Json& json) {
    facts.factor = json["factor"].number;
    for (const Json& step : reader.program.json["steps"].items)
      if (step["out"].text == json["inputs"].items[0].text && step["do"].text == "envelope")
        facts.cutoff = step["cutoff"].number, facts.power = int(step["power"].number);
    if (facts.power == 0) throw std::runtime_error("its step 'blend' has no envelope, which runs on a CPU only: use the device cpu");
  }

  std::vector<int> read_back() const override { return {inputs[1]}; }

  GpuRowArrays<void> arrays_of(GpuContext& c) const {
    GpuRowArrays<void> arrays = facts;
    arrays.a = c.length, arrays.b = c.value(inputs[1]).data();
    return arrays;
  }

  void forward(GpuContext& c) const override {
    const int64_t width = c.value(inputs[1]).width;
    GpuRowArrays<void> arrays = arrays_of(c);
    if (inputs.size() == 3) arrays.c = c.value(inputs[2]).data();
    arrays.out = c.put(output, c.make(c.num_edges, width)).data();
    c.run("blend", arrays, c.num_edges, width);
  }

  void backward(GpuContext& c) const override {
    const GpuArray& from = c.gradient(output);
    GpuRowArrays<void> arrays = arrays_of(c);
    const auto [by_z, add_by_z] = c.target(inputs[1], from.rows);
    arrays.c = from.data(), arrays.out = by_z.data(), arrays.add = add_by_z;
    arrays.other = c.geometry, arrays.stride = c.dim_sh + 1;
    if (inputs.size() == 3) {
      const auto [by_x, add_by_x] = c.target(inputs[2], from.rows);
      arrays.third = by_x.data(), arrays.add_third = add_by_x;
    }
    c.run_warps("blend_gradient", arrays, from.rows, from.width);
  }
};

// V[e, j, :] = w[e, l(j), :] Y_j, or, of atoms, the sum of that over their edges.
struct GpuWeightedHarmonics : GpuStep {
  int64_t channels, degrees;
  bool of_atoms;

  GpuWeightedHarmonics(const GpuReader& reader, const Json& json, bool sum)
      : channels(reader.integer(json, "channels", 1)),
        degrees(sum ? read_environment(reader, json, channels) : reader.integer(json, "degrees", 1, 16)), of_atoms(sum) {}

  // An environment is told by its paths, which are one for each degree: ones times a harmonic.
  static int64_t read_environment(const GpuReader& reader, const Json& json, int64_t channels) {
    const auto rows = json["paths"].numbers<int64_t>();
    const auto coefficients = reader.values(json["coefficients"].text);
    const auto* paths = reinterpret_cast<const PathRow*>(rows.data());
    const auto count = int64_t(rows.size() / 9);
    bool fits = reader.integer(json, "dim_out", 1) == count * count * channels &&
                reader.integer(json, "num_weights", 1) == count * channels;
    for (int64_t l = 0; l < count && fits; ++l) {
      const PathRow& path = paths[l];
      fits = path.l_in == 0 && path.l_sh == l && path.l_out == l && path.channels == channels && path.in_offset == 0 &&
             path.weight_offset == l * channels && path.out_offset == l * l * channels && path.out_stride == channels;
      for (int64_t n = 0; n < (2 * l + 1) * (2 * l + 1) && fits; ++n)
        fits = std::abs(coefficients[size_t(path.coefficient_offset + n)] - (n % (2 * l + 2) == 0)) < 1e-6;
    }
    if (!fits) throw std::runtime_error("its step 'environment' has paths that are added on a CPU only: use the device cpu");
    return count;
  }

  std::vector<int> read_back() const override { return inputs; }

  GpuRowArrays<void> arrays_of(GpuContext& c) const {
    GpuRowArrays<void> arrays{};
    arrays.a = c.value(inputs[0]).data(), arrays.b = c.sh, arrays.stride = c.dim_sh;
    arrays.more = channels, arrays.power = int(degrees);
    return arrays;
  }

  void forward(GpuContext& c) const override {
    const int64_t rows = of_atoms ? c.num_computed : c.num_edges, width = degrees * degrees * channels;
    GpuRowArrays<void> arrays = arrays_of(c);
    arrays.start = c.first_edge, arrays.out = c.put(output, c.make(rows, width)).data();
    c.run(of_atoms ? "environment" : "weighted_harmonics", arrays, rows, width);
  }

  void backward(GpuContext& c) const override {
    const GpuArray& from = c.gradient(output);
    const auto [to, add] = c.target(inputs[0], c.num_edges);
    GpuRowArrays<void> arrays = arrays_of(c);
    if (of_atoms) arrays.index = c.center;
    arrays.c = from.data(), arrays.out = to.data(), arrays.add = add, arrays.other = c.geometry;
    arrays.begin = double(c.dim_sh + 1);
    c.run_warps("weighted_harmonics_gradient", arrays, c.num_edges, from.width);
  }
};

struct GpuEdgeProduct : GpuStep {
  int64_t rows, columns, environment_rows, channels;
  GpuMemory::Buffer coupling;
  GpuCompiled couple, couple_back, multiply, multiply_back, outer;

  GpuEdgeProduct(const GpuReader& reader, const Json& json)
      : rows(reader.integer(json, "rows", 1, 256)), columns(reader.integer(json, "columns", 1, 256)),
        environment_rows(reader.integer(json, "environment_rows", 1, 256)), channels(reader.integer(json, "channels", 1)),
        coupling(reader.model.keep(reader.values(json["weights"].text))) {
    const auto make = [&](GpuProductForm::Kind kind, int64_t of, int64_t by) {
      return reader.model.compile(generate(GpuProductForm{kind, reader.model.single(), of, by, channels}));
    };
    couple = make(GpuProductForm::product, rows * columns, environment_rows);
    couple_back = make(GpuProductForm::transposed, rows * columns, environment_rows);
    multiply = make(GpuProductForm::product, rows, columns);
    multiply_back = make(GpuProductForm::transposed, rows, columns);
    outer = make(GpuProductForm::outer_sum, rows, columns);
  }

  std::vector<int> read_back() const override { return {inputs[0]}; }

  // out (+)= matrices of the centers, or one for all, times the rows.
  static void product(const GpuContext& c, const GpuCompiled& kernel, const void* matrices, const long long* center,
                      const GpuArray& left, const GpuTarget& out) {
    GpuProductArrays<void> arrays{};
    arrays.matrices = matrices, arrays.left = left.data(), arrays.center = center;
    arrays.out = out.array.data(), arrays.add = out.add, arrays.num_edges = left.rows;
    c.launch(kernel, (left.rows + gpu_edges_per_block - 1) / gpu_edges_per_block, arrays);
  }

  void forward(GpuContext& c) const override {
    GpuArray matrices = c.make(c.num_computed, rows * columns * channels);
    product(c, couple, coupling.get(), nullptr, c.value(inputs[1]), {matrices, false});
    GpuArray to = c.make(c.num_edges, rows * channels);
    product(c, multiply, matrices.data(), c.center, c.value(inputs[0]), {to, false});
    c.put(output, std::move(to));
    c.kept[size_t(number)].push_back(std::move(matrices));
  }

  void backward(GpuContext& c) const override {
    const GpuArray &tensors = c.value(inputs[0]), &from = c.gradient(output);
    product(c, multiply_back, c.kept[size_t(number)][0].data(), c.center, from, c.target(inputs[0], c.num_edges));
    GpuArray by_matrices = c.make(c.num_computed, rows * columns * channels);
    GpuProductArrays<void> arrays{};
    arrays.left = from.data(), arrays.right = tensors.data(), arrays.out = by_matrices.data();
    arrays.order = c.counting, arrays.start = c.first_edge;
    arrays.num_edges = c.num_edges, arrays.num_atoms = c.num_computed, arrays.parts = 1;
    c.launch(outer, c.num_computed, arrays);
    product(c, couple_back, coupling.get(), nullptr, by_matrices, c.target(inputs[1], c.num_computed));
  }
};

struct GpuWeightedSum : GpuStep {
  GpuRowArrays<void> facts{};
  int64_t dim, dim_weights = 0;
  GpuMemory::Buffer blocks;

  GpuWeightedSum(const GpuReader& reader, const Json& json) {
    const auto numbers = json["blocks"].numbers<int64_t>();
    facts.more = reader.integer(json, "channels", 1), facts.factor = json["factor"].number;
    dim = int64_t(numbers.size()) * facts.more;
    for (const int64_t block : numbers) dim_weights = std::max<int64_t>(dim_weights, (block + 1) * facts.more);
    blocks = reader.model.memory().keep(numbers);
  }

  std::vector<int> read_back() const override { return inputs; }

  GpuRowArrays<void> arrays_of(GpuContext& c) const {
    GpuRowArrays<void> arrays = facts;
    arrays.a = c.value(inputs[0]).data(), arrays.b = c.value(inputs[1]).data();
    arrays.index = static_cast<const long long*>(blocks.get());
    arrays.start = c.first_edge, arrays.sender = c.center, arrays.stride = dim_weights;
    return arrays;
  }

  void forward(GpuContext& c) const override {
    GpuRowArrays<void> arrays = arrays_of(c);
    arrays.out = c.put(output, c.make(c.num_computed, dim, c.num_atoms)).data();
    c.run("weighted_sum", arrays, c.num_computed, dim);
  }

  void backward(GpuContext& c) const override {
    GpuRowArrays<void> arrays = arrays_of(c);
    arrays.c = c.gradient(output).data();
    const auto [by_tensors, add_by_tensors] = c.target(inputs[1], c.num_edges);
    arrays.out = by_tensors.data(), arrays.add = add_by_tensors;
    c.run("weighted_sum_by_tensors", arrays, c.num_edges, dim);
    const auto [by_weights, add_by_weights] = c.target(inputs[0], c.num_edges);
    arrays.out = by_weights.data(), arrays.add = add_by_weights, arrays.stride = dim;
    c.run("weighted_sum_by_weights", arrays, c.num_edges, dim_weights);
  }
};

struct GpuSumOverEdges : GpuStep {
  double factor;

  explicit GpuSumOverEdges(const Json& json) : factor(json["factor"].number) {}

  void forward(GpuContext& c) const override {
    const GpuArray& x = c.value(inputs[0]);
    GpuRowArrays<void> arrays{};
    arrays.a = x.data(), arrays.start = c.first_edge, arrays.factor = factor;
    arrays.out = c.put(output, c.make(c.num_computed, x.width, c.num_atoms)).data();
    c.run("sum_over_edges", arrays, c.num_computed, x.width);
  }

  void backward(GpuContext& c) const override {
    const GpuArray& from = c.gradient(output);
    const auto [to, add] = c.target(inputs[0], c.num_edges);
    GpuRowArrays<void> arrays{};
    arrays.a = from.data(), arrays.index = c.center, arrays.out = to.data(), arrays.factor = factor, arrays.add = add;
    c.run("spread_over_edges", arrays, c.num_edges, from.width);
  }
};

}  // namespace

std::unique_ptr<GpuStep> make_strictly_local(const GpuReader& reader, const Json& json) {
  const std::string& kind = json["do"].text;
  if (kind == "bessel") return std::make_unique<GpuBesselStep>(reader, json);
  if (kind == "envelope") return std::make_unique<GpuEnvelope>();
  if (kind == "edge_perceptron") return std::make_unique<GpuEdgePerceptron>(reader, json);
  if (kind == "blend") return std::make_unique<GpuBlend>(reader, json);
  if (kind == "weighted_harmonics") return std::make_unique<GpuWeightedHarmonics>(reader, json, false);
  if (kind == "environment") return std::make_unique<GpuWeightedHarmonics>(reader, json, true);
  if (kind == "edge_product") return std::make_unique<GpuEdgeProduct>(reader, json);
  if (kind == "weighted_sum") return std::make_unique<GpuWeightedSum>(reader, json);
  if (kind == "sum_over_edges") return std::make_unique<GpuSumOverEdges>(json);
  return nullptr;
}

}  // namespace equipot
