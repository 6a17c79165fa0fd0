// SPDX-License-Identifier: Apache-2.0
#include "tests/support/tolerance.h"

#include <cmath>
#include <limits>
#include <sstream>

namespace memphis::test {
namespace {

double smallest_normal(DType dtype) {
  return dtype == DType::f64 ? std::numeric_limits<double>::min()
                             : static_cast<double>(std::numeric_limits<float>::min());
}

// Bits of the significand, the leading one included.
int digits(DType dtype) {
  return -std::ilogb(rounding_unit(dtype));
}

// The norm of difference(i) over the row that begins at `begin`.
template <class Difference>
double norm_of_row(std::size_t begin,
                   std::size_t length,
                   std::size_t size,
                   const Difference& difference) {
  double sum = 0;
  for (std::size_t i = begin; i < std::min(begin + length, size); ++i) {
    sum += difference(i) * difference(i);
  }
  return std::sqrt(sum);
}

std::size_t length_of(std::int64_t row_length) {
  return static_cast<std::size_t>(std::max<std::int64_t>(row_length, 1));
}

// A bit as good as random: the finaliser of MurmurHash3 over the two numbers.
bool coin(std::uint64_t index, std::uint64_t draw) {
  std::uint64_t bits = index * 0x9E3779B97F4A7C15U + draw * 0xD1B54A32D192ED03U;
  bits = (bits ^ (bits >> 33U)) * 0xFF51AFD7ED558CCDU;
  bits = (bits ^ (bits >> 33U)) * 0xC4CEB9FE1A85EC53U;
  return ((bits >> 40U) & 1U) != 0;
}

}  // namespace

double rounding_unit(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return 0x1p-53;
    case DType::f32:
      return 0x1p-24;
    case DType::bf16:
      return 0x1p-8;
    default:
      return 0;
  }
}

double ulp(DType dtype, double value) {
  const double magnitude = std::max(std::abs(value), smallest_normal(dtype));
  return std::ldexp(1.0, std::ilogb(magnitude) - digits(dtype) + 1);
}

Tolerance::Tolerance(const Reference& reference, DType dtype, std::int64_t row_length)
    : unit_(rounding_unit(dtype)), tiny_(smallest_normal(dtype)), row_length_(row_length) {
  const std::vector<double>& exact = reference.exact;
  std::ostringstream fault;
  if (exact.size() * reference.naive.size() < kEnoughValues && !exact.empty()) {
    fault << exact.size() << " elements and " << reference.naive.size()
          << " naive results are too few to tell how naive code rounds; draw "
          << (kEnoughValues + exact.size() - 1) / exact.size() << " (see draws_for)";
  }
  double largest = 0;
  for (const double value : exact) {
    largest = std::isfinite(value) ? std::max(largest, std::abs(value)) : largest;
  }
  error_ = largest > 0 ? ulp(dtype, largest) / 2 : 0;
  relative_ = unit_;
  if (reference.size().size() != exact.size()) {
    fault << "sizes differ: terms " << reference.size().size() << ", exact " << exact.size();
    fault_ = fault.str();
    return;
  }
  const std::size_t length = length_of(row_length);
  for (const std::vector<double>& naive : reference.naive) {
    if (naive.size() != exact.size()) {
      fault << "sizes differ: naive " << naive.size() << ", exact " << exact.size();
      break;
    }
    for (std::size_t i = 0; i < exact.size(); ++i) {
      const double error = std::abs(naive[i] - exact[i]);
      if (!std::isfinite(error)) {
        fault << "naive is no measure: element " << i << " is " << naive[i] << ", exact "
              << exact[i];
        break;
      }
      error_ = std::max(error_, error);
    }
    // Relative to the row's own size, so that small rows are held as tightly as large ones.
    for (std::size_t begin = 0; begin < exact.size(); begin += length) {
      const double size = norm_of_row(
          begin, length, exact.size(), [&](std::size_t i) { return reference.size()[i]; });
      const double error = norm_of_row(
          begin, length, exact.size(), [&](std::size_t i) { return naive[i] - exact[i]; });
      if (size > tiny_) {
        relative_ = std::max(relative_, error / size);
      }
    }
  }
  fault_ = fault.str();
}

double Tolerance::of_element(double exact) const {
  return 2 * error_ + unit_ * std::abs(exact) + tiny_;
}

double Tolerance::of_row(double norm) const {
  return (2 * relative_ + unit_) * norm + tiny_ * static_cast<double>(length_of(row_length_));
}

testing::AssertionResult close_to(const std::vector<double>& actual,
                                  const Reference& reference,
                                  DType dtype,
                                  std::int64_t row_length) {
  const std::vector<double>& exact = reference.exact;
  const Tolerance tolerance(reference, dtype, row_length);
  if (!tolerance.fault().empty()) {
    return testing::AssertionFailure() << tolerance.fault();
  }
  if (actual.size() != exact.size()) {
    return testing::AssertionFailure()
           << "sizes differ: actual " << actual.size() << ", exact " << exact.size();
  }
  std::size_t worst = 0;
  double worst_excess = -1;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    const double excess = std::abs(actual[i] - exact[i]) / tolerance.of_element(exact[i]);
    if (std::isnan(excess)) {
      worst = i;
      worst_excess = std::numeric_limits<double>::infinity();
    } else if (excess > worst_excess) {
      worst = i;
      worst_excess = excess;
    }
  }
  const std::size_t length = length_of(row_length);
  if (worst_excess > 1) {
    return testing::AssertionFailure()
           << "element " << worst << " (row " << worst / length << ", column " << worst % length
           << ") is " << actual[worst] << ", exact " << exact[worst] << ", naive "
           << reference.naive.front()[worst] << ", error " << std::abs(actual[worst] - exact[worst])
           << ", bound " << tolerance.of_element(exact[worst]);
  }
  for (std::size_t begin = 0; begin < exact.size(); begin += length) {
    const double size = norm_of_row(
        begin, length, exact.size(), [&](std::size_t i) { return reference.size()[i]; });
    const double error = norm_of_row(
        begin, length, exact.size(), [&](std::size_t i) { return actual[i] - exact[i]; });
    if (!(error <= tolerance.of_row(size))) {
      return testing::AssertionFailure()
             << "row " << begin / length << " is off by norm " << error << ", bound "
             << tolerance.of_row(size) << " (its own norm is " << size << ")";
    }
  }
  return testing::AssertionSuccess();
}

testing::AssertionResult close_to(const std::vector<double>& actual,
                                  const std::vector<double>& exact,
                                  const std::vector<double>& naive,
                                  DType dtype,
                                  std::int64_t row_length) {
  return close_to(actual, Reference{.exact = exact, .naive = {naive}}, dtype, row_length);
}

std::vector<double> perturbed(DType dtype, std::vector<double> values, int draw) {
  if (draw == 0) {
    return values;
  }
  const double unit = rounding_unit(accumulation_dtype(dtype));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] *= coin(i, static_cast<std::uint64_t>(draw)) ? 1.0 + 2.0 * unit : 1.0 - 2.0 * unit;
  }
  return values;
}

}  // namespace memphis::test
