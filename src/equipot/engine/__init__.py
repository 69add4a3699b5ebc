"""Deployed models evaluated without torch: a C++ library with a C interface.

``include/equipot.h`` is the interface, ``csrc`` the evaluation of programs, ``kernels`` what it shares with
the operators that torch trains with. ``program.py`` is how models write themselves down, ``library.py`` the
library in Python.
"""
