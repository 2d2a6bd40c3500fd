r"""Matrix factorisation with Rao and Kupper's loss, on the data of ``mf_golden_mmlu1500.py``: the router that ships.

    routerjax train experiments/mf_rao_kupper.py --set data.root=DATA --output runs/mf_rao_kupper
    routerjax evaluate runs/mf_rao_kupper --benchmark mmlu --data-root DATA/routellm_evals \
        --exclude-smallest 1500 --output runs/mf_rao_kupper_mmlu
    routerjax evaluate runs/mf_rao_kupper --benchmark gsm8k mt_bench --data-root DATA/routellm_evals \
        --output runs/mf_rao_kupper_others

Its win probability counts half of the ties, so that prompts are ordered by expected gain. The loss was chosen by
cross-validation inside the 1,500 (``embedding_routers.py``). About 10 seconds on two CPU cores after encoding; MMLU
APGR .61.
"""

import dataclasses

from mf_golden_mmlu1500 import get_config as with_bradley_terry

from routerjax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    config = with_bradley_terry()
    return dataclasses.replace(config, router=dataclasses.replace(config.router, loss="rao_kupper"))
