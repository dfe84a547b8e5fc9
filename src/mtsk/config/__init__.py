"""The configuration tree: frozen dataclasses, and their strict translation to and from plain values. No torch here."""

from mtsk.config.model import (
    AudioEncoderConfig,
    AvHubertConfig,
    CompactVideoConfig,
    ContextConfig,
    CtcConfig,
    LoraConfig,
    ModelConfig,
    ProjectorConfig,
    Untrained,
)
from mtsk.config.plain import CONVERTER, from_dict, set_values, to_dict
from mtsk.config.policy import AutoConfig, BandConfig, StepConfig
from mtsk.config.training import (
    AugmentConfig,
    CtcStageConfig,
    FeatureChangesConfig,
    JointStageConfig,
    OptimConfig,
    ReadingStageConfig,
    TrainConfig,
    VideoStageConfig,
    WarmStartStageConfig,
)

__all__ = [
    "CONVERTER",
    "AudioEncoderConfig",
    "AugmentConfig",
    "AutoConfig",
    "AvHubertConfig",
    "BandConfig",
    "CompactVideoConfig",
    "ContextConfig",
    "CtcConfig",
    "CtcStageConfig",
    "FeatureChangesConfig",
    "JointStageConfig",
    "LoraConfig",
    "ModelConfig",
    "OptimConfig",
    "ProjectorConfig",
    "ReadingStageConfig",
    "StepConfig",
    "TrainConfig",
    "Untrained",
    "VideoStageConfig",
    "WarmStartStageConfig",
    "from_dict",
    "set_values",
    "to_dict",
]
