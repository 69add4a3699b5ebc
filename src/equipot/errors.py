"""Errors a user can cause and mend. The command line prints them as one message, without a traceback."""


class EquipotError(Exception):
    """Base of every error that says what was expected, what was found, where, and what to do."""


class ConfigError(EquipotError):
    """The YAML file or a command-line override is wrong."""


class DataError(EquipotError):
    """A structure file cannot be read, or a frame in it is unusable."""


class UnknownSpeciesError(DataError):
    """A structure contains a chemical element the model does not know."""


class ModelFileError(EquipotError):
    """A checkpoint or a deployed model is missing, damaged, too new, or fails its self-check."""


class DeviceError(EquipotError):
    """The requested device does not exist on this machine."""


class TrainingError(EquipotError):
    """Training cannot start or cannot go on (occupied run directory, diverged loss)."""


class EvaluationError(EquipotError):
    """A model gives numbers that cannot be compared with anything."""


class SimulationError(EquipotError):
    """A simulation has left what is physical and was stopped."""
