r"""Llama 3 8B as a causal router on battles: the run that ``routerjax plan`` is shown with.

    routerjax plan experiments/llama3_8b.py --set features.encoder=FOLDER --devices 8x80GB
    routerjax train experiments/llama3_8b.py --set features.encoder=FOLDER data.root=DATA --output runs/llama3_8b

FOLDER holds the model as Hugging Face has it; for a plan ``config.json`` and the tokenizer are enough. A step is of 8
prompts of 2048 tokens on 8 devices, fully sharded. The plan takes a minute on two CPU cores and is in
``results/plan.md``; the training has not been run.
"""

from routerjax.config import (
    BattleSource,
    DataConfig,
    ExperimentConfig,
    FeatureConfig,
    OptimizerConfig,
    RouterConfig,
    TrainingConfig,
)


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        data=DataConfig(battles=(BattleSource(path="lmsys/lmsys-arena-human-preference-55k"),)),
        features=FeatureConfig(
            encoder="meta-llama/Meta-Llama-3-8B",
            max_length=2048,
            encoder_attributes={"dtype": "bfloat16", "remat": True},
        ),
        router=RouterConfig(family="causal", strong="gpt-4-1106-preview", weak="mixtral-8x7b-instruct-v0.1"),
        optimizer=OptimizerConfig(learning_rate=1e-5, gradient_clip=1.0),
        training=TrainingConfig(epochs=1, batch_tokens=2048, devices="mesh"),
    )
