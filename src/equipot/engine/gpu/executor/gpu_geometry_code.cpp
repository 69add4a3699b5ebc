#include "gpu_geometry.h"

#include <cstdio>
#include <sstream>

#include "gpu_device.h"

namespace equipot {
namespace {

// The direction and length of an edge, in float64 until here.
constexpr const char* start_text = R"(
__device__ __forceinline__ T scale_of(const GpuEdgeArrays<T>& a, Index e) {
  return load(a.pair_scales + load(a.types + load(a.center + e)) * a.num_types + load(a.types + load(a.neighbor + e)));
}

__device__ __forceinline__ double length_of(const double* vec, T* direction) {
  const double r = sqrt(vec[0] * vec[0] + vec[1] * vec[1] + vec[2] * vec[2]);
  for (int k = 0; k < 3; ++k) direction[k] = solid ? T(vec[k]) : T(vec[k] / r);
  return r;
}
)";

// See zbl.h.
constexpr const char* zbl_text = R"(
__device__ double repulsion(const GpuEdgeArrays<T>& a, Index center, Index neighbor, double r, double& slope) {
  const Index i = load(a.types + center), j = load(a.types + neighbor);
  const double end = a.reach == nullptr ? a.radii[i] + a.radii[j] : a.reach[i * a.num_types + j], x = r / end;
  slope = 0;
  if (!(x < 1)) return 0;
  double below = 1;
  for (int k = 1; k < power; ++k) below *= x;
  const double f = 0.5 * (power + 1) * (power + 2), g = double(power) * (power + 2), h = 0.5 * power * (power + 1);
  const double u = 1 + below * x * (-f + x * (g - x * h));
  const double u_slope = below * (-f * power + x * (g * (power + 1) - x * (h * (power + 2))));
  const double scale = radius / (pow(a.numbers[i], exponent) + pow(a.numbers[j], exponent));
  double screening = 0, screening_slope = 0;
  for (int k = 0; k < 4; ++k) {
    const double term = amplitude[k] * exp(-decay[k] * r / scale);
    screening += term;
    screening_slope -= decay[k] / scale * term;
  }
  const double front = 0.5 * coulomb * a.numbers[i] * a.numbers[j] / r;
  slope = front * (screening_slope * u + screening * u_slope / end - screening * u / r);
  return front * screening * u;
}
)";

std::string number(double value) {
  char buffer[40];
  std::snprintf(buffer, sizeof buffer, "%.17e", value);
  return buffer;
}

// value x^a y^b z^c, less one power of `less` (with its factor), or -1.
std::string monomial(const Harmonics<double>::Monomial& term, int less) {
  std::string text = "T(" + number(term.value * (less < 0 ? 1 : term.power[less])) + ")";
  for (int a = 0; a < 3; ++a)
    for (int p = 0; p < term.power[a] - (a == less); ++p) text += std::string(" * d[") + char('0' + a) + "]";
  return text;
}

void write_forward(std::ostringstream& text, const Harmonics<double>& harmonics, const GpuKink& kink, bool pair_scales) {
  text << "extern \"C\" __global__ void __launch_bounds__(128) edge_forward(const GpuEdgeArrays<T> a) {\n"
       << "  const Index e = Index(blockIdx.x) * 128 + threadIdx.x;\n  if (e >= a.num_edges) return;\n  T d[3];\n"
       << "  T r = T(length_of(a.vec + 3 * e, d));\n";
  if (pair_scales) text << "  r *= scale_of(a, e);\n";
  if (kink.below != 0 || kink.above != 0)
    text << "  r += r < T(" << number(kink.at) << ") ? T(" << number(kink.below) << ") : T(" << number(kink.above) << ");\n";
  text << "  a.length[e] = r;\n  T* const y = a.sh + e * " << harmonics.dim << ";\n";
  for (int64_t j = 0; j < harmonics.dim; ++j) {
    text << "  y[" << j << "] = T(0)";
    for (const auto& term : harmonics.terms)
      if (term.harmonic == j) text << " + " << monomial(term, -1);
    text << ";\n";
  }
  text << "}\n";
}

