"""RouteLLM's own classes, in torch: they save what we import, and load what we export."""

import json
from pathlib import Path

import numpy as np
import pytest

from routerjax import features, formats
from tests.routellm import unit_rows
from tests.routers import tiny_text_router

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
    router = formats.read(tmp_path, "routellm-mf")
    given = features.Embeddings(unit_rows(50), router.featurizer.fingerprint)
    np.testing.assert_allclose(router.scores(given), logits(published, given.embedding), rtol=0, atol=1e-6)

    formats.export(router, tmp_path / "out", "routellm")
    loaded = new_model(1)
    load_model(loaded, str(tmp_path / "out" / "model.safetensors"), strict=True)
    for name, leaf in published.state_dict().items():
        assert torch.equal(leaf, loaded.state_dict()[name])


def test_mf_model_from_pretrained_loads_the_folder(tmp_path: Path) -> None:
    import torch
    from huggingface_hub import PyTorchModelHubMixin
    from safetensors.torch import save_model

    class MFModel(torch.nn.Module, PyTorchModelHubMixin):
        """The constructor of RouteLLM's model, with its names: what from_pretrained needs is what it asks for."""

        def __init__(self, dim, num_models, text_dim, num_classes, use_proj):
            super().__init__()
            self.P = torch.nn.Embedding(num_models, dim)
            if use_proj:
                self.text_proj = torch.nn.Sequential(torch.nn.Linear(text_dim, dim, bias=False))
            else:
                assert text_dim == dim
            self.classifier = torch.nn.Sequential(torch.nn.Linear(dim, num_classes, bias=False))

    torch.manual_seed(0)
    published = MFModel(128, 64, 1536, 1, True)
    save_model(published, str(tmp_path / "model.safetensors"))
    formats.export(formats.read(tmp_path, "routellm-mf"), tmp_path / "out", "routellm")
    loaded = MFModel.from_pretrained(str(tmp_path / "out"))
    for name, leaf in published.state_dict().items():
        assert torch.equal(leaf, loaded.state_dict()[name])
    loaded.save_pretrained(str(tmp_path / "again"))
    written = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("again", "out")]
    assert written[0] == written[1]


@pytest.mark.parametrize("strong", ["big", "small"])
def test_bert_router_reads_the_strong_models_wins(tmp_path: Path, strong: str) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    weak = {"big": "small", "small": "big"}[strong]
    router = tiny_text_router(tmp_path, loss="three_labels", readout="win", strong=strong, weak=weak)
    formats.export(router, tmp_path / "out", "hf")

    # BERTRouter of RouteLLM: its constructor and calculate_strong_win_rate.
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", num_labels=3)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")

    def strong_win_rate(prompt: str) -> float:
        inputs = tokenizer(prompt, return_tensors="pt", padding=True, truncation=True)
        with torch.no_grad():
            logits = model(**inputs).logits.numpy()[0]
        exp_scores = np.exp(logits - np.max(logits))
        softmax_scores = exp_scores / np.sum(exp_scores)
        return 1 - np.sum(softmax_scores[-2:])

    prompts = ["prove it", "a poem", "primes " * 100]
    win_rates = [strong_win_rate(prompt) for prompt in prompts]
    np.testing.assert_allclose(win_rates, router.win_prob(prompts), rtol=0, atol=1e-5)
    assert np.abs(router.outcome_prob(prompts)[:, 2] - win_rates).min() > 1e-3
