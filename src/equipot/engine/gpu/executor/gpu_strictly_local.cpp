// The steps of strictly_local.h on a GPU, where all edges are at hand at once.
#include "strictly_local.h"

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

struct GpuEnvelope : GpuStep {
  GpuRowArrays<void> facts{};

  GpuEnvelope(const GpuReader& reader, const Json& json) {
    facts.cutoff = json["cutoff"].number, facts.power = int(reader.integer(json, "power", 2, 64));
  }

  void forward(GpuContext& c) const override {
    GpuRowArrays<void> arrays = facts;
    arrays.a = c.length, arrays.out = c.put(output, c.make(c.num_edges, 1)).data();
    c.run("envelope", arrays, c.num_edges, 1);
  }

  void backward(GpuContext& c) const override {
    GpuRowArrays<void> arrays = facts;
    arrays.a = c.length, arrays.c = c.gradient(output).data(), arrays.out = c.geometry, arrays.stride = c.dim_sh + 1;
    c.run("envelope_gradient", arrays, c.num_edges, 1);
  }
};

struct GpuEdgePerceptron : GpuStep {
  Perceptron<double> read;
  GpuPerceptron network;
  std::vector<int64_t> widths;  // taken of each input
  bool types, by_pair;
  std::vector<GpuLinearBothWays> parts;  // of the first layer, for each input
  GpuMemory::Buffer first;  // all of it

  GpuEdgePerceptron(const GpuReader& reader, const Json& json)
      : read(reader, json["layers"]), network(reader.model, read), widths(json["widths"].numbers<int64_t>()),
        types(json["types"].number != 0), by_pair(json.has("by_pair")), first(reader.model.keep(read.layers[0].weights)) {
    const auto& layer = read.layers[0];
    auto row = layer.weights.begin() + (types ? 2 * reader.num_types * layer.out : 0);
    for (const int64_t width : widths) {
      if (by_pair) break;
      const LinearBlock block{1, width, layer.out, 0, 0};
      const std::vector<double> weights(row, row + width * layer.out);
      parts.emplace_back(reader.model, make_linear_map(&block, 1, width, layer.out, width * layer.out), weights);
      row += width * layer.out;
    }
  }

  GpuRowArrays<void> arrays_of(const GpuContext& c) const {
    GpuRowArrays<void> arrays{};
    arrays.types = c.types, arrays.index = c.center, arrays.sender = c.neighbor;
    return arrays;
  }

  void forward(GpuContext& c) const override {
    GpuArray hidden = c.make(c.num_edges, read.layers[0].out);
    GpuRowArrays<void> arrays = arrays_of(c);
    arrays.out = hidden.data();
    if (types) {
      arrays.a = first.get(), arrays.more = c.num_types;
      c.run("rows_of_types", arrays, hidden.rows, hidden.width);
    }
    if (by_pair) {
      const GpuArray& x = c.value(inputs[0]);
      arrays.a = x.data(), arrays.b = first.get(), arrays.stride = x.width, arrays.more = widths[0];
      arrays.power = int(c.num_types);
      c.run("multiply_by_pair", arrays, hidden.rows, hidden.width);
    }
    for (size_t n = 0; n < parts.size(); ++n)
      parts[n].forth.apply(c, c.num_edges, c.value(inputs[n]), hidden, types || n > 0, false);
    std::vector<GpuArray>& kept = c.kept[size_t(number)];
    kept.push_back(std::move(hidden));
    c.put(output, network.forward_from_first(c, kept));
  }

  void backward(GpuContext& c) const override {
    const GpuArray by_first = network.backward_to_first(c, c.kept[size_t(number)], c.gradient(output));
    if (by_pair) {
      const GpuArray& to = c.zeroed(inputs[0]);
      GpuRowArrays<void> arrays = arrays_of(c);
      arrays.a = by_first.data(), arrays.b = first.get(), arrays.out = to.data(), arrays.stride = to.width;
      arrays.more = by_first.width, arrays.power = int(c.num_types);
      c.run("multiply_by_pair_back", arrays, c.num_edges, widths[0]);
    }
    for (size_t n = 0; n < parts.size(); ++n) {
      const bool whole = c.values_width[size_t(inputs[n])] == widths[n];
      const auto [to, add] = c.target(inputs[n], whole ? c.num_edges : 0);
      parts[n].back.apply(c, c.num_edges, by_first, to, add, false);
    }
  }
};

