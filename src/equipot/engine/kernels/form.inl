// Implementation of form.h, compiled once for float (form_float.cpp) and once for double (form_double.cpp).
//
// Edges are taken in batches of one vector: their matrices M are computed together, one edge per lane, so
// element m of edge b lies at matrices[m * lanes + b]. A path is then computed for all edges of a batch; what
// edges of one center (neighbor) add to its row stays in registers meanwhile. Everything runs along channels:
// tiles of U vectors, then single vectors, then what remains one channel at a time (V = T).
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

constexpr int span = 6;  // splines that are not zero in an interval

// What one path of a batch of edges reads and writes; pointers to the first element of its blocks, to which the rows
// of an edge are added.
template <class T>
struct Item {
  int first, last;  // edges of the batch
  const int* run_end;  // of each edge: the end of those that have its center (neighbor), too
  const int64_t *in_row, *out_row, *w_row;
  const T *m, *m_cotangent;  // M and M' of the first edge; those of the next follow, elements are `lanes` apart
  const T *x, *x_cotangent;  // (components in, channels)
  const T *w, *w_cotangent;  // (channels), or rows of a table, w_step apart
  const T *value, *slope;  // of the splines at each edge, (span, lanes); null: weights are not from a table
  int64_t w_step;
  const T* g;  // (components out, channels), rows out_stride apart
  T* grad_g;
  T* grad_x;
  T* grad_w;  // null: not wanted
  T* plain_grad_w;  // of the plain form, beside the mixed one; null: not wanted
  Vector<T>* grad_length;  // of each edge, channels summed up to the lanes
  T* grad_table;  // null: not wanted
  Vector<T>* grad_m;  // (components out, components in, edges), channels summed up to the lanes; null: not wanted
  bool add_grad_m;  // to what another path has left there
  int64_t channels, out_stride;
};

// The weights of edge b, and their derivatives by the distance if they are from a table.
template <bool want_slope, class V, class T, int U>
INLINE void weights(const Item<T>& a, int b, int64_t c, V (&w)[U], V (&slope)[U]) {
  constexpr int width = sizeof(V) / sizeof(T);
  const T* row = a.w + a.w_row[b] + c;
  if (a.value == nullptr) {
    UNROLL for (int u = 0; u < U; ++u) w[u] = load<V>(row + u * width), slope[u] = V{};
    return;
  }
  UNROLL for (int u = 0; u < U; ++u) w[u] = slope[u] = V{};
  UNROLL for (int s = 0; s < span; ++s, row += a.w_step) {
    UNROLL for (int u = 0; u < U; ++u) {
      const V from = load<V>(row + u * width);
      w[u] += a.value[s * lanes<T> + b] * from;
      if constexpr (want_slope) slope[u] += a.slope[s * lanes<T> + b] * from;
    }
  }
}

// ---- center pass: grad_g[k] += sum_i M[k,i] w x[i], mixed: M (w x' + w' x) + M' (w x) ---------------------

// Of edges that have one center.
template <class V, class T, int in, int out, bool diagonal, bool mixed, int U>
INLINE void center_tile(const Item<T>& a, int first, int last, int64_t c) {
  constexpr int width = sizeof(V) / sizeof(T);
  T* rows = a.grad_g + a.out_row[first] + c;
  V sum[out][U];
  UNROLL for (int k = 0; k < out; ++k)
    UNROLL for (int u = 0; u < U; ++u) sum[k][u] = load<V>(rows + k * a.out_stride + u * width);
  for (int b = first; b < last; ++b) {
    V w[U], slope[U], scaled[in][U], plain[in][U];
    weights<false>(a, b, c, w, slope);
    int64_t at = a.in_row[b] + c;
    UNROLL for (int i = 0; i < in; ++i, at += a.channels)
      UNROLL for (int u = 0; u < U; ++u) {
        plain[i][u] = w[u] * load<V>(a.x + at + u * width);
        scaled[i][u] = plain[i][u];
        if constexpr (mixed)
          scaled[i][u] = w[u] * load<V>(a.x_cotangent + at + u * width) +
                         load<V>(a.w_cotangent + a.w_row[b] + c + u * width) * load<V>(a.x + at + u * width);
      }
    UNROLL for (int k = 0; k < out; ++k) {
      constexpr int first_row = diagonal ? 0 : in;
      UNROLL for (int i = 0; i < (diagonal ? 1 : in); ++i) {
        const int source = diagonal ? k : i;
        const T m = a.m[(k * first_row + i) * lanes<T> + b];
        UNROLL for (int u = 0; u < U; ++u) sum[k][u] += m * scaled[source][u];
        if constexpr (mixed) {
          const T m_cotangent = a.m_cotangent[(k * first_row + i) * lanes<T> + b];
          UNROLL for (int u = 0; u < U; ++u) sum[k][u] += m_cotangent * plain[source][u];
        }
      }
    }
  }
  UNROLL for (int k = 0; k < out; ++k)
    UNROLL for (int u = 0; u < U; ++u) store(rows + k * a.out_stride + u * width, sum[k][u]);
}

