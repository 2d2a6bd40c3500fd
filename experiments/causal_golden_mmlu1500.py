r"""Gemma 3 270M with low-rank adapters on the golden labels of 1,500 MMLU questions.

    routerjax train experiments/causal_golden_mmlu1500.py --set data.root=DATA features.encoder=GEMMA \
        --output runs/causal_golden_mmlu1500
    routerjax evaluate runs/causal_golden_mmlu1500 --benchmark mmlu --data-root DATA/routellm_evals \
        --exclude-smallest 1500 --output runs/causal_golden_mmlu1500_mmlu

DATA as in ``mf_golden.py``; GEMMA is a folder of ``google/gemma-3-270m`` in Hugging Face's format. The 1,500 are those
of ``mf_golden_mmlu1500.py``, and a tenth of their prompts is held out. The head is linear on the last token.
"""

import dataclasses

import mf_golden_mmlu1500

from routerjax.config import ExperimentConfig, FeatureConfig, OptimizerConfig, RouterConfig, TrainingConfig


def get_config() -> ExperimentConfig:
    like = mf_golden_mmlu1500.get_config()
    return dataclasses.replace(
        like,
        data=dataclasses.replace(like.data, battles=(), validation_fraction=0.1),
        features=FeatureConfig(
            encoder="google/gemma-3-270m",
            max_length=256,
            truncation="left",
            encoder_attributes={"lora_rank": 16, "lora_alpha": 16.0},
        ),
        router=RouterConfig(family="causal", strong=like.router.strong, weak=like.router.weak),
        optimizer=OptimizerConfig(learning_rate=2e-4, weight_decay=0.0, gradient_clip=1.0),
        training=TrainingConfig(epochs=2, batch_tokens=2048),
    )
