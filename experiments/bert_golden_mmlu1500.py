r"""MiniLM fine-tuned as a BERT classifier on 79,424 golden battles and the golden labels of 1,500 MMLU questions.

    routerjax train experiments/bert_golden_mmlu1500.py --set data.root=DATA --output runs/bert_golden_mmlu1500
    routerjax evaluate runs/bert_golden_mmlu1500 runs/mf_golden_mmlu1500 --benchmark mmlu \
        --data-root DATA/routellm_evals --exclude-smallest 1500 --output runs/bert_golden_mmlu1500_mmlu
    routerjax evaluate runs/bert_golden_mmlu1500 runs/mf_golden_mmlu1500 --benchmark gsm8k mt_bench \
        --data-root DATA/routellm_evals --output runs/bert_golden_mmlu1500_others

DATA as in ``mf_golden.py``; the battles, their weights and the questions left out of the test are those of
``mf_golden_mmlu1500.py``. A tenth of the prompts is held out, and the epoch with the lowest log-loss on it is kept (the
first). The head is linear on the mean of the hidden states; ``--set router.attributes={} optimizer.learning_rate=5e-4
optimizer.encoder_rate=0.2 training.epochs=3`` trains the architecture's own head instead, which alone can be exported
to Hugging Face. Half an hour an epoch on two CPU cores, a quarter for MMLU's test. MMLU APGR .64 (.59 with the
architecture's head, measured before); see ``results/bert_golden_mmlu1500.md``.
"""

import dataclasses

import mf_golden_mmlu1500

from routerjax.config import ExperimentConfig, FeatureConfig, OptimizerConfig, RouterConfig, TrainingConfig


def get_config() -> ExperimentConfig:
    like = mf_golden_mmlu1500.get_config()
    return dataclasses.replace(
        like,
        data=dataclasses.replace(like.data, validation_fraction=0.1),
        features=FeatureConfig(encoder_attributes={"attention_dropout_rate": 0.0}),
        router=RouterConfig(
            family="bert", attributes={"head": "mean"}, strong=like.router.strong, weak=like.router.weak
        ),
        optimizer=OptimizerConfig(learning_rate=1e-4, weight_decay=0.01, gradient_clip=1.0),
        training=TrainingConfig(epochs=2, batch_tokens=4096),
    )
