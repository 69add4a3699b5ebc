// Numbers as text, without streams: these need the one C++ library that a process started with.
#pragma once

#include <cstdio>
#include <string>

namespace equipot {

inline std::string short_text(double value, int digits = 2) {
  char text[32];
  std::snprintf(text, sizeof text, "%.*g", digits, value);
  return text;
}

}  // namespace equipot
