"""Metrics of routers: cost-quality curves, calibration, and how far a figure can be trusted.

Every function takes and returns float64 numpy.
"""

from routerjax.metrics.bootstrap import BootstrapSamples as BootstrapSamples
from routerjax.metrics.bootstrap import bootstrap as bootstrap
from routerjax.metrics.curve import Curve as Curve
from routerjax.metrics.curve import Ranking as Ranking
from routerjax.metrics.curve import aiq as aiq
from routerjax.metrics.curve import apgr as apgr
from routerjax.metrics.curve import apgr_binned as apgr_binned
from routerjax.metrics.curve import cost_quality_curve as cost_quality_curve
from routerjax.metrics.curve import cost_saving as cost_saving
from routerjax.metrics.curve import cpt as cpt
from routerjax.metrics.curve import rank_prompts as rank_prompts
from routerjax.metrics.probability import Reliability as Reliability
from routerjax.metrics.probability import brier as brier
from routerjax.metrics.probability import calibration_columns as calibration_columns
from routerjax.metrics.probability import expected_calibration_error as expected_calibration_error
from routerjax.metrics.probability import log_loss as log_loss
from routerjax.metrics.probability import reliability as reliability
from routerjax.metrics.resampling import RESAMPLES as RESAMPLES
from routerjax.metrics.resampling import Figure as Figure
from routerjax.metrics.resampling import Interval as Interval
from routerjax.metrics.resampling import Resamples as Resamples
from routerjax.metrics.resampling import bootstrap_means as bootstrap_means
from routerjax.metrics.resampling import percentile_interval as percentile_interval
