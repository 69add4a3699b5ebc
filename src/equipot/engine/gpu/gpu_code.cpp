// The convolution's kernels as text; gpu_code.h says what they do.
#include "gpu_code.h"

#include <algorithm>
#include <vector>

#include "gpu_arrays.h"
#include "gpu_device.h"
#include "gpu_writer.h"
#include "splines.h"

namespace equipot {

Writer::Writer(const Plan<double>& plan, const GpuForm& form)
    : plan_(plan), form_(form), groups_(make_groups(plan, form)) {
  for (const Term<double>& term : plan.terms) terms_[term.element].emplace_back(term.harmonic, term.value);
}

// ---- one edge ---------------------------------------------------------------------------------------------

// All of it; the compiler leaves out what this pass does not use.
void Writer::read_record() {
  const int64_t width = gpu_record_width(plan_.dim_sh);
  line("T record[", width, "];");
  line("read(a.records + Index(edge) * ", width, ", record, ", width, ");");
  line("const T *const value = record, *const slope = record + ", gpu_record_slopes, ";");
  if (form_.pass == GpuPass::center)
    line("const T* const x = a.x + c + Index(index_of(record[", gpu_record_neighbor, "])) * ", plan_.dim_in, ";");
  else
    line("const T* const g = a.g + c + Index(index_of(record[", gpu_record_center, "])) * ", plan_.dim_out, ";");
  line("const T* const weights = a.table + c + Index(index_of(record[", gpu_record_row, "])) * ", plan_.num_weights, ";");
}

void Writer::read_arrays() {
  const bool by_table = form_.pass == GpuPass::table;
  if (form_.pass != GpuPass::neighbor) {
    line("const Index in_row = load(a.neighbor + edge) * ", plan_.dim_in, ";");
    line("const T* const x = a.x + in_row + c;");
    if (form_.mixed) line("const T* const x_cotangent = a.x_cotangent + in_row + c;");
  }
  if (form_.pass != GpuPass::center)
    line("const T* const g = a.g + load(a.center + edge) * ", plan_.dim_out, " + c;");
  if (!form_.tabulated) {
    line("const Index weight_row = Index(edge) * ", plan_.num_weights, " + c;");
    line("const T* const weights = a.w + weight_row;");
    if (form_.mixed) line("const T* const weights_cotangent = a.w_cotangent + weight_row;");
    if (form_.pass == GpuPass::neighbor) line("T* const grad_w = a.grad_w + weight_row;");
    return;
  }
  line("const Knot<T> knot = locate(a, edge", by_table ? ", item);" : ");");
  line("const T *const value = knot.value, *const slope = knot.slope, *const curvature = knot.curvature;");
  if (!by_table) {
    line("const Index weight_row = knot.row * ", plan_.num_weights, " + c;");
    line("const T* const weights = a.table + weight_row;");
  }
  if (form_.mixed)
    line("const T length_cotangent = a.length_cotangent == nullptr ? T(0) : load(a.length_cotangent + edge);");
}

void Writer::harmonics(const Group& group) {
  std::vector<bool> used(plan_.dim_sh, false);
  for (const Bundle& bundle : group.bundles)
    for (int t = bundle.coupling->first_term; t < bundle.coupling->last_term; ++t)
      used[plan_.terms[t].harmonic] = true;
  for (int64_t j = 0; j < plan_.dim_sh; ++j) {
    if (!used[j]) continue;
    if (form_.by_records()) line("const T y", j, " = record[", gpu_record_harmonics + j, "];");
    else line("const T y", j, " = load(a.sh + Index(edge) * ", plan_.dim_sh, " + ", j, ");");
    if (form_.mixed) line("const T dy", j, " = load(a.sh_cotangent + Index(edge) * ", plan_.dim_sh, " + ", j, ");");
  }
}

// Couplings of one input degree follow each other: their input blocks are loaded once.
void Writer::bundles(const Group& group) {
  const bool loads = form_.pass != GpuPass::neighbor;
  int degree = -1;
  for (const Bundle& bundle : group.bundles) {
    if (loads && bundle.coupling->l_in != degree) {
      if (degree >= 0) close();
      degree = bundle.coupling->l_in;
      open("");
      columns(group, degree);
    }
    open("");
    if (form_.pass == GpuPass::center) center_bundle(bundle);
    if (form_.pass == GpuPass::neighbor) neighbor_bundle(bundle);
    if (form_.pass == GpuPass::table) table_bundle(bundle);
    close();
  }
  if (degree >= 0) close();
}

// ---- all edges of one atom or interval --------------------------------------------------------------------

void Writer::begin_group(const Group& group, size_t n) {
  open(join("__device__ __forceinline__ void group_", n, "(const GpuArrays<T>& a, int tile)"));
  line("typedef Channels<", group.width, "> V;  // of ", group.channels);
  line("const int channel = (tile * int(blockDim.x) + int(threadIdx.x)) * ", group.width, ";");
  if (group.is_full()) line("constexpr bool active = true;");
  else line("const bool active = channel < ", group.channels, ";");
  line("const int c = active ? channel : ", group.channels - group.width, ";");
  if (form_.pass == GpuPass::center)
    line("const int item = a.items == nullptr ? int(blockIdx.x) : int(load(a.items + blockIdx.x)), part = blockIdx.z;");
  else line("const int item = blockIdx.x, part = blockIdx.z;");
}

// In order; this block's part of the edges.
void Writer::begin_edges(const Group& group) {
  line("int n, end;");
  line("edges_of(a, item, part, n, end);");
  open("for (; n < end; ++n)");
  line("const int edge = int(load(a.order + n));");
  if (form_.by_records()) read_record();
  else read_arrays();
  harmonics(group);
}

void Writer::store_sums(const Group& group) {
  for (const Bundle& bundle : group.bundles)
    for (const Item& item : bundle.items) {
      const bool table = form_.pass == GpuPass::table;
      const int64_t first = table ? item.path.weight_offset : item.path.out_offset;
      const int64_t stride = table ? plan_.num_weights : item.path.out_stride;
      for (int k = 0; k < (table ? 6 : components(bundle.coupling->l_out)); ++k)
        line("store_channels(out + ", first + k * stride, ", sum", item.place + k, ");");
    }
}

void Writer::center_group(const Group& group) {
  for (int64_t n = 0; n < group.accumulators; ++n) line("V sum", n, " = {};");
  begin_edges(group);
  bundles(group);
  close();
  line("if (!active) return;");
  line("T* const out = a.grad_g + (Index(part) * gridDim.x + item) * ", plan_.dim_out, " + c;");
  store_sums(group);
}

void Writer::neighbor_group(const Group& group, int64_t first_warp) {
  line("const T* const x = a.x + Index(item) * ", plan_.dim_in, " + c;");
  if (form_.mixed) line("const T* const x_cotangent = a.x_cotangent + Index(item) * ", plan_.dim_in, " + c;");
  for (int degree = 0; degree <= max_degree; ++degree) columns(group, degree);
  for (size_t block = 0; block < group.blocks.size(); ++block)
    for (int i = 0; i < components(group.blocks[block].degree); ++i) line("V by_x", block, "_", i, " = {};");
  if (form_.geometry) share_lanes();
  begin_edges(group);
  if (form_.geometry)
    for (int64_t j = 0; j < plan_.dim_sh; ++j) line("T by_y", j, " = 0;");
  if (form_.geometry && form_.tabulated) line("V by_length = {};");
  bundles(group);
  if (form_.geometry) share_sums(group, first_warp);
  close();
  line("if (!active) return;");
  line("T* const out = a.grad_x + (Index(part) * gridDim.x + item) * ", plan_.dim_in, " + c;");
  for (size_t block = 0; block < group.blocks.size(); ++block)
    for (int i = 0; i < components(group.blocks[block].degree); ++i)
      line("store_channels(out + ", group.blocks[block].offset + i * group.channels, ", by_x", block, "_", i, ");");
}

void Writer::table_group(const Group& group) {
  for (int64_t n = 0; n < group.accumulators; ++n) line("V sum", n, " = {};");
  begin_edges(group);
  bundles(group);
  close();
  line("if (!active) return;");
  line("T* const out = a.grad_rows + (Index(part) * gridDim.x + item) * ", 6 * plan_.num_weights, " + c;");
  store_sums(group);
}

// ---- sums over channels -----------------------------------------------------------------------------------

std::vector<std::string> Writer::shared_values() const {
  std::vector<std::string> values;
  for (int64_t j = 0; j < plan_.dim_sh; ++j) values.push_back(join("by_y", j));
  if (form_.tabulated) values.push_back("total(by_length)");
  return values;
}

// Which of them this thread is to write, 32 at a time.
void Writer::share_lanes() {
  line("const int lane = threadIdx.x % 32;");
  const size_t count = shared_values().size();
  for (size_t first = 0; first < count; first += 32)
    line("const int share", first, " = sum_of_lane(", std::min<size_t>(count - first, 32), ", lane);");
}

void Writer::share_sums(const Group& group, int64_t first_warp) {
  const auto values = shared_values();
  const bool full = group.is_full();
  line("T* const shares = a.shares + ((", first_warp, " + channel / ", warp_size * group.width,
       ") * a.num_edges + edge) * ", values.size(), ";");
  for (size_t first = 0; first < values.size(); first += 32) {
    const size_t count = std::min<size_t>(values.size() - first, 32);
    std::string list;
    for (size_t n = 0; n < count; ++n)
      list += (n > 0 ? ", " : "") + (full ? values[first + n] : join("active ? ", values[first + n], " : T(0)"));
    open("");
    line("T values[] = {", list, "};");
    line("const T sum = warp_sums<", count, ">(values, lane);");
    line("if (share", first, " >= 0) shares[", first, " + share", first, "] = sum;");
    close();
  }
}

// ---- the whole kernel -------------------------------------------------------------------------------------

GpuCode Writer::write() {
  // Two warps to a block where every group has an even number of them.
  const bool even = std::all_of(groups_.begin(), groups_.end(), [](const Group& g) { return g.warps() % 2 == 0; });
  const int64_t warps_per_block = even ? 2 : 1, threads = warps_per_block * warp_size;
  int64_t warps = 0, blocks = 0;

  constexpr const char* names[] = {"center", "neighbor", "table"};
  line("// ", names[int(form_.pass)], " pass", form_.mixed ? ", mixed" : "", form_.tabulated ? ", tabulated" : "",
       form_.geometry ? "" : ", features only", ", ", groups_.size(), groups_.size() == 1 ? " group" : " groups");
  text_ << gpu_precision_text(form_.single) << gpu_common_text << gpu_arrays_text << '\n'
        << "constexpr Index num_weights = " << plan_.num_weights << ";\n" << gpu_pass_text
        << (form_.pass == GpuPass::neighbor && form_.geometry ? gpu_warp_sums_text : "");
  if (form_.tabulated && !form_.by_records()) text_ << gpu_splines_define << splines_text << gpu_spline_text;
  std::string cases;
  for (size_t n = 0; n < groups_.size(); ++n) {
    begin_group(groups_[n], n);
    if (form_.pass == GpuPass::center) center_group(groups_[n]);
    if (form_.pass == GpuPass::neighbor) neighbor_group(groups_[n], warps);
    if (form_.pass == GpuPass::table) table_group(groups_[n]);
    close();
    const int64_t first = blocks;
    warps += groups_[n].warps(), blocks += groups_[n].warps() / warps_per_block;
    cases += join("  if (blockIdx.y < ", blocks, ") return group_", n, "(a, int(blockIdx.y) - ", first, ");\n");
  }
  line("extern \"C\" __global__ void __launch_bounds__(", threads, ") ", gpu_kernel_name, "(const GpuArrays<T> a) {");
  text_ << cases << "}\n";
  return {text_.str(), blocks, 1, threads, warps, plan_.dim_sh + form_.tabulated};
}

GpuCode generate(const Plan<double>& plan, const GpuForm& form) { return Writer(plan, form).write(); }

}  // namespace equipot
