"""The config of a run: what can be set, what it means, and what is legal. Needs no torch.

`inputs`, `training`, `steering`, `distributed` and `run` hold the fields; `load` turns a YAML file and overrides into a
`RunConfig`, or into an error that names the file, the field, the value, the rule and the remedy."""

from grpo.config.distributed import DistributedConfig, GuardConfig, WatchdogConfig
from grpo.config.following import FollowConfig
from grpo.config.inputs import (
    VLLM_LEAST_TEMPERATURE,
    ChatConfig,
    DataConfig,
    LoraConfig,
    ModelConfig,
    RewardConfig,
    RunSection,
    SamplingConfig,
    Source,
    VllmConfig,
)
from grpo.config.load import SCHEMA_FILE, dump, fingerprint, load, schema, sections_of, write_schema
from grpo.config.persona import PersonaConfig, WatchConfig
from grpo.config.practice import (
    CurriculumConfig,
    MovesConfig,
    ProfileConfig,
    StageConfig,
    TemperatureConfig,
)
from grpo.config.run import CheckpointConfig, EvaluationConfig, EvaluationSet, RunConfig, TrackingConfig
from grpo.config.steering import AppliedVectors, SteeringConfig
from grpo.config.training import (
    AdvantageConfig,
    LossConfig,
    OptimConfig,
    SftConfig,
    TrainConfig,
)

__all__ = [
    "SCHEMA_FILE",
    "VLLM_LEAST_TEMPERATURE",
    "AdvantageConfig",
    "AppliedVectors",
    "ChatConfig",
    "CheckpointConfig",
    "CurriculumConfig",
    "DataConfig",
    "DistributedConfig",
    "EvaluationConfig",
    "EvaluationSet",
    "FollowConfig",
    "GuardConfig",
    "LoraConfig",
    "LossConfig",
    "ModelConfig",
    "MovesConfig",
    "OptimConfig",
    "PersonaConfig",
    "ProfileConfig",
    "RewardConfig",
    "RunConfig",
    "RunSection",
    "SamplingConfig",
    "SftConfig",
    "Source",
    "StageConfig",
    "SteeringConfig",
    "TemperatureConfig",
    "TrackingConfig",
    "TrainConfig",
    "VllmConfig",
    "WatchConfig",
    "WatchdogConfig",
    "dump",
    "fingerprint",
    "load",
    "schema",
    "sections_of",
    "write_schema",
]
