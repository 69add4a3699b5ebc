// Kernels that work on rows as they lie, as text: edges' records, sums of rows by segment, and the gate.
#include <cstdio>
#include <sstream>

#include "gpu_arrays.h"
#include "gpu_code.h"
#include "gpu_device.h"
#include "splines.h"

namespace equipot {
namespace {

constexpr const char* record_text = R"(
extern "C" __global__ void equipot_kernel(const GpuRecordArrays<T> a) {
  const Index edge = Index(blockIdx.x) * blockDim.x + threadIdx.x;
  if (edge >= a.num_edges) return;
  const Knot<T> knot = locate(a, edge);
  T record[width];
  for (int n = 0; n < width; ++n) record[n] = 0;
#pragma unroll
  for (int b = 0; b < 6; ++b) record[b] = knot.value[b], record[slopes + b] = knot.slope[b];
  set_index(record[row], int(knot.row));
  set_index(record[neighbor], int(load(a.neighbor + edge)));
  set_index(record[center], int(load(a.center + edge)));
#pragma unroll
  for (int j = 0; j < dim_sh; ++j) record[harmonics + j] = load(a.sh + edge * dim_sh + j);
  write(record, a.records + edge * width, width);
}
)";

// In the order of the rows, so that the same rows give the same bits.
constexpr const char* segment_sum_text = R"(
extern "C" __global__ void equipot_kernel(const GpuSumArrays<T> a) {
  const Index place = Index(blockIdx.x) * blockDim.x + threadIdx.x;
  if (place >= a.parts * a.segments * a.columns) return;
  const Index column = place % a.columns, segment = place / a.columns % a.segments;
  const Index part = place / (a.columns * a.segments);
  const Index begin = load(a.start + segment), count = load(a.start + segment + 1) - begin;
  T sum = 0;
  for (Index n = begin + count * part / a.parts; n < begin + count * (part + 1) / a.parts; ++n)
    sum += load(a.values + load(a.order + n) * a.columns + column);
  a.out[place] = sum;
}
)";

constexpr const char* gate_text = R"(
__device__ __forceinline__ T sigmoid(T x) { return T(1) / (T(1) + exp(-x)); }
)";

void write_gate(std::ostringstream& text, const GateShape& gate) {
  text << "  for (int c = threadIdx.x; c < " << gate.num_even << "; c += blockDim.x)\n"
       << "    out[c] = even_factor * in[c] * sigmoid(in[c]);\n"
       << "  for (int c = threadIdx.x; c < " << gate.num_odd << "; c += blockDim.x)\n"
       << "    out[" << gate.num_even << " + c] = odd_factor * tanh(in[" << gate.num_sigmoid() << " + c]);\n";
  for (const GatedBlock& b : gate.gated)
    text << "  for (int c = threadIdx.x; c < " << b.channels << "; c += blockDim.x) {\n"
         << "    const T gate = in[" << b.gate_offset << " + c], factor = even_factor * gate * sigmoid(gate);\n"
         << "#pragma unroll\n"
         << "    for (int m = 0; m < " << b.components << "; ++m)\n"
         << "      out[" << b.out_offset << " + m * " << b.channels << " + c] = factor * in[" << b.in_offset << " + m * "
         << b.channels << " + c];\n  }\n";
}

void write_gate_gradient(std::ostringstream& text, const GateShape& gate) {
  text << "  const T* const grad = a.gradient + Index(blockIdx.x) * " << gate.dim_out << ";\n"
       << "  for (int c = threadIdx.x; c < " << gate.num_even << "; c += blockDim.x)\n"
       << "    out[c] = grad[c] * slope(in[c]);\n"
       << "  for (int c = threadIdx.x; c < " << gate.num_odd << "; c += blockDim.x) {\n"
       << "    const T t = tanh(in[" << gate.num_sigmoid() << " + c]);\n"
       << "    out[" << gate.num_sigmoid() << " + c] = grad[" << gate.num_even << " + c] * odd_factor * (1 - t * t);\n"
       << "  }\n";
  for (const GatedBlock& b : gate.gated)
    text << "  for (int c = threadIdx.x; c < " << b.channels << "; c += blockDim.x) {\n"
         << "    const T gate = in[" << b.gate_offset << " + c], factor = even_factor * gate * sigmoid(gate);\n"
         << "    T sum = 0;\n"
         << "#pragma unroll\n"
         << "    for (int m = 0; m < " << b.components << "; ++m) {\n"
         << "      const T by_y = grad[" << b.out_offset << " + m * " << b.channels << " + c];\n"
         << "      sum += by_y * in[" << b.in_offset << " + m * " << b.channels << " + c];\n"
         << "      out[" << b.in_offset << " + m * " << b.channels << " + c] = by_y * factor;\n    }\n"
         << "    out[" << b.gate_offset << " + c] = sum * slope(gate);\n  }\n";
}

