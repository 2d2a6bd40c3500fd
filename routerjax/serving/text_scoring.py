"""Outputs of a router for texts, whatever computes them; all that is compiled is compiled before the first request."""

from __future__ import annotations

import abc
import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypedDict, Unpack, cast

import jax
import numpy as np

from routerjax import runtime
from routerjax.errors import InputError, choose
from routerjax.features import TextFunction
from routerjax.policies import Policy, Threshold, read_policy
from routerjax.router import Router, load_router, router_folder, warn_of_losses
from routerjax.runtime import BundleError, NoScoreError
from routerjax.typing import Array, Query, Variables

# Rows of a batch that is no single text. From this many texts on they are computed together, padded to that: fewer take
# less time one after the other. A batch has no more tokens than these.
ROWS, FEWEST_TOGETHER = 4, 3
MOST_TOKENS = 4096
MOST_THREADS = 256
OF_ITS_OWN = "{} is computed by jax, which has its own threads: leave threads out"


class TextOutputs(NamedTuple):
    """Outputs of a router for one text.

    Attributes:
        win_prob: of the policy's pair; None of a policy without one.
        model: that a policy without a pair chooses; None of one with a pair.
        scores: of all models by name, in nats; None of a policy with a pair.
    """

    win_prob: float | None
    model: str | None
    scores: Mapping[str, float] | None


class Choice(NamedTuple):
    """Model that answers a prompt, and why.

    Attributes:
        model: of the router.
        win_prob: P(the strong model's answer is better), in [0, 1]; None of a policy without a pair.
        threshold: that it was compared with; None of a policy without a pair.
    """

    model: str
    win_prob: float | None
    threshold: float | None


class TextScorer(abc.ABC):
    """Router that scores texts.

    Args:
        policy: that chooses among the models.
        models: of the router.
        about: family, and what computes it, in a few words.

    Attributes:
        policy, models, about: as given.
        largest_batch: most texts of one call.
    """

    largest_batch: ClassVar[int]

    def __init__(self, policy: Policy, models: tuple[str, ...], about: str) -> None:
        self.policy, self.models, self.about = policy, models, about

    @abc.abstractmethod
    def warm_up(self) -> Iterator[tuple[int, int]]:
        """Compute once in each shape that is compiled; yield its rows and tokens (0 where there are no tokens)."""

    @abc.abstractmethod
    def __call__(self, texts: Sequence[str]) -> list[TextOutputs]:
        """Compute the outputs for texts, at most :attr:`largest_batch` of them.

        Raises:
            InputError: a text that cannot be read.
            NoScoreError: outputs that are not finite.
            OSError: an endpoint of embeddings that does not answer.
        """

    @property
    def pair(self) -> Threshold | None:
        """The policy, where it is that of a strong and a weak model."""
        return self.policy if isinstance(self.policy, Threshold) else None

    @property
    def choices(self) -> tuple[str, ...]:
        """Models that the policy may choose."""
        return self.models if self.pair is None else (self.pair.strong, self.pair.weak)

    def at(self, threshold: float | None) -> Policy:
        """Policy with another threshold; None is the router's own.

        Raises:
            InputError: a policy without a pair, or that cannot choose yet; a threshold out of range.
        """
        if threshold is None:
            self.policy.require_choice()
            return self.policy
        if self.pair is None:
            raise InputError(f"the router's policy {self.policy.name} has no pair of models, and so no threshold")
        return dataclasses.replace(self.pair, threshold=threshold)

    def choose(self, outputs: TextOutputs, policy: Policy) -> Choice:
        """Choose the model that answers a text with these outputs.

        Args:
            outputs: of the text.
            policy: see :meth:`at`.
        """
        if not isinstance(policy, Threshold):
            return Choice(cast(str, outputs.model), None, None)
        win_prob = cast(float, outputs.win_prob)
        return Choice(policy.model_for(win_prob), win_prob, cast(float, policy.threshold))

    def _read(self, outputs: Mapping[str, Any], rows: int) -> list[TextOutputs]:
        """Outputs of the first rows of what a router computed.

        Raises:
            NoScoreError: they are not finite.
        """
        names = ("win_prob",) if self.pair is not None else ("scores", "model")
        computed = [np.asarray(outputs[name])[:rows] for name in names]
        if not np.isfinite(computed[0]).all():
            raise NoScoreError("the router has no finite score of this prompt: its weights are damaged")
        if self.pair is not None:  # only rounding errors leave [0, 1]
            return [TextOutputs(win_prob, None, None) for win_prob in computed[0].clip(0, 1).tolist()]
        return [
            TextOutputs(None, self.models[column], dict(zip(self.models, scores, strict=True)))
            for scores, column in zip(*(each.tolist() for each in computed), strict=True)
        ]


