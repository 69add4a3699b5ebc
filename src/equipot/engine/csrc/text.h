// Numbers as text, without streams: these need the one C++ library that a process started with.
#pragma once

#include <cstdio>
#include <string>

namespace equipot {

inline std::string short_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2g", value);
  return text;
}

}  // namespace equipot
