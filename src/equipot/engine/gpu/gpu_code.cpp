// The convolution's kernels as text; gpu_code.h says what they do.
#include "gpu_code.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <sstream>
#include <vector>

#include "gpu_arrays.h"
#include "gpu_device.h"
#include "splines.h"

namespace equipot {
namespace {

constexpr int64_t warp_size = 32;

// A path, and where its accumulators lie among those of its group.
struct Item {
  const Coupling* coupling;
  Path path;
  int64_t place;
};

// Paths of equal numbers of channels that one warp takes together.
struct Group {
  int64_t channels;
  int64_t accumulators;
  std::vector<Item> items;
};

int components(int degree) { return 2 * degree + 1; }

// What an item needs of the registers that live through the loop over edges.
int64_t accumulators(const Coupling& coupling, GpuPass pass) {
  return pass == GpuPass::center ? components(coupling.l_out) : 6;
}

std::vector<Group> make_groups(const Plan<double>& plan, const GpuForm& form) {
  // Beyond this the compiler would have to spill; a double takes two registers.
  const int64_t limit = form.single ? 48 : 24;
  std::vector<Group> groups;
  std::map<std::pair<int64_t, int64_t>, size_t> open;  // the group that takes more paths like this one
  for (const Coupling& coupling : plan.couplings) {
    for (const Path& path : coupling.paths) {
      // The neighbor pass adds to an input block: all paths from it belong together.
      const bool by_block = form.pass == GpuPass::neighbor;
      const auto [at, is_new] =
          open.try_emplace({path.channels, by_block ? path.in_offset : 0}, groups.size());
      const int64_t needed = by_block ? 0 : accumulators(coupling, form.pass);
      if (is_new || groups[at->second].accumulators + needed > limit) {
        at->second = groups.size();
        groups.push_back({path.channels, 0, {}});
      }
      Group& group = groups[at->second];
      group.items.push_back({&coupling, path, group.accumulators});
      group.accumulators += needed;
    }
  }
  return groups;
}

class Writer {
 public:
  Writer(const Plan<double>& plan, const GpuForm& form) : plan_(plan), form_(form), groups_(make_groups(plan, form)) {}

  GpuCode write();

 private:
  using Terms = std::vector<std::pair<int, double>>;  // harmonic, coefficient

  template <class... Parts>
  void line(const Parts&... parts) {
    for (int n = 0; n < 2 * depth_; ++n) text_ << ' ';
    (text_ << ... << parts) << '\n';
  }
  void open(const std::string& start) { line(start.empty() ? "{" : start + " {"), ++depth_; }
  void close() { --depth_, line("}"); }

  std::string number(double value) const {
    char buffer[40];
    std::snprintf(buffer, sizeof buffer, form_.single ? "%.9ef" : "%.17e", value);
    return buffer;
  }

  const Terms& terms(const Coupling& coupling, int k, int i) const;
  std::string element(const Coupling& coupling, int k, int i) const;
  std::string row_sum(const Coupling& coupling, const char* matrix, const char* vector, int k, bool transposed) const;
  bool uses_row(const Coupling& coupling, int i, bool transposed) const;

  void harmonics(const Group& group);
  void matrix(const Coupling& coupling, const char* name, const char* harmonic);
  void weights(const Path& path, bool slopes);
  void columns(const Item& item);
  void items(const Group& group, void (Writer::*item)(const Item&));

  void center_item(const Item& item);
  void neighbor_item(const Item& item);
  void table_item(const Item& item);
  void received_rows(const Item& item);
  void gradient_by_weights(const Item& item);
  void gradient_by_harmonics(const Item& item);

  void begin_group(const Group& group, size_t n);
  void begin_edges();
  void center_group(const Group& group);
  void neighbor_group(const Group& group, int64_t first_warp);
  void table_group(const Group& group);
  void share_sums();