template <class T, int in, int out, bool diagonal, bool mixed>
void center_path(const Item<T>& item) {
  const Item<T> a = item;  // a local copy cannot alias what is stored, so its pointers stay in registers
  // Two vectors at a time share each broadcast of M, where the registers hold their rows.
  constexpr int U = ((mixed ? 2 : 1) * in + out + 1) * 2 + 1 <= vector_registers ? 2 : 1;
  for (int b = a.first, end; b < a.last; b = end) {
    end = std::min(a.run_end[b], a.last);
    int64_t c = 0;
    for (; c + U * lanes<T> <= a.channels; c += U * lanes<T>)
      center_tile<Vector<T>, T, in, out, diagonal, mixed, U>(a, b, end, c);
    if constexpr (U > 1)
      for (; c + lanes<T> <= a.channels; c += lanes<T>)
        center_tile<Vector<T>, T, in, out, diagonal, mixed, 1>(a, b, end, c);
    for (; c < a.channels; ++c) center_tile<T, T, in, out, diagonal, mixed, 1>(a, b, end, c);
  }
}

// ---- neighbor pass ----------------------------------------------------------------------------------------
// With s[i] = sum_k M[k,i] g[k] and s' the same of M':
//   grad_x[i] += w s[i]           mixed: w' s + w s'
//   grad_w = sum_i s[i] x[i]      mixed: s x' + s' x
//   grad_m[k,i] = sum_c g[k] w x[i]
//                                 mixed: g[k] (w x'[i] + w' x[i])

INLINE void add_to_lanes(Vector<float>& sum, Vector<float> value) { sum += value; }
INLINE void add_to_lanes(Vector<double>& sum, Vector<double> value) { sum += value; }
INLINE void add_to_lanes(Vector<float>& sum, float value) { sum[0] += value; }
INLINE void add_to_lanes(Vector<double>& sum, double value) { sum[0] += value; }

// The gradients by length and table that follow from that by the weights of edge b.
template <class V, class T, int U>
INLINE void pull_back(const Item<T>& a, int b, int64_t c, const V (&grad_w)[U], const V (&slope)[U]) {
  constexpr int width = sizeof(V) / sizeof(T);
  V sum{};
  UNROLL for (int u = 0; u < U; ++u) sum += grad_w[u] * slope[u];
  add_to_lanes(a.grad_length[b], sum);
  if (a.grad_table == nullptr) return;
  T* rows = a.grad_table + a.w_row[b] + c;
  UNROLL for (int s = 0; s < span; ++s)
    UNROLL for (int u = 0; u < U; ++u) {
      T* to = rows + s * a.w_step + u * width;
      store(to, load<V>(to) + a.value[s * lanes<T> + b] * grad_w[u]);
    }
}

