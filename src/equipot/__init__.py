"""equipot: train, deploy and run equivariant interatomic potentials."""

__version__ = "0.1.0"
__all__ = ["EquipotCalculator", "__version__"]


def __getattr__(name: str):
    # Imported on first use: the command line's help must not wait for torch and ASE.
    if name == "EquipotCalculator":
        from equipot.integrations.ase import EquipotCalculator

        return EquipotCalculator
    raise AttributeError(f"module 'equipot' has no attribute '{name}'")
