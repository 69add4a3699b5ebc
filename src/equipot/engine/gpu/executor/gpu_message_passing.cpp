// The steps of message_passing.h on a GPU.
#include "message_passing.h"

#include "gpu_arrays.h"
#include "gpu_convolution.h"
#include "gpu_exchange.h"

namespace equipot {
namespace {

struct GpuEmbedding : GpuStep {
  GpuMemory::Buffer weights;
  int64_t width;

  GpuEmbedding(const GpuReader& reader, const Json& json) {
    const auto values = reader.values(json["weights"].text);
    width = int64_t(values.size()) / reader.num_types;
    weights = reader.model.keep(values);
  }

  void forward(GpuContext& c) const override {
    GpuRowArrays<void> arrays{};
    arrays.a = weights.get(), arrays.types = c.types;
    arrays.out = c.put(output, c.make(c.num_atoms, width)).data();
    c.run("embed", arrays, c.num_atoms, width);
  }

  void backward(GpuContext&) const override {}
};

struct GpuLinearStep : GpuStep {
  bool by_type;
  int64_t dim_out, sets;
  GpuLinearBothWays map;

  GpuLinearStep(const GpuReader& reader, const Json& json)
      : by_type(json["by_type"].number != 0), dim_out(reader.integer(json, "dim_out", 1)),
        sets(by_type ? reader.num_types : 1), map(read(reader, json, sets)) {}

  static GpuLinearBothWays read(const GpuReader& reader, const Json& json, int64_t sets) {
    const auto weights = reader.values(json["weights"].text);
    std::vector<double> bias;
    if (json.has("bias")) bias = reader.values(json["bias"].text);
    return {reader.model, read_map(reader, json, "dim_in", "dim_out", int64_t(weights.size()) / sets), weights, sets, bias};
  }

  void forward(GpuContext& c) const override {
    const GpuArray& x = c.value(inputs[0]);
    const int64_t rows = by_type ? c.num_computed : x.rows;
    GpuArray y = c.make(rows, dim_out, c.num_atoms);  // with room for ghosts
    map.forth.apply(c, rows, x, y, {.by_type = sets > 1});
    c.put(output, std::move(y));
  }

  void backward(GpuContext& c) const override {
    const GpuArray& from = c.gradient(output);
    const auto [to, add] = c.target(inputs[0], from.rows);
    map.back.apply(c, from.rows, from, to, {.add = add, .by_type = sets > 1});
  }
};

struct GpuElementFactors : GpuStep {
  GpuMemory::Buffer factors;

  GpuElementFactors(const GpuReader& reader, const Json& json)
      : factors(reader.model.keep(reader.values(json["factors"].text))) {}

  void forward(GpuContext& c) const override {
    const GpuArray& x = c.value(inputs[0]);
    GpuArray y = c.make(x.rows, x.width, c.num_atoms);
    run(c, x, y, false);
    c.put(output, std::move(y));
  }

  void backward(GpuContext& c) const override {
    const GpuArray& from = c.gradient(output);
    const auto [to, add] = c.target(inputs[0], from.rows);
    run(c, from, to, add);
  }

  void run(const GpuContext& c, const GpuArray& x, const GpuArray& y, bool add) const {
    GpuRowArrays<void> arrays{};
    arrays.a = x.data(), arrays.b = factors.get(), arrays.types = c.types, arrays.out = y.data(), arrays.add = add;
    c.run("multiply_by_type", arrays, x.rows, x.width);
  }
};

struct GpuSilu : GpuStep {
  std::vector<int> read_back() const override { return inputs; }

  void forward(GpuContext& c) const override {
    const GpuArray& x = c.value(inputs[0]);
    GpuRowArrays<void> arrays{};
    arrays.a = x.data(), arrays.out = c.put(output, c.make(x.rows, x.width, c.num_atoms)).data();
    c.run("silu", arrays, x.rows, x.width);
  }

