// Implementation of form.h, compiled once for float (form_float.cpp) and once for double (form_double.cpp).
//
// Edges are taken in batches of one vector: their matrices M are computed together, one edge per lane, so
// element m of edge b lies at matrices[m * lanes + b]. Everything else runs along channels: tiles of U
// vectors, then single vectors, then what remains one channel at a time (V = T).
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <stdexcept>

#include "form.h"
#include "lanes.h"
#include "splines.h"

namespace equipot::inline EQUIPOT_INSTRUCTIONS {
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
  T* plain_grad_w;  // of the plain form, beside the mixed one; null: not wanted
  Vector<T>* grad_m;  // (components out, components in), channels summed up to the lanes; null: not wanted
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
  V g[out][U], w[U], w_cotangent[U], grad_w[U], plain_grad_w[U];
  UNROLL for (int u = 0; u < U; ++u) {
    w[u] = load<V>(a.w + c + u * width);
    w_cotangent[u] = V{};
    if constexpr (mixed) w_cotangent[u] = load<V>(a.w_cotangent + c + u * width);
    grad_w[u] = plain_grad_w[u] = V{};
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
        plain_grad_w[u] += s[u] * x;
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
  if (mixed && a.plain_grad_w != nullptr)
    UNROLL for (int u = 0; u < U; ++u) store(a.plain_grad_w + c + u * width, plain_grad_w[u]);
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
  if (a.grad_m == nullptr) return;
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

// ---- weights from a table ---------------------------------------------------------------------------------

constexpr int span = 6;  // splines that are not zero in an interval

// Where in the table up to one vector of edges lie, and the splines there, one edge per lane: values and first and
// second derivatives by the distance.
template <class T>
struct Knots {
  int64_t row[lanes<T>];
  Knot<Vector<T>> splines;

  void locate(const RadialTable<T>& table, const T* length, const int64_t* edges, int count) {
    const T steps = T(table.intervals) / table.cutoff;
    Vector<T> u{}, inside{};  // zero beyond the cutoff, and where there is no edge
    for (int b = 0; b < count; ++b) {
      const T position = length[edges[b]] / table.cutoff * T(table.intervals);
      const bool within = position < T(table.intervals);
      row[b] = within ? std::max<int64_t>(int64_t(position), 0) : 0;
      u[b] = within ? position - T(row[b]) : T(0), inside[b] = T(within);
    }
    splines = splines_at<Vector<T>>(u, 0, steps - Vector<T>{}, inside);
  }

  Knot<T> operator[](int b) const {
    Knot<T> knot;
    knot.row = row[b];
    for (int k = 0; k < span; ++k) {
      knot.value[k] = splines.value[k][b], knot.slope[k] = splines.slope[k][b];
      knot.curvature[k] = splines.curvature[k][b];
    }
    return knot;
  }
};

// Calls tile(V{}, c) for whole vectors, then for single numbers.
template <class T, class F>
INLINE void along(int64_t count, const F& tile) {
  int64_t c = 0;
  for (; c + lanes<T> <= count; c += lanes<T>) tile.template operator()<Vector<T>>(c);
  for (; c < count; ++c) tile.template operator()<T>(c);
}

// What an edge's weights are to the passes, by kind of pass; each (num_weights), padded to whole vectors.
template <class T>
struct Radial {
  T *w, *w_slope;  // w(r), dw/dr
  T *cotangent, *cotangent_slope;  // w' = r' dw/dr + w(r; table'), and dw'/dr
  T *grad, *plain_grad;  // of the form by w, and, for the mixed form, of the plain form by w
};

template <class T, bool neighbor, bool mixed>
void interpolate(const Arrays<T>& a, const Knot<T>& knot, int64_t edge, int64_t num_weights, const Radial<T>& to) {
  const T* rows = a.table.rows + knot.row * num_weights;
  const T* rows_cotangent = a.table_cotangent ? a.table_cotangent + knot.row * num_weights : nullptr;
  const T length_cotangent = mixed && a.length_cotangent ? a.length_cotangent[edge] : T(0);
  along<T>(num_weights, [&]<class V>(int64_t c) {
    V w{}, slope{}, curvature{};
    UNROLL for (int b = 0; b < span; ++b) {
      const V from = load<V>(rows + b * num_weights + c);
      w += knot.value[b] * from;
      if constexpr (neighbor || mixed) slope += knot.slope[b] * from;
      if constexpr (neighbor && mixed) curvature += knot.curvature[b] * from;
    }
    store(to.w + c, w);
    if constexpr (neighbor) store(to.w_slope + c, slope);
    if constexpr (mixed) {
      V cotangent = length_cotangent * slope, cotangent_slope = length_cotangent * curvature;
      if (rows_cotangent != nullptr)
        UNROLL for (int b = 0; b < span; ++b) {
          const V from = load<V>(rows_cotangent + b * num_weights + c);
          cotangent += knot.value[b] * from;
          cotangent_slope += knot.slope[b] * from;
        }
      store(to.cotangent + c, cotangent);
      if constexpr (neighbor) store(to.cotangent_slope + c, cotangent_slope);
    }
  });
}

// The gradients by length and table that follow from those by the weights.
template <class T, bool mixed>
void pull_back(const Arrays<T>& a, const Knot<T>& knot, int64_t edge, int64_t num_weights, const Radial<T>& radial) {
  if (a.grad_length != nullptr) {
    constexpr int chains = 4;  // of additions, which need not wait for each other
    Vector<T> sum[chains] = {};
    const auto add = [&]<class V>(Vector<T>& to, int64_t c) {
      V product = load<V>(radial.grad + c) * load<V>(radial.w_slope + c);
      if constexpr (mixed) product += load<V>(radial.plain_grad + c) * load<V>(radial.cotangent_slope + c);
      add_to_lanes(to, product);
    };
    int64_t c = 0;
    for (; c + chains * lanes<T> <= num_weights; c += chains * lanes<T>)
      UNROLL for (int n = 0; n < chains; ++n) add.template operator()<Vector<T>>(sum[n], c + n * lanes<T>);
    for (; c + lanes<T> <= num_weights; c += lanes<T>) add.template operator()<Vector<T>>(sum[0], c);
    for (; c < num_weights; ++c) add.template operator()<T>(sum[0], c);
    a.grad_length[edge] = sum_lanes<T>((sum[0] + sum[1]) + (sum[2] + sum[3])) + (a.add_geometry ? a.grad_length[edge] : T(0));
  }
  if (a.grad_table == nullptr) return;
  T* rows = a.grad_table + knot.row * num_weights;
  const T length_cotangent = mixed && a.length_cotangent ? a.length_cotangent[edge] : T(0);
  along<T>(num_weights, [&]<class V>(int64_t c) {
    const V grad = load<V>(radial.grad + c);
    V along_slope{};
    if constexpr (mixed) along_slope = length_cotangent * load<V>(radial.plain_grad + c);
    UNROLL for (int b = 0; b < span; ++b) {
      V row = load<V>(rows + b * num_weights + c) + knot.value[b] * grad;
      if constexpr (mixed) row += knot.slope[b] * along_slope;
      store(rows + b * num_weights + c, row);
    }
  });
}

template <class T>
using Buffer = std::unique_ptr<Vector<T>[]>;

template <class T>
Buffer<T> buffer(int64_t vectors) {
  return Buffer<T>(new Vector<T>[std::max<int64_t>(vectors, 1)]);
}

// What one thread needs beside its results.
template <class T>
struct Workspace {
  Buffer<T> harmonics, m, m_cotangent;  // of a batch of edges, one edge per lane
  Buffer<T> grad_m, scaled, radial_rows;  // of one edge
  Radial<T> radial{};

  Workspace(const Plan<T>& plan, bool mixed, bool tabulated)
      : harmonics(buffer<T>(plan.dim_sh)),
        m(buffer<T>(plan.num_elements)),
        m_cotangent(buffer<T>(mixed ? plan.num_elements : 0)),
        grad_m(buffer<T>(plan.num_elements)),
        scaled(buffer<T>(plan.widest_block / lanes<T> + 1)) {
    if (!tabulated) return;
    const int64_t padded = plan.num_weights / lanes<T> + 1;
    radial_rows = buffer<T>(6 * padded);
    int n = 0;
    for (T** row : {&radial.w, &radial.w_slope, &radial.cotangent, &radial.cotangent_slope, &radial.grad,
                    &radial.plain_grad})
      *row = reinterpret_cast<T*>(radial_rows.get() + padded * n++);
  }
};

// All couplings of the edge in lane `b` of the batch, its weights being in workspace.radial.
template <class T, Pass pass, bool mixed>
void run_couplings(const Plan<T>& plan, const Arrays<T>& a, const std::vector<PathFunction<T>>& functions,
                   Workspace<T>& workspace, int64_t edge, int b) {
  const Radial<T>& radial = workspace.radial;
  const int64_t in_row = a.neighbor[edge] * plan.dim_in, out_row = a.center[edge] * plan.dim_out;
  const bool want_sh = pass == Pass::neighbor && a.grad_sh != nullptr;
  if (want_sh) std::fill_n(workspace.grad_m.get(), plan.num_elements, Vector<T>{});
  Item<T> item{};
  item.scaled = reinterpret_cast<T*>(workspace.scaled.get());
  for (size_t n = 0; n < plan.couplings.size(); ++n) {
    const Coupling& coupling = plan.couplings[n];
    item.m = reinterpret_cast<const T*>(workspace.m.get() + coupling.first_element) + b;
    if constexpr (mixed)
      item.m_cotangent = reinterpret_cast<const T*>(workspace.m_cotangent.get() + coupling.first_element) + b;
    item.grad_m = want_sh ? workspace.grad_m.get() + coupling.first_element : nullptr;
    for (const Path& path : coupling.paths) {
      item.channels = path.channels;
      item.out_stride = path.out_stride;
      item.x = a.x + in_row + path.in_offset;
      item.w = radial.w + path.weight_offset;
      if constexpr (mixed) {
        item.x_cotangent = a.x_cotangent + in_row + path.in_offset;
        item.w_cotangent = radial.cotangent + path.weight_offset;
      }
      if constexpr (pass == Pass::center) {
        item.grad_g = a.grad_g + out_row - a.first_center * plan.dim_out + path.out_offset;
      } else {
        item.g = a.g + out_row + path.out_offset;
        item.grad_x = a.grad_x + in_row + path.in_offset;
        item.grad_w = radial.grad + path.weight_offset;
        item.plain_grad_w = radial.plain_grad ? radial.plain_grad + path.weight_offset : nullptr;
      }
      functions[n](item);
    }
  }
  if (!want_sh) return;
  const Term<T>* term = plan.by_harmonic.data();
  const Term<T>* const end = term + plan.by_harmonic.size();
  for (int64_t j = 0; j < plan.dim_sh; ++j) {
    Vector<T> sum{};
    for (; term != end && term->harmonic == j; ++term) sum += term->value * workspace.grad_m[term->element];
    T& to = a.grad_sh[edge * plan.dim_sh + j];
    to = sum_lanes<T>(sum) + (a.add_geometry ? to : T(0));
  }
}

template <class T, Pass pass, bool mixed>
void run_pass(const Plan<T>& plan, const Arrays<T>& a, const int64_t* edges, int64_t count) {
  constexpr bool neighbor = pass == Pass::neighbor;
  const bool tabulated = a.table.rows != nullptr;
  std::vector<PathFunction<T>> functions;
  for (const Coupling& coupling : plan.couplings) functions.push_back(select<T, pass, mixed>(coupling));
  Workspace<T> workspace(plan, mixed, tabulated);
  Radial<T>& radial = workspace.radial;
  Knots<T> knots;
  for (int64_t first = 0; first < count; first += lanes<T>) {
    const int batch = int(std::min<int64_t>(lanes<T>, count - first));
    if (tabulated) knots.locate(a.table, a.length, edges + first, batch);
    Vector<T>* y = workspace.harmonics.get();
    matrices(plan, a.sh, edges + first, batch, y, workspace.m.get());
    if constexpr (mixed) matrices(plan, a.sh_cotangent, edges + first, batch, y, workspace.m_cotangent.get());
    for (int b = 0; b < batch; ++b) {
      const int64_t edge = edges[first + b];
      if (!tabulated) {
        const int64_t row = edge * plan.num_weights;
        radial.w = const_cast<T*>(a.w) + row;
        if constexpr (mixed) radial.cotangent = const_cast<T*>(a.w_cotangent) + row;
        if constexpr (neighbor) radial.grad = a.grad_w + row;
        run_couplings<T, pass, mixed>(plan, a, functions, workspace, edge, b);
        continue;
      }
      const Knot<T> knot = knots[b];
      interpolate<T, neighbor, mixed>(a, knot, edge, plan.num_weights, radial);
      run_couplings<T, pass, mixed>(plan, a, functions, workspace, edge, b);
      if constexpr (neighbor) pull_back<T, mixed>(a, knot, edge, plan.num_weights, radial);
    }
  }
}

template <class T, Pass pass>
void choose_form(const Plan<T>& plan, const Arrays<T>& arrays, const int64_t* edges, int64_t count) {
  if (arrays.x_cotangent == nullptr) return run_pass<T, pass, false>(plan, arrays, edges, count);
#ifdef EQUIPOT_FIRST_DERIVATIVES  // all that the engine takes: half of the code
  throw std::logic_error("this library has no mixed form");
#else
  run_pass<T, pass, true>(plan, arrays, edges, count);
#endif
}

}  // namespace

template <class T>
void center_pass(const Plan<T>& plan, const Arrays<T>& arrays, const int64_t* edges, int64_t count) {
  choose_form<T, Pass::center>(plan, arrays, edges, count);
}

template <class T>
void neighbor_pass(const Plan<T>& plan, const Arrays<T>& arrays, const int64_t* edges, int64_t count) {
  choose_form<T, Pass::neighbor>(plan, arrays, edges, count);
}

}  // namespace equipot