// Of edges that have one neighbor. `add`: to grad_m.
template <class V, class T, int in, int out, bool diagonal, bool mixed, int U>
INLINE void neighbor_tile(const Item<T>& a, int first, int last, int64_t c, bool add) {
  constexpr int width = sizeof(V) / sizeof(T);
  const int64_t row = a.in_row[first] + c;
  V x[in][U], x_cotangent[in][U], grad_x[in][U];
  UNROLL for (int i = 0; i < in; ++i)
    UNROLL for (int u = 0; u < U; ++u) {
      const int64_t at = row + i * a.channels + u * width;
      x[i][u] = load<V>(a.x + at), grad_x[i][u] = load<V>(a.grad_x + at);
      if constexpr (mixed) x_cotangent[i][u] = load<V>(a.x_cotangent + at);
    }
  for (int b = first; b < last; ++b) {
    V g[out][U], w[U], slope[U], w_cotangent[U], grad_w[U], plain_grad_w[U];
    const int64_t weight = a.w_row[b] + c;
    weights<!mixed>(a, b, c, w, slope);
    UNROLL for (int u = 0; u < U; ++u) {
      if constexpr (mixed) w_cotangent[u] = load<V>(a.w_cotangent + weight + u * width);
      grad_w[u] = plain_grad_w[u] = V{};
    }
    const T* g_row = a.g + a.out_row[b] + c;
    UNROLL for (int k = 0; k < out; ++k, g_row += a.out_stride)
      UNROLL for (int u = 0; u < U; ++u) g[k][u] = load<V>(g_row + u * width);
    UNROLL for (int i = 0; i < in; ++i) {
      V s[U], s_cotangent[U];
      UNROLL for (int u = 0; u < U; ++u) s[u] = s_cotangent[u] = V{};
      UNROLL for (int k = (diagonal ? i : 0); k < (diagonal ? i + 1 : out); ++k) {
        const int element = (diagonal ? 0 : k * in + i) * lanes<T> + b;
        const T m = a.m[element];
        UNROLL for (int u = 0; u < U; ++u) s[u] += m * g[k][u];
        if constexpr (mixed) {
          const T m_cotangent = a.m_cotangent[element];
          UNROLL for (int u = 0; u < U; ++u) s_cotangent[u] += m_cotangent * g[k][u];
        }
      }
      V scaled[U];
      UNROLL for (int u = 0; u < U; ++u) {
        if constexpr (mixed) {
          grad_x[i][u] += w_cotangent[u] * s[u] + w[u] * s_cotangent[u];
          grad_w[u] += s[u] * x_cotangent[i][u] + s_cotangent[u] * x[i][u];
          plain_grad_w[u] += s[u] * x[i][u];
          scaled[u] = w[u] * x_cotangent[i][u] + w_cotangent[u] * x[i][u];
        } else {
          grad_x[i][u] += w[u] * s[u];
          grad_w[u] += s[u] * x[i][u];
          scaled[u] = w[u] * x[i][u];
        }
      }
      if (a.grad_m == nullptr) continue;
      UNROLL for (int k = (diagonal ? i : 0); k < (diagonal ? i + 1 : out); ++k) {
        V sum{};
        UNROLL for (int u = 0; u < U; ++u) sum += g[k][u] * scaled[u];
        Vector<T>& to = a.grad_m[(diagonal ? 0 : k * in + i) * lanes<T> + b];
        if (!add && (!diagonal || i == 0)) to = Vector<T>{};
        add_to_lanes(to, sum);
      }
    }
    if (a.grad_w != nullptr) UNROLL for (int u = 0; u < U; ++u) store(a.grad_w + weight + u * width, grad_w[u]);
    if (mixed && a.plain_grad_w != nullptr)
      UNROLL for (int u = 0; u < U; ++u) store(a.plain_grad_w + weight + u * width, plain_grad_w[u]);
    if constexpr (!mixed)
      if (a.slope != nullptr) pull_back(a, b, c, grad_w, slope);
  }
  UNROLL for (int i = 0; i < in; ++i)
    UNROLL for (int u = 0; u < U; ++u) store(a.grad_x + row + i * a.channels + u * width, grad_x[i][u]);
}