  const Plan<double>& plan_;
  const GpuForm& form_;
  std::vector<Group> groups_;
  std::map<int, Terms> terms_;  // by element
  std::ostringstream text_;
  int depth_ = 0;
};

template <class... Parts>
std::string join(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

// ---- the small matrix M -----------------------------------------------------------------------------------

const Writer::Terms& Writer::terms(const Coupling& coupling, int k, int i) const {
  static const Terms none;
  if (coupling.diagonal && k != i) return none;
  const int n = coupling.first_element + (coupling.diagonal ? 0 : k * components(coupling.l_in) + i);
  const auto found = terms_.find(n);
  return found == terms_.end() ? none : found->second;
}

// The end of its name; empty if it is zero.
std::string Writer::element(const Coupling& coupling, int k, int i) const {
  if (terms(coupling, k, i).empty()) return "";
  return coupling.diagonal ? "0" : join(k, "_", i);
}

// Row k of matrix times vector; transposed: column k.
std::string Writer::row_sum(const Coupling& coupling, const char* matrix, const char* vector, int k,
                            bool transposed) const {
  std::string sum;
  const int count = components(transposed ? coupling.l_out : coupling.l_in);
  for (int i = 0; i < count; ++i) {
    const std::string name = transposed ? element(coupling, i, k) : element(coupling, k, i);
    if (!name.empty()) sum += join(sum.empty() ? "" : " + ", matrix, name, " * ", vector, i);
  }
  return sum.empty() ? "T(0)" : sum;
}

void Writer::matrix(const Coupling& coupling, const char* name, const char* harmonic) {
  for (int k = 0; k < components(coupling.l_out); ++k)
    for (int i = 0; i < components(coupling.l_in); ++i) {
      if (coupling.diagonal && k > 0) return;
      std::string sum;
      for (const auto& [j, value] : terms(coupling, k, i))
        sum += join(sum.empty() ? "" : " + ", number(value), " * ", harmonic, j);
      if (!sum.empty()) line("const T ", name, element(coupling, k, i), " = ", sum, ";");
    }
}

// ---- what an edge's paths share ---------------------------------------------------------------------------

void Writer::harmonics(const Group& group) {
  std::vector<bool> used(plan_.dim_sh, false);
  for (const Item& item : group.items)
    for (int t = item.coupling->first_term; t < item.coupling->last_term; ++t)
      used[plan_.terms[t].harmonic] = true;
  for (int64_t j = 0; j < plan_.dim_sh; ++j) {
    if (!used[j]) continue;
    line("const T y", j, " = load(a.sh + edge * ", plan_.dim_sh, " + ", j, ");");
    if (form_.mixed) line("const T dy", j, " = load(a.sh_cotangent + edge * ", plan_.dim_sh, " + ", j, ");");
  }
}

// w, and for the mixed form its cotangent dw; `slopes`: their derivatives by the distance too.
void Writer::weights(const Path& path, bool slopes) {
  const std::string at = join(path.weight_offset, " + c");
  if (!form_.tabulated) {
    line("const T w = load(a.w + weight_row + ", at, ");");
    if (form_.mixed) line("const T dw = load(a.w_cotangent + weight_row + ", at, ");");
    return;
  }
  line("const T* const rows = a.table + weight_row + ", at, ";");
  line("const T w = spline(rows, knot.value);");
  if (slopes || form_.mixed) line("const T slope = spline(rows, knot.slope);");
  if (!form_.mixed) return;
  line("T dw = length_cotangent * slope;");
  if (slopes) line("T dslope = length_cotangent * spline(rows, knot.curvature);");
  open("if (a.table_cotangent != nullptr)");
  line("const T* const rows = a.table_cotangent + weight_row + ", at, ";");
  line("dw += spline(rows, knot.value);");
  if (slopes) line("dslope += spline(rows, knot.slope);");
  close();
}

// x, and for the mixed form its cotangent dx. They are constant for all edges of the neighbor pass.
void Writer::columns(const Item& item) {
  for (int i = 0; i < components(item.coupling->l_in); ++i) {
    const int64_t at = item.path.in_offset + i * item.path.channels;
    line("const T x", i, " = load(a.x + in_row + ", at, " + c);");
    if (form_.mixed) line("const T dx", i, " = load(a.x_cotangent + in_row + ", at, " + c);");
  }
}

void Writer::items(const Group& group, void (Writer::*item)(const Item&)) {
  for (size_t n = 0; n < group.items.size(); ++n) {
    const Coupling* coupling = group.items[n].coupling;
    if (n == 0 || coupling != group.items[n - 1].coupling) {
      open("");
      matrix(*coupling, "m", "y");
      if (form_.mixed) matrix(*coupling, "dm", "dy");
    }
    open("");
    (this->*item)(group.items[n]);
    close();
    if (n + 1 == group.items.size() || coupling != group.items[n + 1].coupling) close();
  }
}

// ---- one path of one edge ---------------------------------------------------------------------------------

// sum[k] += M (w x), mixed: M (w x' + w' x) + M' (w x)
void Writer::center_item(const Item& item) {
  const Coupling& coupling = *item.coupling;
  weights(item.path, false);
  columns(item);
  for (int i = 0; i < components(coupling.l_in); ++i) {
    line("const T s", i, form_.mixed ? join(" = w * dx", i, " + dw * x", i, ";") : join(" = w * x", i, ";"));
    if (form_.mixed) line("const T p", i, " = w * x", i, ";");
  }
  for (int k = 0; k < components(coupling.l_out); ++k) {
    line("sum", item.place + k, " += ", row_sum(coupling, "m", "s", k, false), ";");
    if (form_.mixed) line("sum", item.place + k, " += ", row_sum(coupling, "dm", "p", k, false), ";");
  }
}

// s = M^T g, and for the mixed form ds = M'^T g
void Writer::received_rows(const Item& item) {
  const Coupling& coupling = *item.coupling;
  for (int k = 0; k < components(coupling.l_out); ++k)
    line("const T g", k, " = load(a.g + out_row + ", item.path.out_offset + k * item.path.out_stride, " + c);");
  for (int i = 0; i < components(coupling.l_in); ++i) {
    line("const T s", i, " = ", row_sum(coupling, "m", "g", i, true), ";");
    if (form_.mixed) line("const T ds", i, " = ", row_sum(coupling, "dm", "g", i, true), ";");
  }
}

// by_w = sum of s x, mixed: s x' + s' x, and plain_by_w as without
void Writer::gradient_by_weights(const Item& item) {
  std::string plain, mixed;
  for (int i = 0; i < components(item.coupling->l_in); ++i) {
    plain += join(i > 0 ? " + " : "", "s", i, " * x", i);
    mixed += join(i > 0 ? " + " : "", "s", i, " * dx", i, " + ds", i, " * x", i);
  }
  line("const T by_w = ", form_.mixed ? mixed : plain, ";");
  if (form_.mixed && form_.tabulated) line("const T plain_by_w = ", plain, ";");
}

// by_y[j] += C[k,i,j] g[k] z[i], where z = w x, mixed: w x' + w' x
void Writer::gradient_by_harmonics(const Item& item) {
  const Coupling& coupling = *item.coupling;
  for (int i = 0; i < components(coupling.l_in); ++i)
    line("const T z", i, form_.mixed ? join(" = w * dx", i, " + dw * x", i, ";") : join(" = w * x", i, ";"));
  const auto add = [&](const std::string& by_m, const Terms& terms) {
    if (terms.empty()) return;
    open("");
    line("const T by_m = ", by_m, ";");
    for (const auto& [j, value] : terms) line("by_y", j, " += ", number(value), " * by_m;");
    close();
  };
  std::string trace;
  for (int k = 0; k < components(coupling.l_out); ++k)
    for (int i = 0; i < components(coupling.l_in); ++i) {
      if (!coupling.diagonal) add(join("g", k, " * z", i), terms(coupling, k, i));
      else if (k == i) trace += join(k > 0 ? " + " : "", "g", k, " * z", k);
    }
  if (coupling.diagonal) add(trace, terms(coupling, 0, 0));
}

void Writer::neighbor_item(const Item& item) {
  const bool slopes = form_.tabulated && form_.geometry;
  weights(item.path, slopes);
  received_rows(item);
  for (int i = 0; i < components(item.coupling->l_in); ++i)
    line("by_x", i, " += ", form_.mixed ? join("dw * s", i, " + w * ds", i, ";") : join("w * s", i, ";"));
  if (!form_.tabulated || form_.geometry) gradient_by_weights(item);
  if (!form_.tabulated) line("if (active) a.grad_w[weight_row + ", item.path.weight_offset, " + c] = by_w;");
  if (slopes) line("by_length += by_w * slope", form_.mixed ? " + plain_by_w * dslope;" : ";");
  if (form_.geometry) gradient_by_harmonics(item);
}

// row[b] += B_b by_w, mixed: also r' dB_b/dr plain_by_w
void Writer::table_item(const Item& item) {
  columns(item);
  received_rows(item);
  gradient_by_weights(item);
  if (form_.mixed) line("const T along_slope = length_cotangent * plain_by_w;");
  for (int b = 0; b < 6; ++b)
    line("sum", item.place + b, " += knot.value[", b, "] * by_w",
         form_.mixed ? join(" + knot.slope[", b, "] * along_slope;") : ";");
}

// ---- all edges of one atom or interval --------------------------------------------------------------------

void Writer::begin_group(const Group& group, size_t n) {
  open(join("__device__ __forceinline__ void group_", n, "(const GpuArrays<T>& a, Index tile)"));
  line("const Index channel = tile * blockDim.x + threadIdx.x;");
  line("const bool active = channel < ", group.channels, ";");
  line("const Index c = active ? channel : ", group.channels - 1, ";");
}

// In order; the part of an interval's edges that is this block's.
void Writer::begin_edges() {
  const bool by_table = form_.pass == GpuPass::table;
  line("const Index item = blockIdx.x", by_table ? " / a.parts;" : ";");
  line("const Index begin = load(a.start + item), end = load(a.start + item + 1);");
  if (by_table) {
    line("const Index part = blockIdx.x % a.parts, count = end - begin;");
    open("for (Index n = begin + count * part / a.parts; n < begin + count * (part + 1) / a.parts; ++n)");
  } else {
    open("for (Index n = begin; n < end; ++n)");
  }
  line("const Index edge = load(a.order + n);");
  if (form_.pass != GpuPass::neighbor)
    line("const Index in_row = load(a.neighbor + edge) * ", plan_.dim_in, ";");
  if (form_.pass != GpuPass::center) line("const Index out_row = load(a.center + edge) * ", plan_.dim_out, ";");
  if (!form_.tabulated) return line("const Index weight_row = edge * ", plan_.num_weights, ";");
  line("const Knot<T> knot = locate(a, edge", by_table ? ", item);" : ");");
  if (!by_table) line("const Index weight_row = knot.row * ", plan_.num_weights, ";");
  if (form_.mixed)
    line("const T length_cotangent = a.length_cotangent == nullptr ? T(0) : load(a.length_cotangent + edge);");
}

void Writer::center_group(const Group& group) {
  for (int64_t n = 0; n < group.accumulators; ++n) line("T sum", n, " = 0;");
  begin_edges();
  harmonics(group);
  items(group, &Writer::center_item);
  close();
  line("if (!active) return;");
  line("T* const out = a.grad_g + item * ", plan_.dim_out, " + c;");
  for (const Item& item : group.items)
    for (int k = 0; k < components(item.coupling->l_out); ++k)
      line("out[", item.path.out_offset + k * item.path.out_stride, "] = sum", item.place + k, ";");
}

void Writer::neighbor_group(const Group& group, int64_t first_warp) {
  const Item& any = group.items.front();  // all have the same input block
  const int rows = components(any.coupling->l_in);
  line("const Index in_row = Index(blockIdx.x) * ", plan_.dim_in, ";");
  columns(any);
  for (int i = 0; i < rows; ++i) line("T by_x", i, " = 0;");
  begin_edges();
  harmonics(group);
  if (form_.geometry)
    for (int64_t j = 0; j < plan_.dim_sh; ++j) line("T by_y", j, " = 0;");
  if (form_.geometry && form_.tabulated) line("T by_length = 0;");
  items(group, &Writer::neighbor_item);
  if (form_.geometry) {
    line("const Index warp = ", first_warp, " + channel / 32;");
    share_sums();
  }
  close();
  line("if (!active) return;");
  for (int i = 0; i < rows; ++i)
    line("a.grad_x[in_row + ", any.path.in_offset + i * any.path.channels, " + c] = by_x", i, ";");
}

// The sums over channels, 32 values at a time.
void Writer::share_sums() {
  std::vector<std::string> values;
  for (int64_t j = 0; j < plan_.dim_sh; ++j) values.push_back(join("by_y", j));
  if (form_.tabulated) values.push_back("by_length");
  for (size_t first = 0; first < values.size(); first += 32) {
    const size_t count = std::min<size_t>(values.size() - first, 32);
    size_t padded = 1;
    while (padded < count) padded *= 2;
    std::string list;
    for (size_t n = 0; n < padded; ++n)
      list += (n > 0 ? ", " : "") + (n < count ? join("active ? ", values[first + n], " : T(0)") : "T(0)");
    open("");
    line("T values[] = {", list, "};");
    line("const int lane = threadIdx.x % 32, value = lane / ", 32 / padded, ";");
    line("const T total = warp_sums<", padded, ">(values, lane);");
    line("if (lane % ", 32 / padded, " == 0 && value < ", count, ")");
    line("  a.shares[(warp * a.num_edges + edge) * ", values.size(), " + ", first, " + value] = total;");
    close();
  }
}

void Writer::table_group(const Group& group) {
  for (int64_t n = 0; n < group.accumulators; ++n) line("T sum", n, " = 0;");
  begin_edges();
  harmonics(group);
  items(group, &Writer::table_item);
  close();
  line("if (!active) return;");
  line("T* const out = a.grad_rows + (part * a.intervals + item) * ", 6 * plan_.num_weights, " + c;");
  for (const Item& item : group.items)
    for (int b = 0; b < 6; ++b)
      line("out[", b * plan_.num_weights + item.path.weight_offset, "] = sum", item.place + b, ";");
}

GpuCode Writer::write() {
  for (const Term<double>& term : plan_.terms) terms_[term.element].emplace_back(term.harmonic, term.value);
  // Two warps to a block where every group has an even number of them.
  int64_t warps = 0, blocks = 0;
  const auto warps_of = [](const Group& group) { return (group.channels + warp_size - 1) / warp_size; };
  const bool even = std::all_of(groups_.begin(), groups_.end(), [&](const Group& g) { return warps_of(g) % 2 == 0; });
  const int64_t warps_per_block = even ? 2 : 1, threads = warps_per_block * warp_size;

  constexpr const char* names[] = {"center", "neighbor", "table"};
  line("// ", names[int(form_.pass)], " pass", form_.mixed ? ", mixed" : "", form_.tabulated ? ", tabulated" : "",
       form_.geometry ? "" : ", features only", ", ", groups_.size(), " groups");
  text_ << "typedef " << (form_.single ? "float" : "double") << " T;\n" << gpu_common_text << gpu_arrays_text << '\n';
  if (form_.tabulated) text_ << "constexpr Index num_weights = " << plan_.num_weights
                               << ";\n#define EQUIPOT_DEVICE __device__ __forceinline__\n" << splines_text << gpu_spline_text;
  std::string cases;
  for (size_t n = 0; n < groups_.size(); ++n) {
    begin_group(groups_[n], n);
    if (form_.pass == GpuPass::center) center_group(groups_[n]);
    if (form_.pass == GpuPass::neighbor) neighbor_group(groups_[n], warps);
    if (form_.pass == GpuPass::table) table_group(groups_[n]);
    close();
    const int64_t first = blocks;
    warps += warps_of(groups_[n]), blocks += warps_of(groups_[n]) / warps_per_block;
    cases += join("  if (blockIdx.y < ", blocks, ") return group_", n, "(a, blockIdx.y - ", first, ");\n");
  }
  line("extern \"C\" __global__ void __launch_bounds__(", threads, ") ", gpu_kernel_name, "(const GpuArrays<T> a) {");
  text_ << cases << "}\n";
  return {text_.str(), blocks, 1, threads, warps, plan_.dim_sh + form_.tabulated};
}

}  // namespace

GpuCode generate(const Plan<double>& plan, const GpuForm& form) { return Writer(plan, form).write(); }

}  // namespace equipot