class RouterScorer(TextScorer):
    """Router in JAX, compiled for few static shapes.

    Args:
        router: whose outputs they are.

    Raises:
        InputError: the router reads no text, or what reads it is not found.
    """

    largest_batch = 8

    def __init__(self, router: Router) -> None:
        router.featurizer.require_text()
        super().__init__(router.policy, router.models, f"{router.family}, trained with {router.featurizer.description}")
        self._featurizer = router.featurizer
        text = router.featurizer.text_function()
        self._text = text
        outputs = router.output_fn()

        def of_tokens(variables: tuple[Variables, Variables], tokens: Query) -> dict[str, Array]:
            apply = cast(TextFunction, text).apply
            # Accelerators multiply in lower precision unless told otherwise; training embedded in float32.
            with jax.default_matmul_precision("highest"):
                query = apply(variables[1], tokens)
            return outputs(variables[0], query)

        if text is None:
            self._outputs = functools.partial(jax.jit(outputs), router.variables)
        else:
            self._outputs = functools.partial(jax.jit(of_tokens), (router.variables, text.variables))

    def warm_up(self) -> Iterator[tuple[int, int]]:
        """Compile for single texts and for batches, of each length."""
        for rows in (1, ROWS):
            if self._text is None:
                self([f"warm {row}" for row in range(rows)])
                yield rows, 0
                continue
            for length in self._text.tokenizer.lengths:
                if rows == 1 or rows * length <= MOST_TOKENS:
                    self._compute([[1] * length] * rows, length)
                    yield rows, length

    def __call__(self, texts: Sequence[str]) -> list[TextOutputs]:
        """Compute in batches of texts of about one length."""
        self._featurizer.require_prompts(texts)
        if self._text is None:
            query = self._featurizer.query(texts)
            computed = [self._of_query(query, part) for part in _parts(len(texts), most=ROWS)]
            return [outputs for part in computed for outputs in part]
        results: dict[int, TextOutputs] = {}
        tokenizer = self._text.tokenizer
        token_ids = tokenizer.read(texts).token_ids
        bucket = tokenizer.bucket_of(token_ids)
        for number in np.unique(bucket):
            length, rows = tokenizer.lengths[number], np.flatnonzero(bucket == number)
            for part in _parts(len(rows), most=ROWS if ROWS * length <= MOST_TOKENS else 1):
                computed = self._compute([token_ids[row] for row in rows[part]], length)
                results.update(zip(rows[part].tolist(), computed, strict=True))
        return [results[row] for row in range(len(texts))]

    def _of_query(self, query: dict[str, np.ndarray], part: slice) -> list[TextOutputs]:
        """Outputs for a part of a query, which is padded by zeros."""
        leaves = {name: leaf[part] for name, leaf in query.items()}
        count = part.stop - part.start
        missing = 0 if count == 1 else ROWS - count
        padded = {name: np.pad(leaf, ((0, missing), *[(0, 0)] * (leaf.ndim - 1))) for name, leaf in leaves.items()}
        return self._read(self._outputs(padded), count)

    def _compute(self, token_ids: Sequence[Sequence[int]], length: int) -> list[TextOutputs]:
        tokenizer = cast(TextFunction, self._text).tokenizer
        tokens = tokenizer.pad(token_ids, length, batch=1 if len(token_ids) == 1 else ROWS)
        return self._read(self._outputs(tokens), len(token_ids))


