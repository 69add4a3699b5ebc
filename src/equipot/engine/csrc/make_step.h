// The steps that a program may have.
#pragma once

#include "message_passing.h"
#include "strictly_local.h"

namespace equipot::inline EQUIPOT_INSTRUCTIONS {

template <class T>
std::unique_ptr<Step<T>> make_step(const Reader& reader, const Json& json, int64_t num_types, int64_t dim_sh) {
  const std::string& kind = json["do"].text;
  if (kind == "embedding") return std::make_unique<Embedding<T>>(reader, json, num_types);
  if (kind == "linear") return std::make_unique<Linear<T>>(reader, json, num_types);
  if (kind == "element_factors") return std::make_unique<ElementFactors<T>>(reader, json, num_types);
  if (kind == "silu") return std::make_unique<Silu<T>>();
  if (kind == "exchange") return std::make_unique<Exchange<T>>();
  if (kind == "interaction") return std::make_unique<Interaction<T>>(reader, json, dim_sh);
  if (kind == "bessel") return std::make_unique<BesselStep<T>>(reader, json);
  if (kind == "envelope") return std::make_unique<Envelope<T>>(reader, json);
  if (kind == "edge_perceptron") return std::make_unique<EdgePerceptron<T>>(reader, json, num_types);
  if (kind == "blend") return std::make_unique<Blend<T>>(reader, json);
  if (kind == "weighted_harmonics") return std::make_unique<WeightedHarmonics<T>>(reader, json, dim_sh);
  if (kind == "environment") return std::make_unique<Environment<T>>(reader, json, dim_sh);
  if (kind == "edge_product") return std::make_unique<EdgeProduct<T>>(reader, json);
  if (kind == "weighted_sum") return std::make_unique<WeightedSum<T>>(reader, json);
  if (kind == "sum_over_edges") return std::make_unique<SumOverEdges<T>>(reader, json);
  throw std::runtime_error("it has a step '" + kind + "', which this engine does not know. Upgrade equipot");
}

}  // namespace equipot
