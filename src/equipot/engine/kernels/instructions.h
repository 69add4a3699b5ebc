// The engine is compiled once for each set of instructions (recipe.txt). What depends on the set, or is to run
// fast, lives in a namespace of the set's name, so that the linker cannot take one set's function for another's.
#pragma once

#ifndef EQUIPOT_INSTRUCTIONS
#define EQUIPOT_INSTRUCTIONS native  // torch's operators, which are compiled for the processor at hand alone
#endif