struct GpuBlend : GpuStep {
  double factor;

  explicit GpuBlend(const Json& json) : factor(json["factor"].number) {}

  std::vector<int> read_back() const override { return {inputs[0], inputs[1]}; }

  GpuRowArrays<void> arrays_of(GpuContext& c) const {
    GpuRowArrays<void> arrays{};
    arrays.a = c.value(inputs[0]).data(), arrays.b = c.value(inputs[1]).data(), arrays.factor = factor;
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
    arrays.c = from.data(), arrays.out = c.zeroed(inputs[1]).data(), arrays.other = c.zeroed(inputs[0]).data();
    c.run_warps("blend_gradient", arrays, from.rows, from.width);
    if (inputs.size() < 3) return;
    const auto [to, add] = c.target(inputs[2], from.rows);
    GpuRowArrays<void> by_x{};
    by_x.a = from.data(), by_x.out = to.data(), by_x.factor = factor, by_x.add = add;
    c.run("add_rows", by_x, from.rows, from.width);
  }
};

struct GpuWeightedHarmonics : GpuStep {
  int64_t channels, degrees;

  GpuWeightedHarmonics(const GpuReader& reader, const Json& json)
      : channels(reader.integer(json, "channels", 1)), degrees(reader.integer(json, "degrees", 1, 16)) {}

  std::vector<int> read_back() const override { return inputs; }

  GpuRowArrays<void> arrays_of(GpuContext& c) const {
    GpuRowArrays<void> arrays{};
    arrays.a = c.value(inputs[0]).data(), arrays.b = c.sh, arrays.stride = c.dim_sh;
    arrays.more = channels, arrays.power = int(degrees);
    return arrays;
  }

  void forward(GpuContext& c) const override {
    const int64_t width = degrees * degrees * channels;
    GpuRowArrays<void> arrays = arrays_of(c);
    arrays.out = c.put(output, c.make(c.num_edges, width)).data();
    c.run("weighted_harmonics", arrays, c.num_edges, width);
  }

  void backward(GpuContext& c) const override {
    const GpuArray& from = c.gradient(output);
    GpuRowArrays<void> arrays = arrays_of(c);
    arrays.c = from.data(), arrays.out = c.zeroed(inputs[0]).data(), arrays.other = c.geometry;
    arrays.begin = double(c.dim_sh + 1);
    c.run_warps("weighted_harmonics_gradient", arrays, from.rows, from.width);
  }
};

// Every center receives of itself, which sends ones.
struct GpuEnvironment : GpuStep {
  GpuConvolution convolution;

  GpuEnvironment(const GpuReader& reader, const Json& json) : convolution(reader.model, read_plan(reader, json), false) {}

  static Plan<double> read_plan(const GpuReader& reader, const Json& json) {
    const auto rows = json["paths"].numbers<int64_t>();
    const auto coefficients = reader.values(json["coefficients"].text);
    return make_plan<double>(reinterpret_cast<const PathRow*>(rows.data()), int64_t(rows.size() / 9), coefficients.data(),
                             int64_t(coefficients.size()), 1e-6, reader.integer(json, "channels", 1), reader.dim_sh,
                             reader.integer(json, "dim_out", 1), reader.integer(json, "num_weights", 1));
  }

  std::vector<int> read_back() const override { return inputs; }

  GpuArray ones(const GpuContext& c) const {
    GpuArray made = c.make(c.num_computed, convolution.dim_in());
    GpuRowArrays<void> arrays{};
    arrays.out = made.data(), arrays.factor = 1;
    c.run("fill", arrays, made.rows, made.width);
    return made;
  }

  void forward(GpuContext& c) const override {
    const GpuArray x = ones(c);
    c.put(output, convolution.send(c, {.x = x.data(), .w = c.value(inputs[0]).data(), .local = true}));
  }

