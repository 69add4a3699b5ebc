"""equipot: train, deploy and run equivariant interatomic potentials."""

import os

# torch reads this at its first allocation: large tensors then come in huge pages. Without it a training step
# takes 10 to 25 % longer (measured), as the system hands over and clears every small page anew.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
__all__ = ["EquipotCalculator", "EquipotPredictor", "__version__", "keep_memory"]


def __getattr__(name: str):
    # Imported on first use: the command line's help must not wait for torch and ASE.
    if name == "EquipotCalculator":
        from equipot.integrations.ase import EquipotCalculator

        return EquipotCalculator
    if name == "EquipotPredictor":
        from equipot.integrations.predictor import EquipotPredictor

        return EquipotPredictor
    if name == "keep_memory":
        from equipot.machine import keep_memory

        return keep_memory
    raise AttributeError(f"module 'equipot' has no attribute '{name}'")
