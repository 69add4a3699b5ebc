// Code that is compiled here and is also text, for the compiler of another device.
#pragma once

#define EQUIPOT_DECLARE_AND_QUOTE(name, ...) \
  __VA_ARGS__                                \
  constexpr const char* name = #__VA_ARGS__;