class BundleScorer(TextScorer):
    """Exported router, computed by what its format names.

    Args:
        bundle: that reads text.

    Raises:
        InputError: it takes embeddings alone.
    """

    largest_batch = 1  # on a CPU, a batch takes about as long as its texts one after the other

    def __init__(self, bundle: runtime.Bundle) -> None:
        about = bundle.description
        if bundle.text is None:
            why = "a router of given embeddings alone, or the format vector, exports no way from text"
            raise InputError(f"{bundle.folder} takes embeddings, not text: {why}")
        super().__init__(
            read_policy(about["policy"]), tuple(about["models"]), f"{about['family']}, as a bundle in {about['format']}"
        )
        self._bundle = bundle

    def warm_up(self) -> Iterator[tuple[int, int]]:
        """Read the tokenizer, by a first text; compute a single text of each length, where that is compiled for."""
        self(["warm"])
        for length in self._bundle.text["lengths"] if self._bundle.compiles else ():
            tokens = np.ones((1, length), np.int32)
            self._bundle.outputs(token_ids=tokens, attention_mask=tokens)
            yield 1, length

    def __call__(self, texts: Sequence[str]) -> list[TextOutputs]:
        """Compute one text after the other, without padding."""
        try:
            return [self._read(self._bundle.outputs(text), 1)[0] for text in texts]
        except NoScoreError:
            raise
        except BundleError as error:
            raise InputError(str(error)) from error


class ScorerOptions(TypedDict, total=False):
    """Options of a router that scores texts.

    Attributes:
        threshold: in the place of the stored one, in [0, 1] or inf.
        strong, weak: other models of the router's than its own pair; a bundle has one.
        encoder: folder of the router's sentence encoder, if it is elsewhere now; a bundle holds its own.
        threads: of onnxruntime, which computes bundles in ONNX; default as many as there are cores.
    """

    threshold: float | None
    strong: str | None
    weak: str | None
    encoder: str | None
    threads: int | None


def open_scorer(path: str | os.PathLike[str], **options: Unpack[ScorerOptions]) -> TextScorer:
    """Load a router that scores texts.

    Args:
        path: of a router folder, of a run, or of an exported bundle.
        options: see :class:`ScorerOptions`.

    Raises:
        InputError: no such option, no router there, an unknown model, a router that reads no text, or an option that
            what is there has no use for.
    """
    for name in options:
        choose(name, ScorerOptions.__annotations__, "the option")
    threshold, threads, encoder = options.get("threshold"), options.get("threads"), options.get("encoder")
    strong, weak = options.get("strong"), options.get("weak")
    if threads is not None and (type(threads) is not int or not 1 <= threads <= MOST_THREADS):
        raise InputError(f"threads must be an integer in [1, {MOST_THREADS}], got {threads!r:.40}")
    if (Path(path) / runtime.DESCRIPTION).is_file():
        if (strong, weak, encoder) != (None, None, None):
            raise InputError(f"{path} is a bundle, of one pair and with its encoder: export another one")
        try:
            bundle = runtime.load(path, threads=threads)
        except BundleError as error:
            raise InputError(str(error)) from error
        if threads is not None and bundle.compiles:
            raise InputError(OF_ITS_OWN.format(path))
        scorer = BundleScorer(bundle)
        scorer.policy = scorer.policy if threshold is None else scorer.at(threshold)
        return scorer
    if threads is not None:
        raise InputError(OF_ITS_OWN.format(path))
    stored = load_router(router_folder(path), encoder=encoder)
    router = stored.with_pair(strong, weak)
    router = router if threshold is None else router.with_threshold(threshold)
    warn_of_losses(stored, router)
    return RouterScorer(router)


def _parts(rows: int, *, most: int) -> Iterator[slice]:
    """Split rows into parts that are computed at once: single rows, or up to ``most``."""
    start = 0
    while start < rows:
        count = min(most, rows - start) if rows - start >= FEWEST_TOGETHER else 1
        yield slice(start, start + count)
        start += count
