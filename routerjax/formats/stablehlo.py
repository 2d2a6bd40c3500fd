"""Serving bundles: what is in the folder, and the proof that it works."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from routerjax.errors import VerificationError
from routerjax.features import CHARACTERS_PER_TOKEN, Embeddings, TextFunction
from routerjax.formats.format import WritableFormat
from routerjax.formats.golden import golden_outputs
from routerjax.formats.scoring_functions import PLATFORMS, export_from_embedding, export_from_token_ids, flatten
from routerjax.pretrained import tensor_bytes
from routerjax.router import Router
from routerjax.sealing import seal

FORMAT = "routerjax-stablehlo-6"
TOLERANCE = {"from_embedding": 1e-6, "from_token_ids": 1e-5, "from_text": 1e-5}
"""Largest differences between the bundle and the router that are accepted, of what is at most 1."""
BFLOAT16_TOLERANCE = 2e-2
"""Their least value for a router in bfloat16, whose numbers have 8 bits: batches of another size round otherwise."""
LOADER = Path(__file__).with_name("load_bundle.py")


class StableHlo(WritableFormat):
    """A bundle that runs wherever jax does, without routerjax.

    The folder holds the scoring function from embeddings and, for routers of an encoder, from token ids (encoder and
    router as one function; of a router that reads text itself this one alone), as StableHLO for cpu, cuda and tpu with
    symbolic batch and length; the weights; the tokenizer; golden prompts with their outputs; ``load.py``; and
    ``bundle.json`` with the hashes of all of these and of its own content.
    """

    name = "stablehlo"

    def write(self, router: Router, folder: Path, query: Sequence[str] | Embeddings) -> None:
        """Write the bundle; the outputs for the query are its golden ones."""
        files: dict[str, bytes] = {"router.safetensors": tensor_bytes(flatten(router.variables))}
        golden: dict[str, np.ndarray] = {}
        text: dict[str, object] = {"max_length": None, "golden_prompts": []}
        if not isinstance(query, Embeddings):
            reading = cast(TextFunction, router.featurizer.text_function())
            tokenizer = reading.tokenizer
            text = {
                "max_length": tokenizer.max_length,
                "truncation": tokenizer.truncation,
                "characters_per_token": CHARACTERS_PER_TOKEN,
                "prefix": tokenizer.prefix,
                "strips": tokenizer.template.strips,
                "special_tokens": [ids.tolist() for ids in tokenizer.special_tokens],
                "golden_prompts": list(query),
            }
            golden |= tokenizer.pad(tokenizer.token_ids(query))
            files["tokenizer.json"] = tokenizer.tokenizer_json
            files["from_token_ids.stablehlo"] = bytes(export_from_token_ids(router, reading).serialize())
            if reading.variables:
                files["encoder.safetensors"] = tensor_bytes(flatten(reading.variables))
            if "embedding" in router.featurizer.example():
                query = Embeddings(router.featurizer.query(query)["embedding"], router.featurizer.fingerprint)
        if isinstance(query, Embeddings):
            golden["embedding"] = query.embedding
            files["from_embedding.stablehlo"] = bytes(export_from_embedding(router).serialize())
        is_bfloat16 = any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(router.variables))
        least = BFLOAT16_TOLERANCE if is_bfloat16 else 0.0
        tolerance = {name: max(value, least) for name, value in TOLERANCE.items()}
        outputs = golden_outputs(router, query, max(tolerance.values()))
        files["golden.safetensors"] = tensor_bytes({**golden, **outputs})
        files["load.py"] = LOADER.read_bytes()
        description = {
            "format": FORMAT,
            "jax_version": jax.__version__,
            "platforms": list(PLATFORMS),
            "family": router.family,
            "models": list(router.models),
            "policy": router.policy.to_dict(),
            "outputs": sorted(outputs),
            "featurizer": router.featurizer.to_dict(),
            **text,
            "tolerance": tolerance,
            "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
            "provenance": dict(router.provenance),
        }
        for name, content in files.items():
            (folder / name).write_bytes(content)
        sealed = json.dumps(seal(description), indent=2)  # in ASCII, which holds half an emoji in a prompt too
        (folder / "bundle.json").write_text(sealed + "\n", encoding="utf-8")

    def verify(self, router: Router, folder: Path, query: Sequence[str] | Embeddings) -> dict[str, float]:
        """Load and compare in a fresh process, isolated from this one's path and modules."""
        del router, query  # the bundle has its own
        command = [sys.executable, "-I", str(folder / "load.py"), "--verify"]
        # Without its filtered tracebacks, JAX ends an error with its message.
        environment = {**os.environ, "JAX_TRACEBACK_FILTERING": "off"}
        finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if finished.returncode != 0:
            raise VerificationError((finished.stderr.strip().splitlines() or ["no message"])[-1])
        return json.loads(finished.stdout)["largest_difference"]

    def usage(self, router: Router, path: Path) -> str:
        """The command that scores a prompt."""
        return f'try: python {path / "load.py"} "A prompt"'