  void backward(GpuContext& c) const override {
    const GpuArray& from = c.gradient(output);
    const auto [to, add] = c.target(inputs[0], from.rows);
    GpuRowArrays<void> arrays{};
    arrays.a = c.value(inputs[0]).data(), arrays.b = from.data(), arrays.out = to.data(), arrays.add = add;
    c.run("silu_gradient", arrays, from.rows, from.width);
  }
};

// Rows of atoms that other domains own come from there, before the first step that reads them.
struct GpuExchangeStep : GpuStep {
  void forward(GpuContext& c) const override {
    GpuArray& x = c.put(output, std::move(c.value(inputs[0])));
    if (c.exchange == nullptr) return;
    c.exchange->begin_forward(c, x);
    c.coming = output;
  }

  void backward(GpuContext& c) const override {
    GpuArray from = std::move(c.gradient(output));
    if (c.exchange != nullptr) {
      if (!c.exchange->is_under_way()) c.exchange->begin_backward(c, from);
      c.exchange->end_backward(c, from);
    }
    from.rows = c.values_rows[size_t(inputs[0])];
    c.gradient(inputs[0]) = std::move(from);
  }
};

// The weights of messages: a table, or a perceptron of Bessel functions at every edge, which is evaluated again on the way
// back: what it gives of all edges is larger than everything else.
struct GpuRadial {
  GpuMemory::Buffer table;
  int64_t intervals = 0, num_weights;
  double cutoff = 0;
  std::unique_ptr<GpuBessel> basis;
  std::unique_ptr<GpuPerceptron> network;

  GpuRadial(const GpuReader& reader, const Json& json) {
    const Radial<double> radial(reader, json);
    num_weights = radial.num_weights;
    if (radial.is_table()) {
      table = reader.model.keep(reader.values(json["table"].text));
      intervals = radial.table.intervals, cutoff = radial.table.cutoff;
    } else {
      basis = std::make_unique<GpuBessel>(reader.model, radial.basis);
      network = std::make_unique<GpuPerceptron>(reader.model, radial.network);
    }
  }

  // Weights (num_edges, num_weights), and what is needed on the way back; only of a network.
  GpuArray forward(const GpuContext& c, std::vector<GpuArray>& hidden) const {
    if (!network) return {};
    hidden.push_back(network->first(c, basis->forward(c)));
    return network->forward_from_first(c, hidden);
  }

  void backward(const GpuContext& c, const std::vector<GpuArray>& hidden, GpuArray by_weights) const {
    const GpuArray by_first = network->backward_to_first(c, hidden, std::move(by_weights));
    const GpuArray by_basis = c.make(c.num_edges, basis->size());
    network->layers()[0].back.apply(c, c.num_edges, by_first, by_basis, {});
    basis->backward(c, by_basis);
  }
};

struct GpuInteraction : GpuStep {
  GpuRadial radial;
  GpuConvolution convolution;
  GpuLinearBothWays mixing;
  GateShape gate;
  GpuCompiled gate_forth, gate_back;

  GpuInteraction(const GpuReader& reader, const Json& json)
      : radial(reader, json["radial"]), convolution(reader.model, read_plan(reader, json), !radial.network),
        mixing(reader.model, read_mixing(reader, json), reader.values(json["mixing"].text)) {
    gate = make_gate(read_mixing(reader, json), reader.integer(json, "num_even", 0), reader.integer(json, "num_odd", 0),
                     json["even_factor"].number, json["odd_factor"].number);
    gate_forth = reader.model.compile(generate(gate, reader.model.single(), GpuGatePass::value));
    gate_back = reader.model.compile(generate(gate, reader.model.single(), GpuGatePass::gradient));
  }

  static LinearMap read_mixing(const GpuReader& reader, const Json& json) {
    return read_map(reader, json, "dim_messages", "dim_gate", int64_t(reader.values(json["mixing"].text).size()));
  }

  Plan<double> read_plan(const GpuReader& reader, const Json& json) const {
    const auto rows = json["paths"].numbers<int64_t>();
    const auto coefficients = reader.values(json["coefficients"].text);
    return make_plan<double>(reinterpret_cast<const PathRow*>(rows.data()), int64_t(rows.size() / 9), coefficients.data(),
                             int64_t(coefficients.size()), 1e-6, reader.integer(json, "dim_in", 1), reader.dim_sh,
                             reader.integer(json, "dim_messages", 1), radial.num_weights);
  }