  void backward(GpuContext& c) const override {
    const GpuArray x = ones(c), by_x = c.make(x.rows, x.width);
    const auto [by_w, add] = c.target(inputs[0], c.num_edges);
    const GpuArray own = c.make(by_w.rows, by_w.width);
    const GpuConvolution::Given given{.x = x.data(), .w = c.value(inputs[0]).data(), .local = true};
    convolution.receive(c, given, c.gradient(output), by_x, add ? own.data() : by_w.data());
    if (!add) return;
    GpuRowArrays<void> arrays{};
    arrays.a = own.data(), arrays.out = by_w.data(), arrays.factor = 1, arrays.add = true;
    c.run("add_rows", arrays, own.rows, own.width);
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

  // out = matrices of the centers times the rows.
  static void product(const GpuContext& c, const GpuCompiled& kernel, const void* matrices, const long long* center,
                      const GpuArray& left, const GpuArray& out) {
    GpuProductArrays<void> arrays{};
    arrays.matrices = matrices, arrays.left = left.data(), arrays.center = center, arrays.out = out.data();
    arrays.num_edges = left.rows;
    c.launch(kernel, (left.rows + gpu_edges_per_block - 1) / gpu_edges_per_block, arrays);
  }

  // One matrix for all atoms.
  static GpuMemory::Buffer zeros(const GpuContext& c) {
    const size_t bytes = size_t(c.num_computed) * sizeof(long long);
    GpuMemory::Buffer found = c.model.memory().take(bytes);
    if (bytes > 0) c.model.device().zero(found.get(), bytes);
    return found;
  }

  void forward(GpuContext& c) const override {
    GpuArray matrices = c.make(c.num_computed, rows * columns * channels);
    const GpuMemory::Buffer first = zeros(c);
    product(c, couple, coupling.get(), static_cast<const long long*>(first.get()), c.value(inputs[1]), matrices);
    GpuArray to = c.make(c.num_edges, rows * channels);
    product(c, multiply, matrices.data(), c.center, c.value(inputs[0]), to);
    c.put(output, std::move(to));
    c.kept[size_t(number)].push_back(std::move(matrices));
  }

  void backward(GpuContext& c) const override {
    const GpuArray &tensors = c.value(inputs[0]), &from = c.gradient(output);
    const GpuArray own = c.make(c.num_edges, columns * channels);
    product(c, multiply_back, c.kept[size_t(number)][0].data(), c.center, from, own);
    GpuArray by_matrices = c.make(c.num_computed, rows * columns * channels);
    GpuProductArrays<void> arrays{};
    arrays.left = from.data(), arrays.right = tensors.data(), arrays.out = by_matrices.data();
    arrays.order = c.counting, arrays.start = c.first_edge;
    arrays.num_edges = c.num_edges, arrays.num_atoms = c.num_computed, arrays.parts = 1;
    c.launch(outer, c.num_computed, arrays);
    const auto [by_tensors, add] = c.target(inputs[0], c.num_edges);
    GpuRowArrays<void> sum{};
    sum.a = own.data(), sum.out = by_tensors.data(), sum.factor = 1, sum.add = add;
    c.run("add_rows", sum, own.rows, own.width);
    const GpuMemory::Buffer first = zeros(c);
    const GpuArray& by_environment = c.target(inputs[1], c.num_computed).array;  // which has no other use
    product(c, couple_back, coupling.get(), static_cast<const long long*>(first.get()), by_matrices, by_environment);
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
    arrays.out = c.zeroed(inputs[1]).data();
    c.run("weighted_sum_by_tensors", arrays, c.num_edges, dim);
    arrays.out = c.zeroed(inputs[0]).data(), arrays.stride = dim;
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
  if (kind == "envelope") return std::make_unique<GpuEnvelope>(reader, json);
  if (kind == "edge_perceptron") return std::make_unique<GpuEdgePerceptron>(reader, json);
  if (kind == "blend") return std::make_unique<GpuBlend>(json);
  if (kind == "weighted_harmonics") return std::make_unique<GpuWeightedHarmonics>(reader, json);
  if (kind == "environment") return std::make_unique<GpuEnvironment>(reader, json);
  if (kind == "edge_product") return std::make_unique<GpuEdgeProduct>(reader, json);
  if (kind == "weighted_sum") return std::make_unique<GpuWeightedSum>(reader, json);
  if (kind == "sum_over_edges") return std::make_unique<GpuSumOverEdges>(json);
  return nullptr;
}

}  // namespace equipot
