"""The configuration: a strict schema, read from YAML, with errors that name the place and the remedy."""

from equipot.config.data import DataConfig, LabelsConfig, Source, SourceConfig, UnitsConfig
from equipot.config.fine_tune import FineTuneConfig
from equipot.config.load import config_from_dict, load_config
from equipot.config.model import AllegroConfig, CommonModelConfig, ModelConfig, NequIPConfig
from equipot.config.run import LoggingConfig, RunConfig, WandbConfig
from equipot.config.schema import Config, json_schema
from equipot.config.training import (
    EarlyStoppingConfig,
    LossConfig,
    ScheduleConfig,
    SWAConfig,
    TrainingConfig,
    WeightSchedule,
)
