// Writes one pass as CUDA C++: gpu_code.cpp all edges of an atom, gpu_path_code.cpp the paths of one edge.
#pragma once

#include <map>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "gpu_groups.h"

namespace equipot {

template <class... Parts>
std::string join(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

class Writer {
 public:
  Writer(const Plan<double>& plan, const GpuForm& form);

  GpuCode write();

 private:
  struct Place {
    int k, i;
    const char* sign;  // "" or "-"
  };
  // Elements of M that are the same but for their signs: sum of value * harmonic.
  struct Element {
    std::vector<std::pair<int, double>> terms;
    std::vector<Place> places;
  };

  template <class... Parts>
  void line(const Parts&... parts) {
    for (int n = 0; n < 2 * depth_; ++n) text_ << ' ';
    (text_ << ... << parts) << '\n';
  }
  void open(const std::string& start) { line(start.empty() ? "{" : start + " {"), ++depth_; }
  void close() { --depth_, line("}"); }

  // gpu_path_code.cpp
  std::string number(double value) const;
  std::vector<Element> elements(const Coupling& coupling) const;
  void matrix_element(const Element& element);
  void weights(const Bundle& bundle, bool slopes);
  void columns(const Group& group, int degree);
  void products(const char* name, const Bundle& bundle, bool with_cotangents);
  void declare(const Bundle& bundle, const char* name, int count);
  void center_bundle(const Bundle& bundle);
  void neighbor_bundle(const Bundle& bundle);
  void neighbor_identity(const Bundle& bundle);
  void neighbor_scalar(const Bundle& bundle);
  void table_bundle(const Bundle& bundle);
  void received(const Bundle& bundle, bool geometry, bool weighted);
  void add_by_weights(const Bundle& bundle);
  void gradient_by_weights(const Item& item, size_t n, int rows);

  // gpu_code.cpp
  void begin_group(const Group& group, size_t n);
  void begin_edges(const Group& group);
  void read_record();
  void read_arrays();
  void harmonics(const Group& group);
  void bundles(const Group& group);
  void store_sums(const Group& group);
  void center_group(const Group& group);
  void neighbor_group(const Group& group, int64_t first_warp);
  void table_group(const Group& group);
  void share_sums(const Group& group, int64_t first_warp);
  void share_lanes();

  std::vector<std::string> shared_values() const;

  const Plan<double>& plan_;
  const GpuForm& form_;
  std::vector<Group> groups_;
  std::map<int, std::vector<std::pair<int, double>>> terms_;  // by element: harmonic, coefficient
  std::ostringstream text_;
  int depth_ = 0;
};

}  // namespace equipot
