// Implementation of form.h, compiled once for float (form_float.cpp) and once for double (form_double.cpp).
//
// Edges are taken in batches of one vector: their matrices M are computed together, one edge per lane, so
// element m of edge b lies at matrices[m * lanes + b]. Everything else runs along channels: tiles of U
// vectors, then single vectors, then what remains one channel at a time (V = T).
#pragma once

#include <algorithm>
#include <array>
#include <memory>

#include "form.h"
#include "lanes.h"

namespace equipot {
namespace {

// What one path of one edge reads and writes; pointers to the first element of its blocks.
template <class T>
struct Item {
  const T *m, *m_cotangent;  // M and M'; elements are `lanes` apart
  const T *x, *x_cotangent;  // (components in, channels)
  const T *w, *w_cotangent;  // (channels)
  const T* g;  // (components out, channels), rows out_stride apart
  T* grad_g;
  T* grad_x;
  T* grad_w;
  Vector<T>* grad_m;  // (components out, components in), channels summed up to the lanes
  T* scaled;  // scratch (components in, channels): w x, or its mixed derivative
  int64_t channels, out_stride;
};

// Rows of x scaled by the weights: w x, or for the mixed form w x' + w' x.
template <class V, class T, bool mixed>
INLINE V scaled_row(const Item<T>& a, int64_t at, V w, V w_cotangent) {
  if constexpr (mixed) return w * load<V>(a.x_cotangent + at) + w_cotangent * load<V>(a.x + at);
  return w * load<V>(a.x + at);
}

// ---- center pass: grad_g[k] += sum_i M[k,i] w x[i], mixed: M (w x' + w' x) + M' (w x) ---------------------

template <class V, class T, int in, int out, bool diagonal, bool mixed, int U>
INLINE void center_tile(const Item<T>& a, int64_t c) {
  constexpr int width = sizeof(V) / sizeof(T);
  V scaled[in][U], plain[in][U];
  UNROLL for (int u = 0; u < U; ++u) {
    const int64_t at = c + u * width;
    const V w = load<V>(a.w + at);
    V w_cotangent{};
    if constexpr (mixed) w_cotangent = load<V>(a.w_cotangent + at);
    UNROLL for (int i = 0; i < in; ++i) {
      scaled[i][u] = scaled_row<V, T, mixed>(a, i * a.channels + at, w, w_cotangent);
      if constexpr (mixed) plain[i][u] = w * load<V>(a.x + i * a.channels + at);
    }
  }
  UNROLL for (int k = 0; k < out; ++k) {
    T* row = a.grad_g + k * a.out_stride + c;
    V sum[U];
    UNROLL for (int u = 0; u < U; ++u) sum[u] = load<V>(row + u * width);
    constexpr int first_row = diagonal ? 0 : in;
    UNROLL for (int i = 0; i < (diagonal ? 1 : in); ++i) {
      const int source = diagonal ? k : i;
      const T m = a.m[(k * first_row + i) * lanes<T>];
      UNROLL for (int u = 0; u < U; ++u) sum[u] += m * scaled[source][u];
      if constexpr (mixed) {
        const T m_cotangent = a.m_cotangent[(k * first_row + i) * lanes<T>];
        UNROLL for (int u = 0; u < U; ++u) sum[u] += m_cotangent * plain[source][u];
      }
    }
    UNROLL for (int u = 0; u < U; ++u) store(row + u * width, sum[u]);
  }
}

template <class T, int in, int out, bool diagonal, bool mixed>
void center_path(const Item<T>& item) {
  const Item<T> a = item;  // a local copy cannot alias what is stored, so its pointers stay in registers
  // Two vectors at a time share each broadcast of M, where the registers hold their rows.
  constexpr int U = (mixed ? 2 : 1) * 2 * in + 3 <= vector_registers ? 2 : 1;
  int64_t c = 0;
  for (; c + U * lanes<T> <= a.channels; c += U * lanes<T>)
    center_tile<Vector<T>, T, in, out, diagonal, mixed, U>(a, c);
  if constexpr (U > 1)
    for (; c + lanes<T> <= a.channels; c += lanes<T>)
      center_tile<Vector<T>, T, in, out, diagonal, mixed, 1>(a, c);
  for (; c < a.channels; ++c) center_tile<T, T, in, out, diagonal, mixed, 1>(a, c);
}

// ---- neighbor pass ----------------------------------------------------------------------------------------
// With s[i] = sum_k M[k,i] g[k] and s' the same of M':
//   grad_x[i] += w s[i]           mixed: w' s + w s'
//   grad_w = sum_i s[i] x[i]      mixed: s x' + s' x
//   grad_m[k,i] += sum_c g[k] scaled[i]

template <class V, class T, int in, int out, bool diagonal, bool mixed, int U>
INLINE void neighbor_tile(const Item<T>& a, int64_t c) {
  constexpr int width = sizeof(V) / sizeof(T);
  V g[out][U], w[U], w_cotangent[U], grad_w[U];
  UNROLL for (int u = 0; u < U; ++u) {
    w[u] = load<V>(a.w + c + u * width);
    w_cotangent[u] = V{};
    if constexpr (mixed) w_cotangent[u] = load<V>(a.w_cotangent + c + u * width);
    grad_w[u] = V{};
    UNROLL for (int k = 0; k < out; ++k) g[k][u] = load<V>(a.g + k * a.out_stride + c + u * width);
  }
  UNROLL for (int i = 0; i < in; ++i) {
    V s[U], s_cotangent[U];
    UNROLL for (int u = 0; u < U; ++u) s[u] = s_cotangent[u] = V{};
    UNROLL for (int k = (diagonal ? i : 0); k < (diagonal ? i + 1 : out); ++k) {
      const int element = (diagonal ? 0 : k * in + i) * lanes<T>;
      const T m = a.m[element];
      UNROLL for (int u = 0; u < U; ++u) s[u] += m * g[k][u];
      if constexpr (mixed) {
        const T m_cotangent = a.m_cotangent[element];
        UNROLL for (int u = 0; u < U; ++u) s_cotangent[u] += m_cotangent * g[k][u];
      }
    }
    UNROLL for (int u = 0; u < U; ++u) {
      const int64_t at = i * a.channels + c + u * width;
      const V x = load<V>(a.x + at);
      V grad_x = load<V>(a.grad_x + at);
      if constexpr (mixed) {
        const V x_cotangent = load<V>(a.x_cotangent + at);
        grad_x += w_cotangent[u] * s[u] + w[u] * s_cotangent[u];
        grad_w[u] += s[u] * x_cotangent + s_cotangent[u] * x;
        store(a.scaled + at, w[u] * x_cotangent + w_cotangent[u] * x);
      } else {
        grad_x += w[u] * s[u];
        grad_w[u] += s[u] * x;
        store(a.scaled + at, w[u] * x);
      }
      store(a.grad_x + at, grad_x);
    }
  }
  UNROLL for (int u = 0; u < U; ++u) store(a.grad_w + c + u * width, grad_w[u]);
}

INLINE void add_to_lanes(Vector<float>& sum, Vector<float> value) { sum += value; }
INLINE void add_to_lanes(Vector<double>& sum, Vector<double> value) { sum += value; }
INLINE void add_to_lanes(Vector<float>& sum, float value) { sum[0] += value; }
INLINE void add_to_lanes(Vector<double>& sum, double value) { sum[0] += value; }

// Rows first_k ... first_k + rows - 1 of grad_m over channels [begin, end), sums kept in registers.
template <class V, class T, int in, int rows>
INLINE void grad_m_rows(const Item<T>& a, int first_k, int64_t begin, int64_t end) {
  constexpr int width = sizeof(V) / sizeof(T);
  V sum[rows][in];
  UNROLL for (int k = 0; k < rows; ++k) UNROLL for (int i = 0; i < in; ++i) sum[k][i] = V{};
  for (int64_t c = begin; c < end; c += width) {
    V g[rows];
    UNROLL for (int k = 0; k < rows; ++k) g[k] = load<V>(a.g + (first_k + k) * a.out_stride + c);
    UNROLL for (int i = 0; i < in; ++i) {
      const V scaled = load<V>(a.scaled + i * a.channels + c);
      UNROLL for (int k = 0; k < rows; ++k) sum[k][i] += g[k] * scaled;
    }
  }
  UNROLL for (int k = 0; k < rows; ++k)
    UNROLL for (int i = 0; i < in; ++i) add_to_lanes(a.grad_m[(first_k + k) * in + i], sum[k][i]);
}

template <class V, class T, int in, int out, bool diagonal>
INLINE void grad_m(const Item<T>& a, int64_t begin, int64_t end) {
  if (begin == end) return;
  if constexpr (diagonal) {
    V sum{};
    for (int64_t c = begin; c < end; c += int64_t(sizeof(V) / sizeof(T)))
      UNROLL for (int k = 0; k < out; ++k)
        sum += load<V>(a.g + k * a.out_stride + c) * load<V>(a.scaled + k * a.channels + c);
    add_to_lanes(a.grad_m[0], sum);
  } else {
    constexpr int rows = std::clamp((vector_registers - 2) / (in + 1), 1, out);
    int k = 0;
    for (; k + rows <= out; k += rows) grad_m_rows<V, T, in, rows>(a, k, begin, end);
    if constexpr (out % rows != 0) grad_m_rows<V, T, in, out % rows>(a, k, begin, end);
  }
}

template <class T, int in, int out, bool diagonal, bool mixed>
void neighbor_path(const Item<T>& item) {
  const Item<T> a = item;  // a local copy cannot alias what is stored, so its pointers stay in registers
  constexpr int U = 2 * out + 2 * (mixed ? 2 : 1) + 1 <= vector_registers ? 2 : 1;
  int64_t c = 0;
  for (; c + U * lanes<T> <= a.channels; c += U * lanes<T>)
    neighbor_tile<Vector<T>, T, in, out, diagonal, mixed, U>(a, c);
  if constexpr (U > 1)
    for (; c + lanes<T> <= a.channels; c += lanes<T>)
      neighbor_tile<Vector<T>, T, in, out, diagonal, mixed, 1>(a, c);
  const int64_t whole = c;
  for (; c < a.channels; ++c) neighbor_tile<T, T, in, out, diagonal, mixed, 1>(a, c);
  grad_m<Vector<T>, T, in, out, diagonal>(a, 0, whole);
  grad_m<T, T, in, out, diagonal>(a, whole, a.channels);
}

// ---- which function computes a coupling -------------------------------------------------------------------

enum class Pass { center, neighbor };
template <class T>
using PathFunction = void (*)(const Item<T>&);
constexpr int degrees = max_degree + 1;

template <class T, Pass pass, bool mixed, int in, int out, bool diagonal>
constexpr PathFunction<T> path_function() {
  if constexpr (pass == Pass::center) return center_path<T, in, out, diagonal, mixed>;
  return neighbor_path<T, in, out, diagonal, mixed>;
}

template <class T, Pass pass, bool mixed>
PathFunction<T> select(const Coupling& coupling) {
  static constexpr auto dense = []<int... n>(std::integer_sequence<int, n...>) {
    return std::array{path_function<T, pass, mixed, 2 * (n / degrees) + 1, 2 * (n % degrees) + 1, false>()...};
  }(std::make_integer_sequence<int, degrees * degrees>{});
  static constexpr auto diagonal = []<int... l>(std::integer_sequence<int, l...>) {
    return std::array{path_function<T, pass, mixed, 2 * l + 1, 2 * l + 1, true>()...};
  }(std::make_integer_sequence<int, degrees>{});
  return coupling.diagonal ? diagonal[coupling.l_in] : dense[coupling.l_in * degrees + coupling.l_out];
}

// ---- the loop over edges ----------------------------------------------------------------------------------

// M of up to one vector of edges, one edge per lane; absent edges get zeros.
template <class T>
void matrices(const Plan<T>& plan, const T* sh, const int64_t* edges, int count, Vector<T>* y, Vector<T>* m) {
  for (int64_t j = 0; j < plan.dim_sh; ++j) {
    Vector<T> column{};
    for (int b = 0; b < count; ++b) column[b] = sh[edges[b] * plan.dim_sh + j];
    y[j] = column;
  }
  for (const Term<T>& t : plan.assigning) m[t.element] = t.value * y[t.harmonic];
  for (const Term<T>& t : plan.adding) m[t.element] += t.value * y[t.harmonic];
}

// Values of the six quintic B-splines that are not zero at u in [0, 1) of an interval, times 120.
template <class T>
std::array<T, 6> bspline(T u) {
  const T v = 1 - u, u2 = u * u, u3 = u2 * u, u4 = u2 * u2, u5 = u4 * u;
  return {v * v * v * v * v,
          26 - 50 * u + 20 * (u2 + u3 - u4) + 5 * u5,
          66 - 60 * u2 + 30 * u4 - 10 * u5,
          26 + 50 * u + 20 * (u2 - u3 - u4) + 10 * u5,
          1 + 5 * (u + u4 - u5) + 10 * (u2 + u3),
          u5};
}

// Their derivatives.
template <class T>
std::array<T, 6> bspline_slope(T u) {
  const T v = 1 - u, u2 = u * u, u3 = u2 * u, u4 = u2 * u2;
  return {-5 * v * v * v * v,
          -50 + 40 * u + 60 * u2 - 80 * u3 + 25 * u4,
          -120 * u + 120 * u3 - 50 * u4,
          50 + 40 * u - 60 * u2 - 80 * u3 + 50 * u4,
          5 + 20 * (u + u3) + 30 * u2 - 25 * u4,
          5 * u4};
}

// w (num_weights) at a distance, and if wanted its derivative; both padded to whole vectors.
template <class T, bool with_slope>
void interpolate(const RadialTable<T>& table, T length, int64_t num_weights, Vector<T>* w, Vector<T>* slope) {
  const T position = length / table.cutoff * T(table.intervals);
  const bool inside = position < T(table.intervals);
  const int64_t interval = inside ? std::max<int64_t>(int64_t(position), 0) : 0;
  auto values = bspline(position - T(interval)), slopes = bspline_slope(position - T(interval));
  for (int b = 0; b < 6; ++b) {
    values[b] *= inside ? T(1) / 120 : T(0);
    slopes[b] *= inside ? T(table.intervals) / (120 * table.cutoff) : T(0);
  }
  const T* row = table.rows + interval * num_weights;
  const auto combine = [&]<class V>(int64_t c, T* to, T* slope_to) {
    V value{}, derivative{};
    UNROLL for (int b = 0; b < 6; ++b) {
      const V from = load<V>(row + b * num_weights + c);
      value += values[b] * from;
      if constexpr (with_slope) derivative += slopes[b] * from;
    }
    store(to + c, value);
    if constexpr (with_slope) store(slope_to + c, derivative);
  };
  T* to = reinterpret_cast<T*>(w);
  T* slope_to = reinterpret_cast<T*>(slope);
  int64_t c = 0;
  for (; c + lanes<T> <= num_weights; c += lanes<T>) combine.template operator()<Vector<T>>(c, to, slope_to);
  for (; c < num_weights; ++c) combine.template operator()<T>(c, to, slope_to);
}

template <class T>
using Buffer = std::unique_ptr<Vector<T>[]>;

template <class T>
Buffer<T> buffer(int64_t vectors) {
  return Buffer<T>(new Vector<T>[std::max<int64_t>(vectors, 1)]);
}

template <class T, Pass pass, bool mixed>
void run_pass(const Plan<T>& plan, const Arrays<T>& a, const int64_t* edges, int64_t count) {
  std::vector<PathFunction<T>> functions;
  for (const Coupling& coupling : plan.couplings) functions.push_back(select<T, pass, mixed>(coupling));
  const Buffer<T> harmonics = buffer<T>(plan.dim_sh), m = buffer<T>(plan.num_elements);
  const Buffer<T> m_cotangent = buffer<T>(mixed ? plan.num_elements : 0);
  const Buffer<T> grad_sh = buffer<T>(plan.dim_sh), grad_m = buffer<T>(plan.num_elements);
  const Buffer<T> scaled = buffer<T>(plan.widest_block / lanes<T> + 1);
  const bool tabulated = a.table.rows != nullptr;
  const int64_t weight_vectors = tabulated ? plan.num_weights / lanes<T> + 1 : 0;
  // Of one edge: weights, their derivatives, their gradients. Beyond num_weights the last two stay zero.
  const Buffer<T> radial = buffer<T>(weight_vectors), slope = buffer<T>(weight_vectors);
  const Buffer<T> grad_radial = buffer<T>(weight_vectors);
  std::fill_n(slope.get(), weight_vectors, Vector<T>{});
  std::fill_n(grad_radial.get(), weight_vectors, Vector<T>{});
  Item<T> item{};
  item.scaled = reinterpret_cast<T*>(scaled.get());

  for (int64_t first = 0; first < count; first += lanes<T>) {
    const int batch = int(std::min<int64_t>(lanes<T>, count - first));
    matrices(plan, a.sh, edges + first, batch, harmonics.get(), m.get());
    if constexpr (mixed) matrices(plan, a.sh_cotangent, edges + first, batch, harmonics.get(), m_cotangent.get());
    for (int b = 0; b < batch; ++b) {
      const int64_t edge = edges[first + b];
      const int64_t in_row = a.neighbor[edge] * plan.dim_in, out_row = a.center[edge] * plan.dim_out;
      const int64_t weight_row = edge * plan.num_weights;
      const T* weights = tabulated ? reinterpret_cast<const T*>(radial.get()) : a.w + weight_row;
      T* grad_weights = reinterpret_cast<T*>(grad_radial.get());
      if (pass == Pass::neighbor && !tabulated) grad_weights = a.grad_w + weight_row;
      if (tabulated)
        interpolate<T, pass == Pass::neighbor>(a.table, a.length[edge], plan.num_weights, radial.get(), slope.get());
      if constexpr (pass == Pass::neighbor) std::fill_n(grad_sh.get(), plan.dim_sh, Vector<T>{});
      for (size_t n = 0; n < plan.couplings.size(); ++n) {
        const Coupling& coupling = plan.couplings[n];
        const int elements = coupling.diagonal ? 1 : (2 * coupling.l_in + 1) * (2 * coupling.l_out + 1);
        item.m = reinterpret_cast<const T*>(m.get() + coupling.first_element) + b;
        if constexpr (mixed)
          item.m_cotangent = reinterpret_cast<const T*>(m_cotangent.get() + coupling.first_element) + b;
        item.grad_m = grad_m.get() + coupling.first_element;
        if constexpr (pass == Pass::neighbor) std::fill_n(item.grad_m, elements, Vector<T>{});
        for (const Path& path : coupling.paths) {
          item.channels = path.channels;
          item.out_stride = path.out_stride;
          item.x = a.x + in_row + path.in_offset;
          item.w = weights + path.weight_offset;
          if constexpr (mixed) {
            item.x_cotangent = a.x_cotangent + in_row + path.in_offset;
            item.w_cotangent = a.w_cotangent + weight_row + path.weight_offset;
          }
          if constexpr (pass == Pass::center) {
            item.grad_g = a.grad_g + out_row + path.out_offset;
          } else {
            item.g = a.g + out_row + path.out_offset;
            item.grad_x = a.grad_x + in_row + path.in_offset;
            item.grad_w = grad_weights + path.weight_offset;
          }
          functions[n](item);
        }
        if constexpr (pass == Pass::neighbor)
          for (int t = coupling.first_term; t < coupling.last_term; ++t) {
            const Term<T>& term = plan.terms[t];
            grad_sh[term.harmonic] += term.value * grad_m[term.element];
          }
      }
      if constexpr (pass == Pass::neighbor)
        for (int64_t j = 0; j < plan.dim_sh; ++j) a.grad_sh[edge * plan.dim_sh + j] = sum_lanes<T>(grad_sh[j]);
      if (pass == Pass::neighbor && tabulated) {
        Vector<T> sum{};
        for (int64_t v = 0; v < weight_vectors; ++v) sum += slope[v] * grad_radial[v];
        a.grad_length[edge] = sum_lanes<T>(sum);
      }
    }
  }
}

}  // namespace

template <class T>
void center_pass(const Plan<T>& plan, const Arrays<T>& arrays, const int64_t* edges, int64_t count) {
  if (arrays.x_cotangent != nullptr)
    run_pass<T, Pass::center, true>(plan, arrays, edges, count);
  else
    run_pass<T, Pass::center, false>(plan, arrays, edges, count);
}

template <class T>
void neighbor_pass(const Plan<T>& plan, const Arrays<T>& arrays, const int64_t* edges, int64_t count) {
  if (arrays.x_cotangent != nullptr)
    run_pass<T, Pass::neighbor, true>(plan, arrays, edges, count);
  else
    run_pass<T, Pass::neighbor, false>(plan, arrays, edges, count);
}

}  // namespace equipot
