r"""Matrix factorisation on 79,424 golden battles and the golden labels of 1,500 MMLU questions.

    routerjax train experiments/mf_golden_mmlu1500.py --set data.root=DATA --output runs/mf_golden_mmlu1500
    routerjax evaluate runs/mf_golden_mmlu1500 --benchmark mmlu --data-root DATA/routellm_evals \
        --exclude-smallest 1500 --output runs/mf_golden_mmlu1500_mmlu
    routerjax evaluate runs/mf_golden_mmlu1500 --benchmark gsm8k mt_bench --data-root DATA/routellm_evals \
        --output runs/mf_golden_mmlu1500_others

DATA as in ``mf_golden.py``. The 1,500 are the questions with the smallest SHA-256; MMLU is evaluated on the others.
The weight and the noise were chosen by 5-fold cross-validation inside the 1,500
(``embedding_routers.py``), and nothing is held out for validation.
"""

from routerjax.config import (
    BattleSource,
    DataConfig,
    ExperimentConfig,
    GoldenSource,
    OptimizerConfig,
    RouterConfig,
    TrainingConfig,
)

STRONG, WEAK = "gpt-4-1106-preview", "Mixtral-8x7B-Instruct-v0.1"
GOLDEN = GoldenSource(benchmark="mmlu", root="routellm_evals", strong=STRONG, weak=WEAK, num_prompts=1500, weight=60.0)


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        data=DataConfig(
            battles=(BattleSource(path="preferences/golden_derived.parquet", drop_where=("overlaps_routellm_eval",)),),
            golden=(GOLDEN,),
            validation_fraction=0.0,
        ),
        router=RouterConfig(family="mf", attributes={"model_dim": 128, "noise_std": 0.1}, strong=STRONG, weak=WEAK),
        optimizer=OptimizerConfig(learning_rate=3e-4, weight_decay=1e-5),
        training=TrainingConfig(epochs=10, batch_size=64),
    )
