"""A router: a module with its variables, its featurizer, its vocabulary of models, and the likelihood of its scores."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Float32, Int

from routerjax.errors import InputError, model_column
from routerjax.families import family_of
from routerjax.features import EmbeddingCache, Embeddings, Featurizer
from routerjax.likelihoods import BRADLEY_TERRY, Likelihood
from routerjax.prompts import prompt_ids, require_texts
from routerjax.router.outputs import (
    checked_probability,
    jit_outcome_prob,
    jit_scores,
    jit_win_prob,
    require_values,
)
from routerjax.scoring import make_score_fn
from routerjax.typing import Array, ScoreFn, Variables


@dataclass(frozen=True, eq=False, kw_only=True)
class Router:
    """Router: all that is needed to score a prompt.

    Attributes:
        module: linen, from a query to scores; of a registered family if the router is to be saved.
        featurizer: of the module's queries.
        models: names of the models that are scored.
        strong: the default strong model.
        weak: the default weak model.
        variables: ``{"params": ..., "likelihood": ..., "memory": ..., "calibration": ...}``; each may be absent.
        likelihood: what the scores were trained under.
        threshold: route to the strong model from this win probability on (``inf``: never); None before calibration.
        provenance: how it came to be: configuration, versions, data hashes; any JSON.

    Raises:
        InputError: names that are repeated or unknown, one model in both roles, or a threshold out of range.
    """

    module: nn.Module
    featurizer: Featurizer
    models: tuple[str, ...]
    strong: str
    weak: str
    variables: Variables
    likelihood: Likelihood = BRADLEY_TERRY
    threshold: float | None = None
    provenance: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = sorted(name for name, count in collections.Counter(self.models).items() if count > 1 or not name)
        if wrong or len(self.models) < 2:
            got = f"{wrong[0]!r} among {len(self.models)}" if wrong else list(self.models)
            raise InputError(f"a router's models must be two or more different names, none of them empty, got {got}")
        if self.strong == self.weak:
            raise InputError(f"strong and weak must be different models, got {self.strong!r} for both")
        for name in (self.strong, self.weak):
            self.column(name)
        if self.threshold is not None and not (0 <= self.threshold <= 1 or self.threshold == math.inf):
            raise InputError(f"threshold must be in [0, 1], or inf for never, got {self.threshold!r}")
        family = family_of(self.module)
        if family is not None:
            family.require_pair(self.variables, self.models, self.strong, self.weak)

    @property
    def family(self) -> str:
        """Name of the module's family; the name of its class where none is registered."""
        family = family_of(self.module)
        return type(self.module).__name__ if family is None else family.name

    @property
    def threshold_as_json(self) -> float | str | None:
        """The threshold as JSON holds it, which knows no infinity; ``float`` reads the text back."""
        return "inf" if self.threshold == math.inf else self.threshold

    def column(self, model: str) -> int:
        """The column of a model in the scores.

        Raises:
            InputError: unknown; says which there are, or how many, and the nearest.
        """
        return model_column(model, self.models, "the router's")

    def with_pair(self, strong: str | None = None, weak: str | None = None) -> Router:
        """Return the same router for another pair of its models.

        A calibration and a threshold are those of a pair, so that another one has neither.

        Raises:
            InputError: a model is unknown, or both are the same.
        """
        strong = self.strong if strong is None else strong
        weak = self.weak if weak is None else weak
        if (strong, weak) == (self.strong, self.weak):
            return self
        variables = {name: leaf for name, leaf in self.variables.items() if name != "calibration"}
        provenance = {name: value for name, value in self.provenance.items() if name != "calibration"}
        return dataclasses.replace(
            self, strong=strong, weak=weak, variables=variables, provenance=provenance, threshold=None
        )

    def score_fn(self) -> ScoreFn:
        """The pure ``(variables, query) -> win_prob [batch]`` of the router's pair of models: what is exported."""
        strong, weak = self.column(self.strong), self.column(self.weak)
        return make_score_fn(self.module, strong=strong, weak=weak, likelihood=self.likelihood)

    def scores(
        self,
        prompts: Sequence[str] | Embeddings,
        *,
        exclude_own_battles: bool = False,
        cache: EmbeddingCache | None = None,
        progress: bool = False,
    ) -> Float32[np.ndarray, "prompts models"]:
        """Score every model on every prompt; see :meth:`win_prob` for the arguments.

        A tie's score (``three_outcome``) is left out here; the columns of ``three_labels`` are win, tie and loss of
        ``models[0]`` against ``models[1]``.
        """
        scores = self._run(
            jit_scores(self.module),
            self.variables,
            prompts,
            exclude_own_battles=exclude_own_battles,
            cache=cache,
            progress=progress,
        )
        require_values(np.isfinite(scores), scores, "score must be finite", prompts)
        return cast(np.ndarray, self.likelihood.model_scores(cast(Array, scores)))

    def win_prob(
        self,
        prompts: Sequence[str] | Embeddings,
        strong: str | None = None,
        weak: str | None = None,
        *,
        exclude_own_battles: bool = False,
        cache: EmbeddingCache | None = None,
        progress: bool = False,
    ) -> Float32[np.ndarray, "prompts"]:
        """P(the strong model's answer is better than the weak one's) for each prompt.

        Args:
            prompts: texts; or embeddings, whose fingerprint must be that of the router's encoder.
            strong: a model of ``models``; default the router's own. Another pair is scored as it was trained: see
                :meth:`with_pair`.
            weak: likewise.
            exclude_own_battles: score each prompt as if its own battles were not in the memory of ``sw`` or ``knn``:
                evaluation's choice, so that remembered prompts stand for new ones. It needs texts, by which battles are
                known.
            cache: where embeddings are kept between runs.
            progress: show progress bars, where encoding or scoring takes more than two seconds.

        Raises:
            InputError: an unknown model, features other than those the router was trained with, embeddings where a
                memory is to leave their prompts' own battles out, or a router that answers a prompt with no probability
                (NaN); the row is named.
        """
        router = self.with_pair(strong, weak)
        columns = self.column(router.strong), self.column(router.weak)
        score = jit_win_prob(self.module, *columns, self.likelihood)
        win_prob = self._run(
            score, router.variables, prompts, exclude_own_battles=exclude_own_battles, cache=cache, progress=progress
        )
        return checked_probability(win_prob, "win probability", prompts)

    def outcome_prob(
        self,
        prompts: Sequence[str] | Embeddings,
        strong: str | None = None,
        weak: str | None = None,
        *,
        exclude_own_battles: bool = False,
        cache: EmbeddingCache | None = None,
        progress: bool = False,
    ) -> Float32[np.ndarray, "prompts 3"]:
        """P(the strong model wins), P(tie), P(the weak model wins) for each prompt, as trained: not calibrated.

        The expected gain of calling the strong model is the first minus the last. See :meth:`win_prob` for the
        arguments; under a likelihood without ties P(tie) is 0.
        """
        strong = self.strong if strong is None else strong
        weak = self.weak if weak is None else weak
        columns = self.column(strong), self.column(weak)
        outcome = jit_outcome_prob(self.module, *columns, self.likelihood)
        prob = self._run(
            outcome, self.variables, prompts, exclude_own_battles=exclude_own_battles, cache=cache, progress=progress
        )
        return checked_probability(prob, "probability of an outcome", prompts)

    def _run(
        self,
        compiled: ScoreFn,
        variables: Variables,
        prompts: Sequence[str] | Embeddings,
        *,
        exclude_own_battles: bool,
        cache: EmbeddingCache | None,
        progress: bool,
    ) -> np.ndarray:
        """Apply to each different prompt once, in batches of a few static shapes."""
        row_of, batches = self._batches(
            prompts, exclude_own_battles=exclude_own_battles, cache=cache, progress=progress
        )
        if not len(row_of):
            return np.zeros((0, *jax.eval_shape(compiled, variables, self.featurizer.example()).shape[1:]), np.float32)
        count = int(row_of.max()) + 1
        outputs = np.zeros(0, np.float32)
        with tqdm.tqdm(total=count, unit="prompt", disable=not progress, delay=2) as bar:
            for rows, query in batches:
                on_device = {name: jnp.asarray(leaf) for name, leaf in query.items()}
                computed = np.asarray(compiled(variables, on_device), np.float32)[: len(rows)]
                if not outputs.size:
                    outputs = np.zeros((count, *computed.shape[1:]), np.float32)
                outputs[rows] = computed
                bar.update(len(rows))
        return outputs[row_of]

    def _batches(
        self,
        prompts: Sequence[str] | Embeddings,
        *,
        exclude_own_battles: bool,
        cache: EmbeddingCache | None,
        progress: bool,
    ) -> tuple[Int[np.ndarray, "prompts"], Iterator[tuple[Int[np.ndarray, "rows"], dict[str, np.ndarray]]]]:
        """The row of each prompt among the different ones, and the padded queries of these."""
        excludes = exclude_own_battles and "prompt_id" in self.variables.get("memory", {})
        if isinstance(prompts, Embeddings):
            self._require_own(prompts)
            if excludes:
                raise InputError("exclude_own_battles needs prompts as texts: battles are remembered by them")
            return np.arange(len(prompts.embedding)), prompts.batches()
        require_texts(prompts)
        row_of = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        texts = list(row_of)
        batches = self.featurizer.batches(texts, cache=cache, progress=progress)
        if excludes:
            batches = _with_prompt_id(batches, prompt_ids(texts))
        return np.asarray([row_of[prompt] for prompt in prompts], int), batches

    def _require_own(self, embeddings: Embeddings) -> None:
        """Refuse embeddings that were made otherwise than those of the training."""
        if embeddings.fingerprint != self.featurizer.fingerprint:
            raise self.featurizer.refusal("the embeddings have", embeddings.fingerprint)
        width = embeddings.embedding.shape[1]
        if width != self.featurizer.width:
            raise InputError(f"embeddings must be {self.featurizer.width} wide, as in training, got {width}")


def _with_prompt_id(
    batches: Iterator[tuple[Int[np.ndarray, "rows"], dict[str, np.ndarray]]], ids: np.ndarray
) -> Iterator[tuple[Int[np.ndarray, "rows"], dict[str, np.ndarray]]]:
    """Add the identity of each prompt, by which a memory leaves out its own battles."""
    for rows, query in batches:
        size = len(next(iter(query.values())))
        yield rows, {**query, "prompt_id": np.pad(ids[rows], ((0, size - len(rows)), (0, 0)))}
