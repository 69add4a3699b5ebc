"""All parts of the check, in the order of what a person with a GPU for a quarter of an hour wants to know."""

import ceilings
import lammps_part
import launches
import layers
import models
import operators
import peers
import steps
import training
from plan import Part

PARTS = [
    Part("ceilings", "Ceilings of the card", 20, ceilings.cases),
    Part("operators", "Operators against plain torch on a CPU", 90, operators.cases),
    Part("models", "Models, training, neighbor lists, deployed files against a CPU", 75, models.cases),
    Part("launches", "Launches and waits per evaluation", 30, launches.cases),
    Part("steps", "Steps: evaluations and ASE, small to large", 90, steps.cases),
    Part("edges", "Numbers of edges that change", 25, steps.changing_cases),
    Part("layers", "Convolutions by layer and pass", 45, layers.cases),
    Part("training", "A training step of molecules of 27 atoms", 20, training.cases),
    Part("peers", "Beside NequIP", 45, peers.cases, longest=150),  # one may compile itself
    Part("lammps", "LAMMPS", 40, lammps_part.cases),
]