void write_gate_second(std::ostringstream& text, const GateShape& gate) {
  text << "  const T* const grad = a.gradient + Index(blockIdx.x) * " << gate.dim_out << ";\n"
       << "  const T* const v = a.cotangent + Index(blockIdx.x) * " << gate.dim_in << ";\n"
       << "  T* const by_grad = a.by_gradient + Index(blockIdx.x) * " << gate.dim_out << ";\n"
       << "  for (int c = threadIdx.x; c < " << gate.num_even << "; c += blockDim.x) {\n"
       << "    by_grad[c] = slope(in[c]) * v[c];\n"
       << "    out[c] = curvature(in[c]) * grad[c] * v[c];\n  }\n"
       << "  for (int c = threadIdx.x; c < " << gate.num_odd << "; c += blockDim.x) {\n"
       << "    const int at_in = " << gate.num_sigmoid() << " + c, at_out = " << gate.num_even << " + c;\n"
       << "    const T t = tanh(in[at_in]), slope = odd_factor * (1 - t * t);\n"
       << "    by_grad[at_out] = slope * v[at_in];\n"
       << "    out[at_in] = -2 * t * slope * grad[at_out] * v[at_in];\n  }\n";
  for (const GatedBlock& b : gate.gated)
    text << "  for (int c = threadIdx.x; c < " << b.channels << "; c += blockDim.x) {\n"
         << "    const T gate = in[" << b.gate_offset << " + c], factor = even_factor * gate * sigmoid(gate);\n"
         << "    const T along = slope(gate) * v[" << b.gate_offset << " + c];\n"
         << "    T products = 0, sum = 0;\n"
         << "#pragma unroll\n"
         << "    for (int m = 0; m < " << b.components << "; ++m) {\n"
         << "      const int at_in = " << b.in_offset << " + m * " << b.channels << " + c, at_out = " << b.out_offset << " + m * "
         << b.channels << " + c;\n"
         << "      products += grad[at_out] * in[at_in], sum += grad[at_out] * v[at_in];\n"
         << "      by_grad[at_out] = factor * v[at_in] + along * in[at_in];\n"
         << "      out[at_in] = along * grad[at_out];\n    }\n"
         << "    out[" << b.gate_offset << " + c] = curvature(gate) * v[" << b.gate_offset
         << " + c] * products + slope(gate) * sum;\n  }\n";
}

}  // namespace

GpuCode generate_records(int64_t dim_sh, bool single) {
  std::ostringstream text;
  text << "// records\n" << gpu_precision_text(single) << gpu_common_text << gpu_record_arrays_text
       << "\nconstexpr int dim_sh = " << dim_sh << ", width = " << gpu_record_width(dim_sh) << ", row = "
       << gpu_record_row << ", neighbor = " << gpu_record_neighbor << ", slopes = " << gpu_record_slopes
       << ", center = " << gpu_record_center << ", harmonics = " << gpu_record_harmonics << ";\n"
       << gpu_splines_define << splines_text << gpu_spline_text << record_text;
  return {text.str(), 1, 1, 128, 0, 0};
}

GpuCode generate_segment_sum(bool single) {
  return {std::string(gpu_precision_text(single)) + gpu_common_text + gpu_sum_arrays_text + segment_sum_text,
          1, 1, 128, 0, 0};
}

GpuCode generate(const GateShape& gate, bool single, GpuGatePass pass) {
  char factors[120];
  std::snprintf(factors, sizeof factors, "constexpr T even_factor = %.17e, odd_factor = %.17e;\n", gate.even_factor,
                gate.odd_factor);
  std::ostringstream text;
  text << gpu_precision_text(single) << gpu_common_text << gpu_gate_arrays_text << '\n' << factors << gate_text
       << "// d/dx of even_factor * x * sigmoid(x)\n"
       << "__device__ __forceinline__ T slope(T x) {\n"
       << "  const T s = sigmoid(x);\n  return even_factor * s * (1 + x * (1 - s));\n}\n"
       << "__device__ __forceinline__ T curvature(T x) {\n"
       << "  const T s = sigmoid(x);\n  return even_factor * s * (1 - s) * (2 + x * (1 - 2 * s));\n}\n"
       << "extern \"C\" __global__ void equipot_kernel(const GpuGateArrays<T> a) {\n"
       << "  const T* const in = a.x + Index(blockIdx.x) * " << gate.dim_in << ";\n"
       << "  T* const out = a.out + Index(blockIdx.x) * " << (pass == GpuGatePass::value ? gate.dim_out : gate.dim_in) << ";\n";
  if (pass == GpuGatePass::value) write_gate(text, gate);
  if (pass == GpuGatePass::gradient) write_gate_gradient(text, gate);
  if (pass == GpuGatePass::second) write_gate_second(text, gate);
  text << "}\n";
  return {text.str(), 1, 1, 64, 0, 0};
}

}  // namespace equipot
