"""A router: a family's module with its variables, its vocabulary of models, and the features it was trained on."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import flax.linen as nn
import numpy as np
from jaxtyping import Float32

from routerjax.config import AttributeValue, FeatureConfig
from routerjax.errors import InputError, model_column
from routerjax.features import (
    EmbeddingCache,
    Embeddings,
    EndpointEncoder,
    FeatureSpec,
    SentenceEncoder,
    TextTokenizer,
    is_endpoint,
    open_encoder,
    read_prompts,
)
from routerjax.likelihoods import BRADLEY_TERRY, Likelihood
from routerjax.prompts import prompt_ids, require_texts
from routerjax.router.batching import apply_to_query, apply_to_texts
from routerjax.router.families import make_module
from routerjax.router.outputs import (
    checked_probability,
    jit_outcome_prob,
    jit_scores,
    jit_win_prob,
    require_values,
)
from routerjax.router.reader import TextReader
from routerjax.scoring import make_score_fn
from routerjax.typing import Array, ScoreFn, Variables


@dataclass(frozen=True, eq=False)
class Router:
    """Router: all that is needed to score a prompt.

    Attributes:
        family: a name in :data:`routerjax.router.FAMILIES`.
        attributes: of the family's module, other than the number of models.
        models: names of the columns of the scores.
        strong: the default strong model.
        weak: the default weak model.
        features: what the router's queries were made with.
        variables: ``{"params": ..., "likelihood": ..., "memory": ..., "calibration": ...}``; each may be absent.
        provenance: how it came to be: configuration, versions, data hashes; any JSON.
        likelihood: what the scores were trained under.
        reader: the part that reads text, where it is the router's own: ``features`` are tokens then. Whatever it was
            trained in, a router computes in float32; see :meth:`TextReader.for_scoring`.
        threshold: route to the strong model from this win probability on (``inf``: never); None before calibration.
        encoder_source: where to look for the encoder instead of ``features.source``; its fingerprint must be the same.
    """

    family: str
    attributes: Mapping[str, AttributeValue]
    models: tuple[str, ...]
    strong: str
    weak: str
    features: FeatureSpec
    variables: Variables
    provenance: Mapping[str, object] = field(default_factory=dict)
    likelihood: Likelihood = BRADLEY_TERRY
    reader: TextReader | None = None
    threshold: float | None = None
    encoder_source: str | None = None

    def __post_init__(self) -> None:
        wrong = sorted(name for name, count in collections.Counter(self.models).items() if count > 1 or not name)
        if wrong or len(self.models) < 2:
            got = f"{wrong[0]!r} among {len(self.models)}" if wrong else list(self.models)
            raise InputError(f"a router's models must be two or more different names, none of them empty, got {got}")
        if self.strong == self.weak:
            raise InputError(f"strong and weak must be different models, got {self.strong!r} for both")
        for name in (self.strong, self.weak):
            self.column(name)
        if (self.features.kind == "tokens") != (self.reader is not None):
            raise InputError(f"a router has a text reader if its features are tokens; they are {self.features.kind}")
        if self.reader is not None and self.encoder_source is not None:
            raise InputError(
                f"this router reads text itself and takes no encoder but its own, got {self.encoder_source}: leave "
                "--encoder out"
            )
        tier = self.variables.get("memory", {}).get("tier")
        if tier is not None and tier[self.column(self.strong)] == tier[self.column(self.weak)]:
            together = int(np.sum(np.asarray(tier) == tier[self.column(self.strong)]))
            raise InputError(
                f"{self.strong} and {self.weak} fall into one tier (of {together} models), so that every prompt would "
                "have the win probability 0.5: take another num_tiers (0 rates every model by itself), or another pair"
            )
        if self.threshold is not None and not (0 <= self.threshold <= 1 or self.threshold == math.inf):
            raise InputError(f"threshold must be in [0, 1], or inf for never, got {self.threshold!r}")
        if self.reader is not None:
            object.__setattr__(self, "reader", self.reader.for_scoring())  # however it comes: trained, loaded, replaced

    @property
    def threshold_as_json(self) -> float | str | None:
        """The threshold as JSON holds it, which knows no infinity; ``float`` reads the text back."""
        return "inf" if self.threshold == math.inf else self.threshold

    @functools.cached_property
    def module(self) -> nn.Module:
        """The linen module, ``(variables, query) -> scores [batch, models]``."""
        return make_module(
            self.family,
            models=self.models,
            attributes=self.attributes,
            likelihood=self.likelihood,
            reader=self.reader,
        )

    @functools.cached_property
    def tokenizer(self) -> TextTokenizer:
        """Tokenizer of the router's own encoder.

        Raises:
            InputError: the router reads no text itself, or its tokenizer is not the one it was trained with.
        """
        if self.reader is None:
            raise InputError("this router looks at embeddings; its encoder has the tokenizer")
        tokenizer = self.reader.tokenizer(cast(int, self.features.max_length), self.features.truncation)
        if tokenizer.fingerprint != self.features.fingerprint:
            raise self._refusal("its tokenizer has", tokenizer.fingerprint)
        return tokenizer

    @functools.cached_property
    def encoder(self) -> SentenceEncoder | EndpointEncoder:
        """Encoder of text as in the router's training, loaded on first use.

        Raises:
            InputError: the router has given embeddings, reads text itself, or what is found is another encoder.
        """
        if self.reader is not None:
            raise InputError("this router reads text itself: its encoder is a part of its module")
        if self.features.kind == "given":
            raise InputError(
                f"this router was trained on given embeddings ({self.features.source}) and cannot read text; pass "
                f"Embeddings with the fingerprint {self.features.fingerprint}"
            )
        source = self.features.source if self.encoder_source is None else self.encoder_source
        encoder = open_encoder(
            source,
            max_length=self.features.max_length or FeatureConfig.max_length,  # a router of an endpoint has none
            truncation=None if is_endpoint(source) else self.features.truncation,
            download=self.encoder_source is not None,  # what only the router's folder names is not
            width=self.features.width,
        )
        if encoder.spec.fingerprint != self.features.fingerprint:
            raise self._refusal(f"the encoder {source} has", encoder.spec.fingerprint)
        return encoder

    def require_text(self) -> None:
        """Load what reads text, before any work depends on it: the tokenizer, or the encoder.

        Raises:
            InputError: the router has given embeddings, or what is found is not what it was trained with.
        """
        _ = self.encoder if self.reader is None else self.tokenizer

    def _refusal(self, whose: str, fingerprint: str) -> InputError:
        # The first digits tell two hashes apart; an endpoint's fingerprint ends in its address.
        shown = 16 if self.features.kind in ("encoder", "tokens") else None
        mend = "; OPENAI_BASE_URL must be the address in it" if self.features.kind == "endpoint" else ""
        return InputError(
            f"refused: {whose} fingerprint {fingerprint[:shown]}, but this router was trained with "
            f"{self.features.source}, fingerprint {self.features.fingerprint[:shown]}; its scores would mean nothing"
            f"{mend}"
        )

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

    def query(
        self,
        prompts: Sequence[str] | Embeddings,
        *,
        exclude_own_battles: bool = False,
        cache: EmbeddingCache | None = None,
        progress: bool = False,
    ) -> dict[str, np.ndarray]:
        """Make the module's query.

        ``embedding`` float32 ``[prompts, embed]``; or, of a router that reads text itself, ``token_ids`` and
        ``attention_mask`` int32 ``[prompts, length]``. With ``prompt_id`` uint32 ``[prompts, 2]`` where a memory is to
        leave the prompts' own battles out. See :meth:`win_prob` for the arguments.
        """
        excludes = exclude_own_battles and "prompt_id" in self.variables.get("memory", {})
        if isinstance(prompts, Embeddings):
            if prompts.fingerprint != self.features.fingerprint:
                raise self._refusal("the embeddings have", prompts.fingerprint)
            if prompts.embedding.shape[1] != self.features.width:
                width = prompts.embedding.shape[1]
                raise InputError(f"embeddings must be {self.features.width} wide, as in training, got {width}")
            if excludes:
                raise InputError("exclude_own_battles needs prompts as texts: battles are remembered by them")
            return {"embedding": prompts.embedding}
        require_texts(prompts)
        if self.reader is not None:
            read = self.tokenizer.pad(read_prompts(self.tokenizer, prompts))
        else:
            read = {"embedding": self.encoder.encode(prompts, cache=cache, progress=progress)}
        return {**read, "prompt_id": prompt_ids(prompts)} if excludes else read

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
        """Apply to all prompts, in batches of a few static shapes."""
        if self.reader is not None and not isinstance(prompts, Embeddings):
            return apply_to_texts(compiled, variables, prompts, tokenizer=self.tokenizer, progress=progress)
        query = self.query(prompts, exclude_own_battles=exclude_own_battles, cache=cache, progress=progress)
        return apply_to_query(compiled, variables, query, progress=progress)
