"""The configuration: a strict schema, read from YAML, with errors that name the place and the remedy."""

import importlib

_MODULES = {
    "data": ("DataConfig", "LabelsConfig", "Source", "SourceConfig", "UnitsConfig"),
    "fine_tune": ("FineTuneConfig",),
    "load": ("config_from_dict", "load_config"),
    "model": ("AllegroConfig", "AllegroDenseConfig", "CommonModelConfig", "ModelConfig", "NequIPConfig"),
    "run": ("LoggingConfig", "RunConfig", "WandbConfig"),
    "schema": ("Config", "json_schema"),
    "training": (
        *("DenoiseConfig", "EarlyStoppingConfig", "LossConfig", "ScheduleConfig", "SWAConfig"),
        *("TrainingConfig", "WeightSchedule"),
    ),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = list(_MODULE_OF)


def __getattr__(name: str):
    # Imported on first use: reading a structure takes the section `data` only.
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"equipot.config.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'equipot.config' has no attribute '{name}'")
