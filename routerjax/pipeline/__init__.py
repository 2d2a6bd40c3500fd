"""Pipeline from a configuration to a router on disk, for the command line, the demo and the experiments."""

from routerjax.pipeline.battles import load_preferences
from routerjax.pipeline.calibrate import CALIBRATION_FIGURES, calibrate_router
from routerjax.pipeline.config_file import load_config
from routerjax.pipeline.plan import Devices, describe_plan, plan_run
from routerjax.pipeline.score import score_chunks, score_table
from routerjax.pipeline.score_part import require_part
from routerjax.pipeline.train import train_router

__all__ = [
    "CALIBRATION_FIGURES",
    "Devices",
    "calibrate_router",
    "describe_plan",
    "load_config",
    "load_preferences",
    "plan_run",
    "require_part",
    "score_chunks",
    "score_table",
    "train_router",
]