// From geometry (num_edges, dim + 1), the gradient by harmonics and distance, to that by the edge vectors.
void write_backward(std::ostringstream& text, const Harmonics<double>& harmonics, bool pair_scales, bool zbl) {
  text << "extern \"C\" __global__ void __launch_bounds__(128) edge_backward(const GpuEdgeArrays<T> a) {\n"
       << "  const Index e = Index(blockIdx.x) * 128 + threadIdx.x;\n  if (e >= a.num_edges) return;\n"
       << "  T d[3], g[3] = {0, 0, 0};\n  const double r = length_of(a.vec + 3 * e, d);\n"
       << "  const T* const by = a.geometry + e * " << harmonics.dim + 1 << ";\n  T of_length = load(by + " << harmonics.dim
       << ");\n";
  if (pair_scales) text << "  of_length *= scale_of(a, e);\n";
  for (int64_t j = 0; j < harmonics.dim; ++j) {
    std::string sums;
    for (int axis = 0; axis < 3; ++axis) {
      std::string sum;
      for (const auto& term : harmonics.terms)
        if (term.harmonic == j && term.power[axis] > 0) sum += (sum.empty() ? "" : " + ") + monomial(term, axis);
      if (!sum.empty()) sums += std::string("    g[") + char('0' + axis) + "] += y * (" + sum + ");\n";
    }
    if (!sums.empty()) text << "  {\n    const T y = load(by + " << j << ");\n" << sums << "  }\n";
  }
  text << "  const T radial = g[0] * d[0] + g[1] * d[1] + g[2] * d[2];\n  double of_vec[3];\n"
       << "  for (int k = 0; k < 3; ++k)\n    of_vec[k] = double(solid ? g[k] + of_length * d[k] / T(r)\n"
       << "                             : (g[k] - radial * d[k]) / T(r) + of_length * d[k]);\n";
  if (zbl)
    text << "  double slope = 0, energy = 0;\n  const Index center = load(a.center + e);\n"
         << "  if (a.owned == nullptr || a.owned[center]) energy = repulsion(a, center, load(a.neighbor + e), r, slope);\n"
         << "  a.pair_energy[e] = energy;\n  for (int k = 0; k < 3; ++k) of_vec[k] += slope * a.vec[3 * e + k] / r;\n";
  text << "  for (int k = 0; k < 3; ++k) a.gradient[3 * e + k] = of_vec[k];\n}\n";
}

}  // namespace

std::string gpu_geometry_code(bool single, const Harmonics<double>& harmonics, const GpuKink& kink, bool pair_scales,
                              const Zbl* zbl) {
  std::ostringstream text;
  text << gpu_precision_text(single) << gpu_common_text << gpu_edge_arrays_text
       << "\nconstexpr bool solid = " << (harmonics.solid ? "true" : "false") << ";\n" << start_text;
  if (zbl != nullptr) {
    const auto& a = zbl->amplitude;
    const auto& d = zbl->decay;
    text << "constexpr int power = " << zbl->power << ";\nconstexpr double coulomb = " << number(zbl->coulomb)
         << ", radius = " << number(zbl->radius) << ", exponent = " << number(zbl->exponent) << ";\n";
    const auto list = [&](const char* name, const std::array<double, 4>& n) {
      text << "__device__ const double " << name << "[4] = {" << number(n[0]) << ", " << number(n[1]) << ", " << number(n[2])
           << ", " << number(n[3]) << "};\n";
    };
    list("amplitude", a), list("decay", d);
    text << zbl_text;
  }
  write_forward(text, harmonics, kink, pair_scales);
  write_backward(text, harmonics, pair_scales, zbl != nullptr);
  return text.str();
}

}  // namespace equipot
