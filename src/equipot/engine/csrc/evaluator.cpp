#include "evaluator.inl"

namespace equipot::inline EQUIPOT_INSTRUCTIONS {

std::unique_ptr<Evaluator> make_network(const Program& program) {
  if (program.json["dtype"].text == "float32") return std::make_unique<NetworkEvaluator<float>>(program);
  if (program.json["dtype"].text == "float64") return std::make_unique<NetworkEvaluator<double>>(program);
  throw std::runtime_error("its numbers are of type '" + program.json["dtype"].text + "', expected float32 or float64");
}

}  // namespace equipot
