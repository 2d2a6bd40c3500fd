"""RouteLLM's causal classifier: a language model whose last five tokens are ratings, read and written."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from routerjax.errors import InputError
from routerjax.features import Embeddings, TokenFeaturizer
from routerjax.formats.decoder_folder import (
    language_model_files,
    load_decoder_tokens,
    load_language_model,
    merged,
    unless_whole,
    write_weights,
)
from routerjax.formats.format import ReadableFormat, WritableFormat
from routerjax.formats.golden import compare_scores
from routerjax.formats.hf_settings import is_language_model, warn_of_threshold
from routerjax.formats.tokenizer_folder import json_bytes
from routerjax.likelihoods import FiveRatings
from routerjax.models import CausalRouter
from routerjax.policies import Threshold
from routerjax.pretrained import ChatTemplate, locate, parse_template, weights_sha256
from routerjax.pretrained.routellm import STRONG, WEAK
from routerjax.router import Router

RATINGS = tuple(f"[[{rating}]]" for rating in range(1, 6))
MAX_LENGTH = 2048
"""Tokens that its training kept."""


@dataclass(frozen=True, kw_only=True)
class CausalClassifier(ReadableFormat, WritableFormat):
    """RouteLLM's causal classifier: a ``*ForCausalLM`` whose last five tokens are ratings of the weak model's answer.

    ``P(strong wins) = 1 - P([[4]]) - P([[5]])``, a softmax over the five logits after the last token. Its texts are a
    system turn and a user turn of Llama 3, with the BOS token before them; a long prompt loses its beginning, and
    never the turns around it, where RouteLLM's code cuts the whole text. What was imported and not trained gives back
    the tensors bit for bit.

    Attributes:
        system: the system turn that the model was trained with.
        user: the user turn, with ``{prompt}`` in it.
        assistant_header: end with the header of the assistant's turn, for a model that was trained with it: else its
            rating is not the next token.
    """

    name = "routellm-causal"
    compared = "scores"

    system: str | None = None
    user: str | None = None
    assistant_header: bool = False

    def read(self, source: str | os.PathLike[str], *, strong: str | None = None, weak: str | None = None) -> Router:
        """Read a classifier of one pair.

        Args:
            source: a folder in Hugging Face's format; or a Hugging Face name (``routellm/causal_llm_gpt4_augmented``).
            strong: name of the strong model; default RouteLLM's, gpt-4-1106-preview. The classifier knows one pair
                alone: these two the other way round swap it, other names rename it.
            weak: likewise; default mixtral-8x7b-instruct-v0.1.

        Raises:
            InputError: no such source, damaged, no language model, or the turns are not given.

        Reference:
            ``CausalLLMRouter`` in ``routellm/routers/routers.py`` of RouteLLM's code.
        """
        if self.system is None or self.user is None:
            raise InputError(
                "routellm-causal needs the turns that the model was trained with, which its files do not say: give "
                "--set system=TEXT user=TEXT, the latter with {prompt} in it"
            )
        featurizer = load_decoder_tokens(source)
        turn = parse_template(self.user)
        header = _header("assistant") if self.assistant_header else ""
        template = ChatTemplate(
            prefix=f"{_begin(featurizer)}{_header('system')}{self.system}<|eot_id|>{_header('user')}{turn.prefix}",
            suffix=f"{turn.suffix}<|eot_id|>{header}",
        )
        return _load(source, dataclasses.replace(featurizer, template=template), strong or STRONG, weak or WEAK)

    def unmet(self, router: Router) -> Iterator[str]:
        """Refuse all but ratings of the weak model as the tokens of a language model."""
        module = router.module
        if not isinstance(module, CausalRouter) or module.head == "linear":
            got = f"head={module.head!r}" if isinstance(module, CausalRouter) else f"one of {router.family}"
            yield f"routellm-causal holds a causal router with head='tokens', got {got}"
            if not isinstance(module, CausalRouter):
                return
        if not isinstance(router.likelihood, FiveRatings) or not router.has_pair or router.strong != router.models[0]:
            yield (
                f"routellm-causal holds ratings of the weak model (the loss {FiveRatings.name}, the strong model "
                f"first), got the loss {router.likelihood.name}"
            )
        elif router.likelihood.readout != "win":
            yield f"RouteLLM counts a tie as no win: set router.readout=win, got {router.likelihood.readout}"
        if "calibration" in router.variables:
            yield "RouteLLM's format has no place for a calibration: export the router without it"
        if cast(TokenFeaturizer, router.featurizer).truncation != "left":
            yield "RouteLLM's classifier keeps the end of a long prompt: set features.truncation=left"
        yield from unless_whole(router)

    def write(self, router: Router, folder: Path, query: Sequence[str] | Embeddings) -> None:
        """Write the configuration, the weights and the tokenizer's files."""
        del query
        warn_of_threshold(router, self.name)
        config, tensors, files = language_model_files(merged(router), RATINGS)
        write_weights(folder, tensors)
        for name, content in {**files, "config.json": json_bytes(config)}.items():
            (folder / name).write_bytes(content)

    def verify(self, router: Router, folder: Path, query: Sequence[str] | Embeddings) -> dict[str, float]:
        """Read the folder with the router's template, and compare scores."""
        read = load_decoder_tokens(folder)
        ours = cast(TokenFeaturizer, router.featurizer)
        featurizer = dataclasses.replace(read, template=ours.template)
        written = _load(folder, featurizer, router.strong, router.weak, ours.max_length)
        return {"model.safetensors": compare_scores(router, written, cast(Sequence[str], query))}

    def usage(self, router: Router, path: Path) -> str:
        """The section of RouteLLM's configuration that loads it."""
        text = cast(TokenFeaturizer, router.featurizer).template.render("PROMPT")
        return f"in RouteLLM's config: causal_llm: {{checkpoint_path: {path}}}; it was trained on texts {text!r}"


def _load(
    source: str | os.PathLike[str], featurizer: TokenFeaturizer, strong: str, weak: str, max_length: int = MAX_LENGTH
) -> Router:
    folder = locate(source)
    if not is_language_model(folder):
        raise InputError(f"{source} must be a language model (architectures in config.json: ...ForCausalLM)")
    limit = min(max_length, featurizer.encoder.max_length)
    featurizer = dataclasses.replace(featurizer, max_length=limit, truncation="left")
    module, featurizer, params = load_language_model(folder, featurizer, len(RATINGS))
    # Names of their own only rename the columns; the other way round, the two that it was released for are swapped.
    first, last = (STRONG, WEAK) if {strong, weak} == {STRONG, WEAK} else (strong, weak)
    return Router(
        module=module,
        featurizer=featurizer,
        models=(first, last),
        policy=Threshold(first, last),
        likelihood=FiveRatings(readout="win"),
        variables={"params": params},
        provenance={"sha256": weights_sha256(folder)},
    ).with_pair(strong, weak)


def _header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


def _begin(featurizer: TokenFeaturizer) -> str:
    """The BOS token of a tokenizer."""
    token = featurizer.tokenizer_config.get("bos_token")
    token = token.get("content") if isinstance(token, dict) else token
    if not isinstance(token, str):
        raise InputError(f"{featurizer.source}: tokenizer_config.json must name a bos_token, with which texts begin")
    return token
