r"""Matrix factorisation on 79,424 golden battles, without those marked as overlapping the benchmarks.

    routerjax train experiments/mf_golden.py --set data.root=DATA --output runs/mf_golden
    routerjax evaluate runs/mf_golden --benchmark mmlu gsm8k mt_bench --data-root DATA/routellm_evals \
        --output runs/mf_golden_evaluated

The mark is by text, and misses paraphrases: 193 of GSM8K's 1,307 questions are among the training prompts with an
instruction appended (answered by other models than the routed pair), and 46 MMLU questions have a training prompt at
cosine 0.95 or more.

DATA holds ``preferences/golden_derived.parquet`` (columns prompt, model_a, model_b, winner, overlaps_routellm_eval) and
``routellm_evals``, RouteLLM's ``routellm/evals`` folder.
"""

from routerjax.config import (
    BattleSource,
    DataConfig,
    ExperimentConfig,
    OptimizerConfig,
    RouterConfig,
    TrainingConfig,
)


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        data=DataConfig(
            battles=(BattleSource(path="preferences/golden_derived.parquet", drop_where=("overlaps_routellm_eval",)),),
        ),
        router=RouterConfig(
            family="mf",
            attributes={"model_dim": 128, "noise_std": 0.1},
            strong="gpt-4-1106-preview",
            weak="Mixtral-8x7B-Instruct-v0.1",
        ),
        optimizer=OptimizerConfig(learning_rate=3e-4, weight_decay=1e-5),
        training=TrainingConfig(epochs=10, batch_size=64),
    )
