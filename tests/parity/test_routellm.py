"""A torch module with RouteLLM's tensor names saves what we import, and loads what we export."""

from pathlib import Path

import numpy as np
import pytest

from routerjax import export, features
from routerjax.importing import import_routellm_mf
from tests.routellm import unit_rows

pytestmark = pytest.mark.parity


def test_torch_saves_what_is_imported_and_loads_what_is_exported(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_model, save_model

    def new_model(seed: int):
        torch.manual_seed(seed)
        layers = {
            "P": torch.nn.Embedding(64, 128),
            "text_proj": torch.nn.Sequential(torch.nn.Linear(1536, 128, bias=False)),
            "classifier": torch.nn.Sequential(torch.nn.Linear(128, 1, bias=False)),
        }
        return torch.nn.ModuleDict(layers)

    def logits(model, embedding: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            vectors = torch.nn.functional.normalize(model["P"].weight, dim=1)
            projected = model["text_proj"](torch.tensor(embedding))
            return model["classifier"](projected[:, None, :] * vectors)[..., 0].numpy()

    published = new_model(0)
    save_model(published, str(tmp_path / "model.safetensors"))
    router = import_routellm_mf(tmp_path)
    given = features.Embeddings(unit_rows(50), router.features.fingerprint)
    np.testing.assert_allclose(router.scores(given), logits(published, given.embedding), rtol=0, atol=1e-6)

    export.export_routellm(router, tmp_path / "out")
    loaded = new_model(1)
    load_model(loaded, str(tmp_path / "out" / "model.safetensors"), strict=True)
    for name, leaf in published.state_dict().items():
        assert torch.equal(leaf, loaded.state_dict()[name])