template <class T, int in, int out, bool diagonal, bool mixed>
void neighbor_path(const Item<T>& item) {
  const Item<T> a = item;  // a local copy cannot alias what is stored, so its pointers stay in registers
  // Rows of the plain form's x and grad_x may lie on the stack: many edges have them in common.
  constexpr int U = ((mixed ? 3 * in + 2 : 0) + out + 5) * 2 <= vector_registers ? 2 : 1;
  for (int b = a.first, end; b < a.last; b = end) {
    end = std::min(a.run_end[b], a.last);
    int64_t c = 0;
    const auto add = [&] { return a.add_grad_m || c > 0; };
    for (; c + U * lanes<T> <= a.channels; c += U * lanes<T>)
      neighbor_tile<Vector<T>, T, in, out, diagonal, mixed, U>(a, b, end, c, add());
    if constexpr (U > 1)
      for (; c + lanes<T> <= a.channels; c += lanes<T>)
        neighbor_tile<Vector<T>, T, in, out, diagonal, mixed, 1>(a, b, end, c, add());
    for (; c < a.channels; ++c) neighbor_tile<T, T, in, out, diagonal, mixed, 1>(a, b, end, c, add());
  }
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

// What an edge's weights are to the mixed form's passes; each (num_weights), padded to whole vectors.
template <class T>
struct Radial {
  T *w, *w_slope;  // w(r), dw/dr
  T *cotangent, *cotangent_slope;  // w' = r' dw/dr + w(r; table'), and dw'/dr
  T *grad, *plain_grad;  // of the mixed and of the plain form by w
};

template <class T, bool neighbor>
void interpolate(const Arrays<T>& a, const Knot<T>& knot, int64_t edge, int64_t num_weights, const Radial<T>& to) {
  const T* rows = a.table.rows + knot.row * num_weights;
  const T* rows_cotangent = a.table_cotangent ? a.table_cotangent + knot.row * num_weights : nullptr;
  const T length_cotangent = a.length_cotangent ? a.length_cotangent[edge] : T(0);
  along<T>(num_weights, [&]<class V>(int64_t c) {
    V w{}, slope{}, curvature{};
    UNROLL for (int b = 0; b < span; ++b) {
      const V from = load<V>(rows + b * num_weights + c);
      w += knot.value[b] * from;
      slope += knot.slope[b] * from;
      if constexpr (neighbor) curvature += knot.curvature[b] * from;
    }
    store(to.w + c, w);
    V cotangent = length_cotangent * slope, cotangent_slope = length_cotangent * curvature;
    if (rows_cotangent != nullptr)
      UNROLL for (int b = 0; b < span; ++b) {
        const V from = load<V>(rows_cotangent + b * num_weights + c);
        cotangent += knot.value[b] * from;
        cotangent_slope += knot.slope[b] * from;
      }
    store(to.cotangent + c, cotangent);
    if constexpr (neighbor) store(to.w_slope + c, slope), store(to.cotangent_slope + c, cotangent_slope);
  });
}

// The mixed form's gradients by length and table, from those by the weights.
template <class T>
void pull_back(const Arrays<T>& a, const Knot<T>& knot, int64_t edge, int64_t num_weights, const Radial<T>& radial,
               Vector<T>& grad_length) {
  if (a.grad_length != nullptr) {
    constexpr int chains = 4;  // of additions, which need not wait for each other
    Vector<T> sum[chains] = {};
    const auto add = [&]<class V>(Vector<T>& to, int64_t c) {
      add_to_lanes(to, load<V>(radial.grad + c) * load<V>(radial.w_slope + c) +
                           load<V>(radial.plain_grad + c) * load<V>(radial.cotangent_slope + c));
    };
    int64_t c = 0;
    for (; c + chains * lanes<T> <= num_weights; c += chains * lanes<T>)
      UNROLL for (int n = 0; n < chains; ++n) add.template operator()<Vector<T>>(sum[n], c + n * lanes<T>);
    for (; c + lanes<T> <= num_weights; c += lanes<T>) add.template operator()<Vector<T>>(sum[0], c);
    for (; c < num_weights; ++c) add.template operator()<T>(sum[0], c);
    grad_length = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
  if (a.grad_table == nullptr) return;
  T* rows = a.grad_table + knot.row * num_weights;
  const T length_cotangent = a.length_cotangent ? a.length_cotangent[edge] : T(0);
  along<T>(num_weights, [&]<class V>(int64_t c) {
    const V grad = load<V>(radial.grad + c), along_slope = length_cotangent * load<V>(radial.plain_grad + c);
    UNROLL for (int b = 0; b < span; ++b)
      store(rows + b * num_weights + c,
            load<V>(rows + b * num_weights + c) + knot.value[b] * grad + knot.slope[b] * along_slope);
  });
}

// ---- passes -----------------------------------------------------------------------------------------------

template <class T>
using Buffer = std::unique_ptr<Vector<T>[]>;

template <class T>
Buffer<T> buffer(int64_t vectors) {
  return Buffer<T>(new Vector<T>[std::max<int64_t>(vectors, 1)]);
}

// What one thread needs beside its results, for a batch of edges.
template <class T>
struct Workspace {
  Buffer<T> harmonics, m, m_cotangent;  // one edge per lane
  Buffer<T> grad_harmonics, grad_m, grad_length;  // of each edge, to be summed over the lanes
  Buffer<T> radial_rows;
  Radial<T> radial{};
  Knots<T> knots;
  int run_end[lanes<T>];
  int64_t in_row[lanes<T>], out_row[lanes<T>], w_row[lanes<T>];

  Workspace(const Plan<T>& plan, bool neighbor, bool mixed, bool tabulated)
      : harmonics(buffer<T>(plan.dim_sh)), m(buffer<T>(plan.num_elements)) {
    int64_t elements = 0;  // of the largest coupling
    for (const Coupling& c : plan.couplings)
      elements = std::max<int64_t>(elements, c.diagonal ? 1 : (2 * c.l_in + 1) * (2 * c.l_out + 1));
    if (mixed) m_cotangent = buffer<T>(plan.num_elements);
    if (neighbor) {
      grad_harmonics = buffer<T>(plan.dim_sh * lanes<T>), grad_m = buffer<T>(elements * lanes<T>);
      grad_length = buffer<T>(lanes<T>);
    }
    if (!mixed || !tabulated) return;
    const int64_t padded = plan.num_weights / lanes<T> + 1;
    radial_rows = buffer<T>(6 * padded);
    int n = 0;
    for (T** row : {&radial.w, &radial.w_slope, &radial.cotangent, &radial.cotangent_slope, &radial.grad,
                    &radial.plain_grad})
      *row = reinterpret_cast<T*>(radial_rows.get() + padded * n++);
  }

  // Rows of the edges, and how many follow that touch the same atom.
  template <Pass pass>
  void find_rows(const Plan<T>& plan, const Arrays<T>& a, const int64_t* edges, int count) {
    const int64_t first_out = pass == Pass::center ? a.first_center : 0;
    for (int b = count - 1; b >= 0; --b) {
      in_row[b] = a.neighbor[edges[b]] * plan.dim_in, out_row[b] = (a.center[edges[b]] - first_out) * plan.dim_out;
      w_row[b] = edges[b] * plan.num_weights;
      if (a.table.rows != nullptr) w_row[b] = a.x_cotangent != nullptr ? 0 : knots.row[b] * plan.num_weights;
      const int64_t* row = pass == Pass::center ? out_row : in_row;
      run_end[b] = b + 1 < count && row[b] == row[b + 1] ? run_end[b + 1] : b + 1;
    }
  }
};

// grad_harmonics += what follows from grad_m of a coupling, which lies at the beginning of its buffer.
template <class T>
void add_grad_harmonics(const Plan<T>& plan, const Coupling& coupling, int first, int last, Workspace<T>& workspace) {
  for (int n = coupling.first_term; n < coupling.last_term; ++n) {
    const Term<T>& term = plan.terms[n];
    const Vector<T>* from = workspace.grad_m.get() + (term.element - coupling.first_element) * lanes<T>;
    Vector<T>* to = workspace.grad_harmonics.get() + term.harmonic * lanes<T>;
    for (int b = first; b < last; ++b) to[b] += term.value * from[b];
  }
}

// All couplings of the edges first ... last - 1 of the batch.
template <class T, Pass pass, bool mixed>
void run_couplings(const Plan<T>& plan, const Arrays<T>& a, const std::vector<PathFunction<T>>& functions,
                   Workspace<T>& workspace, int first, int last) {
  const bool tabulated = a.table.rows != nullptr, scratch = mixed && tabulated;
  const bool want_sh = pass == Pass::neighbor && a.grad_sh != nullptr;
  Item<T> item{};
  item.first = first, item.last = last, item.run_end = workspace.run_end;
  item.in_row = workspace.in_row, item.out_row = workspace.out_row, item.w_row = workspace.w_row;
  item.grad_m = want_sh ? workspace.grad_m.get() : nullptr;
  item.w_step = plan.num_weights;
  if (tabulated && !mixed) {
    item.value = reinterpret_cast<const T*>(workspace.knots.splines.value);
    item.slope = reinterpret_cast<const T*>(workspace.knots.splines.slope);
    item.grad_length = workspace.grad_length.get();
  }
  for (size_t n = 0; n < plan.couplings.size(); ++n) {
    const Coupling& coupling = plan.couplings[n];
    item.m = reinterpret_cast<const T*>(workspace.m.get() + coupling.first_element);
    if constexpr (mixed) item.m_cotangent = reinterpret_cast<const T*>(workspace.m_cotangent.get() + coupling.first_element);
    item.add_grad_m = false;
    for (const Path& path : coupling.paths) {
      item.channels = path.channels;
      item.out_stride = path.out_stride;
      item.x = a.x + path.in_offset;
      item.w = (scratch ? workspace.radial.w : tabulated ? a.table.rows : a.w) + path.weight_offset;
      if constexpr (mixed) {
        item.x_cotangent = a.x_cotangent + path.in_offset;
        item.w_cotangent = (scratch ? workspace.radial.cotangent : a.w_cotangent) + path.weight_offset;
      }
      if constexpr (pass == Pass::center) {
        item.grad_g = a.grad_g + path.out_offset;
      } else {
        item.g = a.g + path.out_offset;
        item.grad_x = a.grad_x + path.in_offset;
        if (!tabulated || scratch) item.grad_w = (scratch ? workspace.radial.grad : a.grad_w) + path.weight_offset;
        if (scratch) item.plain_grad_w = workspace.radial.plain_grad + path.weight_offset;
        if (a.grad_table != nullptr) item.grad_table = a.grad_table + path.weight_offset;
      }
      functions[n](item);
      item.add_grad_m = true;
    }
    if (want_sh) add_grad_harmonics(plan, coupling, first, last, workspace);
  }
}

template <class T, Pass pass, bool mixed>
void run_pass(const Plan<T>& plan, const Arrays<T>& a, const int64_t* edges, int64_t count) {
  constexpr bool neighbor = pass == Pass::neighbor;
  const bool tabulated = a.table.rows != nullptr;
  std::vector<PathFunction<T>> functions;
  for (const Coupling& coupling : plan.couplings) functions.push_back(select<T, pass, mixed>(coupling));
  Workspace<T> workspace(plan, neighbor, mixed, tabulated);
  const int64_t* atom = neighbor ? a.neighbor : a.center;
  int batch;
  for (; count > 0; edges += batch, count -= batch) {
    batch = int(std::min<int64_t>(lanes<T>, count));
    // An atom whose edges do not fit into what is left begins a batch: the order of its sum must not depend on others.
    int whole = batch < count ? batch : 0;
    while (whole > 0 && atom[edges[whole - 1]] == atom[edges[batch]]) --whole;
    if (whole > 0) batch = whole;
    if (tabulated) workspace.knots.locate(a.table, a.length, edges, batch);
    workspace.template find_rows<pass>(plan, a, edges, batch);
    Vector<T>* y = workspace.harmonics.get();
    matrices(plan, a.sh, edges, batch, y, workspace.m.get());
    if constexpr (mixed) matrices(plan, a.sh_cotangent, edges, batch, y, workspace.m_cotangent.get());
    if constexpr (neighbor) {
      std::fill_n(workspace.grad_harmonics.get(), plan.dim_sh * lanes<T>, Vector<T>{});
      std::fill_n(workspace.grad_length.get(), lanes<T>, Vector<T>{});
    }
    if (!mixed || !tabulated) {
      run_couplings<T, pass, mixed>(plan, a, functions, workspace, 0, batch);
    } else if constexpr (mixed) {
      // There are many kinds of weights: only those of one edge stay in a cache.
      for (int b = 0; b < batch; ++b) {
        const Knot<T> knot = workspace.knots[b];
        interpolate<T, neighbor>(a, knot, edges[b], plan.num_weights, workspace.radial);
        run_couplings<T, pass, mixed>(plan, a, functions, workspace, b, b + 1);
        if constexpr (neighbor) pull_back(a, knot, edges[b], plan.num_weights, workspace.radial, workspace.grad_length[b]);
      }
    }
    if constexpr (!neighbor) continue;
    const auto write = [&](T& to, const Vector<T>& sum) { to = sum_lanes<T>(sum) + (a.add_geometry ? to : T(0)); };
    for (int b = 0; b < batch; ++b) {
      for (int64_t j = 0; j < plan.dim_sh && a.grad_sh != nullptr; ++j)
        write(a.grad_sh[edges[b] * plan.dim_sh + j], workspace.grad_harmonics[j * lanes<T> + b]);
      if (tabulated && a.grad_length != nullptr) write(a.grad_length[edges[b]], workspace.grad_length[b]);
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