  std::vector<int> read_back() const override { return {inputs[0]}; }
  bool works_beside_exchange() const override { return true; }

  GpuConvolution::Given given(const GpuArray& x, const GpuArray& weights) const {
    return {.x = x.data(), .w = weights.data(), .table = radial.table.get(), .intervals = radial.intervals,
            .cutoff = radial.cutoff};
  }

  void forward(GpuContext& c) const override {
    GpuArray update = std::move(c.value(inputs[1]));
    {
      std::vector<GpuArray> hidden;
      const GpuArray weights = radial.forward(c, hidden);
      const GpuArray messages = convolution.send(c, given(c.value(inputs[0]), weights), [&] {
        if (c.coming == inputs[0]) c.arrive();
      });
      mixing.forth.apply(c, c.num_computed, messages, update, {.add = true});
    }
    GpuArray out = c.make(c.num_computed, gate.dim_out, c.num_atoms);
    GpuGateArrays<void> arrays{};
    arrays.x = update.data(), arrays.out = out.data();
    c.launch(gate_forth, c.num_computed, arrays);
    c.kept[size_t(number)].push_back(std::move(update));
    c.put(output, std::move(out));
  }

  void backward(GpuContext& c) const override {
    GpuArray by_update = c.make(c.num_computed, gate.dim_in);
    GpuGateArrays<void> arrays{};
    arrays.x = c.kept[size_t(number)][0].data(), arrays.gradient = c.gradient(output).data(), arrays.out = by_update.data();
    c.launch(gate_back, c.num_computed, arrays);
    c.kept[size_t(number)].clear(), c.gradient(output) = {};
    GpuArray by_messages = c.make(c.num_computed, convolution.dim_out());
    mixing.back.apply(c, c.num_computed, by_update, by_messages, {});
    c.gradient(inputs[1]) = std::move(by_update);
    std::vector<GpuArray> hidden;
    const GpuArray weights = radial.forward(c, hidden);
    GpuArray by_weights;
    if (weights.exists()) by_weights = c.make(c.num_edges, radial.num_weights);
    receive(c, given(c.value(inputs[0]), weights), by_messages, by_weights);
    if (weights.exists()) radial.backward(c, hidden, std::move(by_weights));
  }

  void receive(GpuContext& c, const GpuConvolution::Given& given, const GpuArray& by_messages, const GpuArray& by_weights) const {
    const auto [by_x, add] = c.target(inputs[0], c.num_atoms);
    const auto send_home = [&, &by_x = by_x] {
      if (sends_home && c.exchange != nullptr) c.exchange->begin_backward(c, by_x);
    };
    if (!add) return convolution.receive(c, given, by_messages, by_x, by_weights.data(), send_home);
    const GpuArray own = c.make(by_x.rows, by_x.width);
    convolution.receive(c, given, by_messages, own, by_weights.data(), [] {});
    GpuRowArrays<void> arrays{};
    arrays.a = own.data(), arrays.out = by_x.data(), arrays.factor = 1, arrays.add = true;
    c.run("add_rows", arrays, own.rows, own.width);
    send_home();
  }
};

}  // namespace

std::unique_ptr<GpuStep> make_message_passing(const GpuReader& reader, const Json& json) {
  const std::string& kind = json["do"].text;
  if (kind == "embedding") return std::make_unique<GpuEmbedding>(reader, json);
  if (kind == "linear") return std::make_unique<GpuLinearStep>(reader, json);
  if (kind == "element_factors") return std::make_unique<GpuElementFactors>(reader, json);
  if (kind == "silu") return std::make_unique<GpuSilu>();
  if (kind == "exchange") return std::make_unique<GpuExchangeStep>();
  if (kind == "interaction") return std::make_unique<GpuInteraction>(reader, json);
  return nullptr;
}

}  // namespace equipot
