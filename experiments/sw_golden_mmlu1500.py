r"""Similarity-weighted ranking on the data of ``mf_golden_mmlu1500.py``; nothing is trained.

    routerjax train experiments/sw_golden_mmlu1500.py --set data.root=DATA --output runs/sw_golden_mmlu1500
    routerjax evaluate runs/sw_golden_mmlu1500 --benchmark mmlu --data-root DATA/routellm_evals \
        --exclude-smallest 1500 --output runs/sw_golden_mmlu1500_mmlu

Weight and gamma were chosen by cross-validation inside the 1,500 (``embedding_routers.py``). Every model is rated by
itself: of the ten tiers of these 89 models, the fifth holds 34 with both of the routed pair, so that tiers would tell
them apart for no prompt. The router is 25 MB, which is why it does not ship. A few seconds on two CPU cores after
encoding; MMLU APGR .62.
"""

import dataclasses

from mf_golden_mmlu1500 import GOLDEN
from mf_golden_mmlu1500 import get_config as of_factorization

from routerjax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    config = of_factorization()
    golden = dataclasses.replace(GOLDEN, weight=200.0)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, golden=(golden,)),
        router=dataclasses.replace(config.router, family="sw", attributes={"gamma": 100.0, "num_tiers": 0}),
    )
