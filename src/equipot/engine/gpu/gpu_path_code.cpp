// The paths of one edge, as text. Names end in the number of the path within its bundle, then in the component: g0_2.
//
// Sums are chains of multiply-adds, one to a line, so that each becomes one instruction. An element of M is computed
// once for all paths, channels and places it stands in, and used up at once: registers need not hold all of M.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "gpu_writer.h"

namespace equipot {

std::string Writer::number(double value) const {
  char buffer[40];
  std::snprintf(buffer, sizeof buffer, form_.single ? "%.9ef" : "%.17e", value);
  return buffer;
}

// ---- the small matrix M -----------------------------------------------------------------------------------

std::vector<Writer::Element> Writer::elements(const Coupling& coupling) const {
  std::vector<Element> found;
  const int rows = components(coupling.l_out), columns = components(coupling.l_in);
  for (int k = 0; k < rows; ++k)
    for (int i = 0; i < columns; ++i) {
      if (coupling.diagonal && k != i) continue;
      const auto at = terms_.find(coupling.first_element + (coupling.diagonal ? 0 : k * columns + i));
      if (at == terms_.end()) continue;
      auto terms = at->second;
      const bool negative = terms[0].second < 0;
      if (negative)
        for (auto& [harmonic, value] : terms) value = -value;
      const auto same = [&](const Element& other) {
        return std::equal(terms.begin(), terms.end(), other.terms.begin(), other.terms.end(),
                          [](const auto& a, const auto& b) {
                            return a.first == b.first && std::abs(a.second - b.second) <= 1e-14 * std::abs(b.second);
                          });
      };
      auto known = std::find_if(found.begin(), found.end(), same);
      if (known == found.end()) known = found.insert(found.end(), {terms, {}});
      known->places.push_back({k, i, negative ? "-" : ""});
    }
  return found;
}

// m, and for the mixed form its cotangent dm
void Writer::matrix_element(const Element& element) {
  for (const char* kind : {"", "d"}) {
    if (*kind != '\0' && !form_.mixed) return;
    const auto& [first, value] = element.terms.front();
    line("T ", kind, "m = ", number(value), " * ", kind, "y", first, ";");
    for (size_t n = 1; n < element.terms.size(); ++n)
      line(kind, "m += ", number(element.terms[n].second), " * ", kind, "y", element.terms[n].first, ";");
  }
}

// ---- what an edge's paths are made of ---------------------------------------------------------------------

// w, and for the mixed form its cotangent dw; `slopes`: their derivatives by the distance too.
void Writer::weights(const Bundle& bundle, bool slopes) {
  for (size_t n = 0; n < bundle.items.size(); ++n) {
    const int64_t at = bundle.items[n].path.weight_offset;
    if (!form_.tabulated) {
      line("const V w", n, " = load_channels<V>(weights + ", at, ");");
      if (form_.mixed) line("const V dw", n, " = load_channels<V>(weights_cotangent + ", at, ");");
      continue;
    }
    line("const Coefficients<V> rows", n, "(weights + ", at, ");");
    line("const V w", n, " = rows", n, ".sum(value);");
    if (slopes || form_.mixed) line("const V slope", n, " = rows", n, ".sum(slope);");
    if (!form_.mixed) continue;
    line("V dw", n, " = length_cotangent * slope", n, ";");
    if (slopes) line("V dslope", n, " = length_cotangent * rows", n, ".sum(curvature);");
    open("if (a.table_cotangent != nullptr)");
    line("const Coefficients<V> rows(a.table_cotangent + weight_row + ", at, ");");
    line("dw", n, " += rows.sum(value);");
    if (slopes) line("dslope", n, " += rows.sum(slope);");
    close();
  }
}

// x, and for the mixed form its cotangent dx, of the group's blocks of one degree.
void Writer::columns(const Group& group, int degree) {
  for (size_t block = 0; block < group.blocks.size(); ++block) {
    if (group.blocks[block].degree != degree) continue;
    for (int i = 0; i < components(degree); ++i) {
      const int64_t at = group.blocks[block].offset + i * group.channels;
      line("const V x", block, "_", i, " = load_channels<V>(x + ", at, ");");
      if (form_.mixed) line("const V dx", block, "_", i, " = load_channels<V>(x_cotangent + ", at, ");");
    }
  }
}

// name = w x, for the mixed form with cotangents w x' + w' x
void Writer::products(const char* name, const Bundle& bundle, bool with_cotangents) {
  for (size_t n = 0; n < bundle.items.size(); ++n)
    for (int i = 0; i < components(bundle.coupling->l_in); ++i) {
      const std::string at = join(bundle.items[n].block, "_", i);
      if (with_cotangents) line("V ", name, n, "_", i, " = w", n, " * dx", at, ";");
      else line("const V ", name, n, "_", i, " = w", n, " * x", at, ";");
      if (with_cotangents) line(name, n, "_", i, " += dw", n, " * x", at, ";");
    }
}

// Sums that begin with zero, `count` for each path.
void Writer::declare(const Bundle& bundle, const char* name, int count) {
  for (size_t n = 0; n < bundle.items.size(); ++n)
    for (int k = 0; k < count; ++k) line("V ", name, n, "_", k, " = {};");
}

// ---- center pass ------------------------------------------------------------------------------------------

// sum[k] += M (w x), mixed: M (w x' + w' x) + M' (w x). The weight goes where there are fewer components.
void Writer::center_bundle(const Bundle& bundle) {
  const Coupling& coupling = *bundle.coupling;
  const auto& items = bundle.items;
  const auto all = elements(coupling);
  weights(bundle, false);
  if (coupling.diagonal && !form_.mixed) {
    matrix_element(all.front());
    for (size_t n = 0; n < items.size(); ++n) {
      line("const V f", n, " = m * w", n, ";");
      for (int k = 0; k < components(coupling.l_out); ++k)
        line("sum", items[n].place + k, " += f", n, " * x", items[n].block, "_", k, ";");
    }
    return;
  }
  const bool weigh_output = !form_.mixed && coupling.l_out < coupling.l_in;
  if (weigh_output) declare(bundle, "t", components(coupling.l_out));
  else products("s", bundle, form_.mixed);
  if (form_.mixed) products("p", bundle, false);
  for (const Element& element : all) {
    open("");
    matrix_element(element);
    for (const auto& [k, i, sign] : element.places)
      for (size_t n = 0; n < items.size(); ++n) {
        const std::string sum = join("sum", items[n].place + k);
        if (weigh_output) line("t", n, "_", k, " += ", sign, "m * x", items[n].block, "_", i, ";");
        else line(sum, " += ", sign, "m * s", n, "_", i, ";");
        if (form_.mixed) line(sum, " += ", sign, "dm * p", n, "_", i, ";");
      }
    close();
  }
  if (weigh_output)
    for (size_t n = 0; n < items.size(); ++n)
      for (int k = 0; k < components(coupling.l_out); ++k)
        line("sum", items[n].place + k, " += w", n, " * t", n, "_", k, ";");
}

// ---- neighbor pass ----------------------------------------------------------------------------------------

// s = M^T g, and for the mixed form ds = M'^T g. With `geometry` also by_y[j] += C[k,i,j] g[k] z[i], where z = w x,
// mixed: w x' + w' x; `weighted`: w is in h = w g instead.
void Writer::received(const Bundle& bundle, bool geometry, bool weighted) {
  const Coupling& coupling = *bundle.coupling;
  const auto& items = bundle.items;
  declare(bundle, "s", components(coupling.l_in));
  if (form_.mixed) declare(bundle, "ds", components(coupling.l_in));
  for (const Element& element : elements(coupling)) {
    open("");
    matrix_element(element);
    if (geometry) line("T by_m = 0;");
    for (const auto& [k, i, sign] : element.places)
      for (size_t n = 0; n < items.size(); ++n) {
        line("s", n, "_", i, " += ", sign, "m * g", n, "_", k, ";");
        if (form_.mixed) line("ds", n, "_", i, " += ", sign, "dm * g", n, "_", k, ";");
        if (!geometry) continue;
        if (weighted) line("add_products(by_m, ", sign, "h", n, "_", k, ", x", items[n].block, "_", i, ");");
        else line("add_products(by_m, ", sign, "g", n, "_", k, ", z", n, "_", i, ");");
      }
    if (geometry)
      for (const auto& [j, value] : element.terms) line("by_y", j, " += ", number(value), " * by_m;");
    close();
  }
}

// by_w = sum of s x, mixed: s x' + s' x, and plain_by_w as without
void Writer::gradient_by_weights(const Item& item, size_t n, int rows) {
  line("V by_w = {};");
  if (form_.mixed && form_.tabulated) line("V plain_by_w = {};");
  for (int i = 0; i < rows; ++i) {
    const std::string s = join("s", n, "_", i), x = join("x", item.block, "_", i);
    line("by_w += ", s, " * ", form_.mixed ? "d" : "", x, ";");
    if (form_.mixed) line("by_w += d", s, " * ", x, ";");
    if (form_.mixed && form_.tabulated) line("plain_by_w += ", s, " * ", x, ";");
  }
}

// What by_w of each path adds to the edge's gradient, named by_w0, by_w1, ...
void Writer::add_by_weights(const Bundle& bundle) {
  for (size_t n = 0; n < bundle.items.size(); ++n)
    if (!form_.tabulated)
      line("if (active) store_channels(grad_w + ", bundle.items[n].path.weight_offset, ", by_w", n, ");");
    else if (form_.geometry)
      line("by_length += by_w", n, " * slope", n, ";");
}

// M is a number: everything follows from d = g x.
void Writer::neighbor_identity(const Bundle& bundle) {
  const Element element = elements(*bundle.coupling).front();
  matrix_element(element);
  if (form_.geometry) line("T by_m = 0;");
  for (size_t n = 0; n < bundle.items.size(); ++n) {
    const int block = bundle.items[n].block;
    line("V d", n, " = {};");
    line("const V f", n, " = m * w", n, ";");
    for (int k = 0; k < components(bundle.coupling->l_in); ++k) {
      line("d", n, " += g", n, "_", k, " * x", block, "_", k, ";");
      line("by_x", block, "_", k, " += f", n, " * g", n, "_", k, ";");
    }
    line("const V by_w", n, " = m * d", n, ";");
    if (form_.geometry) line("add_products(by_m, w", n, ", d", n, ");");
  }
  if (form_.geometry)
    for (const auto& [j, value] : element.terms) line("by_y", j, " += ", number(value), " * by_m;");
  add_by_weights(bundle);
}

// M is a row: h = w g is one number, and so is t = M x.
void Writer::neighbor_scalar(const Bundle& bundle) {
  for (size_t n = 0; n < bundle.items.size(); ++n) line("const V h", n, " = w", n, " * g", n, "_0;");
  declare(bundle, "t", 1);
  for (const Element& element : elements(*bundle.coupling)) {
    open("");
    matrix_element(element);
    if (form_.geometry) line("T by_m = 0;");
    for (const auto& [k, i, sign] : element.places)
      for (size_t n = 0; n < bundle.items.size(); ++n) {
        const std::string at = join(bundle.items[n].block, "_", i);
        line("t", n, "_0 += ", sign, "m * x", at, ";");
        line("by_x", at, " += ", sign, "m * h", n, ";");
        if (form_.geometry) line("add_products(by_m, ", sign, "h", n, ", x", at, ");");
      }
    if (form_.geometry)
      for (const auto& [j, value] : element.terms) line("by_y", j, " += ", number(value), " * by_m;");
    close();
  }
  for (size_t n = 0; n < bundle.items.size(); ++n) line("const V by_w", n, " = g", n, "_0 * t", n, "_0;");
  add_by_weights(bundle);
}

void Writer::neighbor_bundle(const Bundle& bundle) {
  const Coupling& coupling = *bundle.coupling;
  const auto& items = bundle.items;
  const int rows = components(coupling.l_in), out_rows = components(coupling.l_out);
  const bool slopes = form_.tabulated && form_.geometry;
  weights(bundle, slopes);
  for (size_t n = 0; n < items.size(); ++n)
    for (int k = 0; k < out_rows; ++k)
      line("const V g", n, "_", k, " = load_channels<V>(g + ", items[n].path.out_offset + k * items[n].path.out_stride,
           ");");
  if (!form_.mixed && coupling.diagonal) return neighbor_identity(bundle);
  if (!form_.mixed && coupling.l_out == 0) return neighbor_scalar(bundle);
  const bool weighted = !form_.mixed && coupling.l_out < coupling.l_in;
  if (form_.geometry && weighted)
    for (size_t n = 0; n < items.size(); ++n)
      for (int k = 0; k < out_rows; ++k) line("const V h", n, "_", k, " = w", n, " * g", n, "_", k, ";");
  if (form_.geometry && !weighted) products("z", bundle, form_.mixed);
  received(bundle, form_.geometry, weighted);
  for (size_t n = 0; n < items.size(); ++n) {
    open("");
    for (int i = 0; i < rows; ++i) {
      const std::string by_x = join("by_x", items[n].block, "_", i), s = join("s", n, "_", i);
      line(by_x, " += ", form_.mixed ? "d" : "", "w", n, " * ", s, ";");
      if (form_.mixed) line(by_x, " += w", n, " * d", s, ";");
    }
    if (!form_.tabulated || form_.geometry) gradient_by_weights(items[n], n, rows);
    if (!form_.tabulated)
      line("if (active) store_channels(grad_w + ", items[n].path.weight_offset, ", by_w);");
    if (slopes) line("by_length += by_w * slope", n, ";");
    if (slopes && form_.mixed) line("by_length += plain_by_w * dslope", n, ";");
    close();
  }
}

// ---- gradient by the table --------------------------------------------------------------------------------

// row[b] += B_b by_w, mixed: also r' dB_b/dr plain_by_w
void Writer::table_bundle(const Bundle& bundle) {
  const auto& items = bundle.items;
  for (size_t n = 0; n < items.size(); ++n)
    for (int k = 0; k < components(bundle.coupling->l_out); ++k)
      line("const V g", n, "_", k, " = load_channels<V>(g + ", items[n].path.out_offset + k * items[n].path.out_stride,
           ");");
  received(bundle, false, false);
  for (size_t n = 0; n < items.size(); ++n) {
    open("");
    gradient_by_weights(items[n], n, components(bundle.coupling->l_in));
    if (form_.mixed) line("const V along_slope = length_cotangent * plain_by_w;");
    for (int b = 0; b < 6; ++b) {
      line("sum", items[n].place + b, " += value[", b, "] * by_w;");
      if (form_.mixed) line("sum", items[n].place + b, " += slope[", b, "] * along_slope;");
    }
    close();
  }
}

}  // namespace equipot
