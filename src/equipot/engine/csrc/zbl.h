// Screened nuclear repulsion in float64, half of each pair's energy to its center; see equipot/models/terms.py.
#pragma once

#include <array>
#include <cmath>

#include "perceptron.h"
#include "program.h"

namespace equipot::inline EQUIPOT_INSTRUCTIONS {

struct Zbl {
  std::vector<double> numbers, radii;  // of each type
  std::vector<double> reach;  // Å, of center and neighbor; empty: the sum of their radii
  std::array<double, 4> amplitude{}, decay{};
  double coulomb = 0, radius = 0, exponent = 0;  // eV Å, Å, 1
  int power = 0;

  explicit Zbl(const Json& json, int64_t num_types) {
    numbers = json["atomic_numbers"].numbers<double>(), radii = json["radii"].numbers<double>();
    const auto a = json["amplitude"].numbers<double>(), d = json["decay"].numbers<double>();
    if (json.has("reach")) reach = json["reach"].numbers<double>();
    if (int64_t(reach.size()) != num_types * num_types && !reach.empty())
      throw std::runtime_error("its ZBL term is damaged");
    if (int64_t(numbers.size()) != num_types || int64_t(radii.size()) != num_types || a.size() != 4 || d.size() != 4)
      throw std::runtime_error("its ZBL term is damaged");
    std::copy_n(a.begin(), 4, amplitude.begin()), std::copy_n(d.begin(), 4, decay.begin());
    coulomb = json["coulomb"].number, radius = json["radius"].number, exponent = json["exponent"].number;
    power = int(json["power"].number);
    if (power < 2 || power > 64) throw std::runtime_error("its ZBL term is damaged");
  }

  // Half the energy of a pair at distance r, and its derivative by r.
  double pair(int64_t center, int64_t neighbor, double r, double& slope) const {
    const double end =
        reach.empty() ? radii[center] + radii[neighbor] : reach[size_t(center) * numbers.size() + size_t(neighbor)];
    double u, u_slope;
    polynomial_cutoff(power, r / end, u, u_slope);
    slope = 0;
    if (u == 0) return 0;
    const double zi = numbers[center], zj = numbers[neighbor];
    const double a = radius / (std::pow(zi, exponent) + std::pow(zj, exponent));
    double screening = 0, screening_slope = 0;
    for (int k = 0; k < 4; ++k) {
      const double term = amplitude[k] * std::exp(-decay[k] * r / a);
      screening += term;
      screening_slope -= decay[k] / a * term;
    }
    const double front = 0.5 * coulomb * zi * zj / r;
    slope = front * (screening_slope * u + screening * u_slope / end - screening * u / r);
    return front * screening * u;
  }
};

}  // namespace equipot
