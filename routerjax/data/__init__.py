"""Preference data and benchmarks: from public formats to columns, and from columns to what training takes."""

from routerjax.data.aligned import read_aligned_battles
from routerjax.data.batch import EmbeddedPrompts, to_batch
from routerjax.data.benchmarks import (
    Benchmark,
    golden_preferences,
    read_benchmark_table,
    smallest_by_hash,
    write_benchmark_table,
)
from routerjax.data.contamination import (
    Contamination,
    NearestPrompt,
    contaminated,
    dataset_similarity,
    max_similarity,
    normalized_text,
)
from routerjax.data.embedded import EmbeddedBatches
from routerjax.data.loader import TokenBatches
from routerjax.data.preferences import Preferences, model_index
from routerjax.data.readers import read_preferences, source_revision, write_preferences
from routerjax.data.routellm_evals import ROUTELLM_STRONG, ROUTELLM_WEAK, load_benchmark
from routerjax.data.simulation import SimulatedArena, simulate_arena
from routerjax.data.transformations import (
    concatenate,
    merge_both_orders,
    require_both_outcomes,
    split_by_prompt,
    swap_sides,
)

__all__ = [
    "ROUTELLM_STRONG",
    "ROUTELLM_WEAK",
    "Benchmark",
    "Contamination",
    "EmbeddedBatches",
    "EmbeddedPrompts",
    "NearestPrompt",
    "Preferences",
    "SimulatedArena",
    "TokenBatches",
    "concatenate",
    "contaminated",
    "dataset_similarity",
    "golden_preferences",
    "load_benchmark",
    "max_similarity",
    "merge_both_orders",
    "model_index",
    "normalized_text",
    "read_aligned_battles",
    "read_benchmark_table",
    "read_preferences",
    "require_both_outcomes",
    "simulate_arena",
    "smallest_by_hash",
    "source_revision",
    "split_by_prompt",
    "swap_sides",
    "to_batch",
    "write_benchmark_table",
    "write_preferences",
]
