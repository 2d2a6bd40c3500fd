"""Bundles: folders that run without routerjax, in one layout whatever computes them, and the proof that they work.

A bundle holds its functions, ``routerjax_runtime.py`` (a copy of :mod:`routerjax.runtime`), the tokenizer, golden
prompts with their tokens and outputs, a model card, and ``bundle.json``, which has the hashes of all of these and of
its own content. A format is a :class:`BundleFormat` that says what the functions are.
"""

from __future__ import annotations

import abc
import hashlib
import importlib.metadata
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, cast

import numpy as np

from routerjax import runtime
from routerjax.errors import VerificationError
from routerjax.features import CHARACTERS_PER_TOKEN, Embeddings, TextFunction
from routerjax.formats.card import model_card
from routerjax.formats.format import WritableFormat
from routerjax.formats.golden import golden_models, golden_scores
from routerjax.router import Router
from routerjax.sealing import seal

CARD = "README.md"
OUTPUTS = ("model", "scores", "win_prob")
HEADER = '# /// script\n# requires-python = ">=3.11"\n# dependencies = {}\n# ///\n'


@dataclass(frozen=True)
class Contents:
    """Functions of a bundle, as its format has them.

    Attributes:
        files: name -> content.
        functions: ``from_embedding`` or ``from_token_ids``, or both -> what the runtime needs to run them.
        tolerance: of each function, and of ``from_text``: the largest difference that is accepted of win probabilities,
            and of scores in units of the largest.
        needs: versions, by name.
        outputs: of the functions; default all that the router has.
        settings: further entries of ``bundle.json``.
        notes: lines of the model card.
    """

    files: Mapping[str, bytes]
    functions: Mapping[str, Mapping[str, object]]
    tolerance: Mapping[str, float]
    needs: Mapping[str, object] = field(default_factory=dict)
    outputs: tuple[str, ...] = OUTPUTS
    settings: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class BundleFormat(WritableFormat):
    """A bundle, see :mod:`routerjax.formats.bundle`.

    Attributes:
        licence: of the router, as the bundle and its card state it.
    """

    compared = "win probabilities and scores"
    requirements: ClassVar[tuple[str, ...]]
    """Packages that its runtime needs."""
    reads_text: ClassVar[bool] = True
    """If it holds the way from text."""

    licence: str | None = None

    @abc.abstractmethod
    def contents(self, router: Router, text: TextFunction | None, golden: Mapping[str, np.ndarray]) -> Contents:
        """Make the functions.

        Args:
            router: to export.
            text: the way from text to the query; None for a bundle that reads none.
            golden: inputs of the functions, and the router's ``scores`` and ``win_prob`` for them.
        """

    def write(self, router: Router, folder: Path, query: Sequence[str] | Embeddings) -> None:
        """Write the bundle; the outputs for the query are its golden ones."""
        is_text = not isinstance(query, Embeddings)
        text = cast(TextFunction, router.featurizer.text_function()) if is_text and self.reads_text else None
        files: dict[str, bytes] = {}
        golden: dict[str, np.ndarray] = {}
        prompts = list(cast(Sequence[str], query)) if is_text else []
        if text is not None:
            golden |= text.tokenizer.pad(text.tokenizer.token_ids(prompts))
            files[runtime.TOKENIZER] = text.tokenizer.tokenizer_json
        if is_text and "embedding" in router.featurizer.example():
            query = Embeddings(router.featurizer.query(prompts)["embedding"], router.featurizer.fingerprint)
        if isinstance(query, Embeddings):
            golden["embedding"] = query.embedding
        golden |= golden_scores(router, query)
        contents = self.contents(router, text, golden)
        if router.policy.chooses:
            golden["model"] = golden_models(router, query, max(contents.tolerance.values()))
        outputs = sorted({*OUTPUTS} & set(golden) & set(contents.outputs))
        description = {
            "format": self.name,
            "schema": runtime.SCHEMA,
            "routerjax_version": importlib.metadata.version("routerjax"),
            "needs": dict(contents.needs),
            "licence": self.licence,
            "family": router.family,
            "models": list(router.models),
            "score_columns": _score_columns(router),
            "policy": router.policy.to_dict(),
            "outputs": outputs,
            "functions": contents.functions,
            "featurizer": router.featurizer.to_dict(),
            "fingerprint": router.featurizer.fingerprint,
            "text": None if text is None else _text(text),
            "golden_prompts": prompts,
            "tolerance": dict(contents.tolerance),
            **contents.settings,
        }
        script = HEADER.format(json.dumps(list(self.requirements))) + Path(runtime.__file__).read_text(encoding="utf-8")
        files |= {
            **contents.files,
            runtime.GOLDEN: _npz({name: golden[name] for name in golden if name not in OUTPUTS or name in outputs}),
            runtime.RUNTIME: script.encode(),
            CARD: model_card(description, router.provenance, contents.notes, self.requirements).encode(),
        }
        description |= {
            "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
            "provenance": dict(router.provenance),
        }
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        sealed = json.dumps(seal(description), indent=2)  # in ASCII, which holds half an emoji in a prompt too
        (folder / runtime.DESCRIPTION).write_text(sealed + "\n", encoding="utf-8")

    def verify(self, router: Router, folder: Path, query: Sequence[str] | Embeddings) -> dict[str, float]:
        """Load and compare in a fresh process, isolated from this one's path and modules."""
        del router, query  # the bundle has its own
        command = [sys.executable, "-I", str(folder / runtime.RUNTIME), "--verify"]
        # Without its filtered tracebacks, JAX ends an error with its message.
        environment = {**os.environ, "JAX_TRACEBACK_FILTERING": "off", "PYTHONDONTWRITEBYTECODE": "1"}
        finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if finished.returncode != 0:
            raise VerificationError((finished.stderr.strip().splitlines() or ["no message"])[-1])
        return json.loads(finished.stdout)["largest_difference"]

    def usage(self, router: Router, path: Path) -> str:
        """The command that scores a prompt."""
        prompt = ' "A prompt"' if router.featurizer.text_function() is not None and self.reads_text else " --verify"
        return f"try: python {path / runtime.RUNTIME}{prompt}"


def _score_columns(router: Router) -> list[str]:
    is_of_outcomes = router.likelihood.is_of_one_pair
    return list(router.likelihood.output_names(router.models) if is_of_outcomes else router.models)


def _text(text: TextFunction) -> dict[str, object]:
    """Settings by which the runtime reads text as the router does."""
    tokenizer = text.tokenizer
    return {
        "max_length": tokenizer.max_length,
        "lengths": list(tokenizer.lengths),
        "truncation": tokenizer.truncation,
        "characters_per_token": CHARACTERS_PER_TOKEN,
        "prefix": tokenizer.prefix,
        "strips": tokenizer.template.strips,
        "special_tokens": [ids.tolist() for ids in tokenizer.special_tokens],
        "largest_id": tokenizer.largest_id,
        "fingerprint": tokenizer.fingerprint,
    }


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    return stream.getvalue()
