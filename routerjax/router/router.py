"""A router: a module with its variables, its featurizer, its vocabulary of models, and the likelihood of its scores."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int

from routerjax.errors import InputError, model_column
from routerjax.families import family_of
from routerjax.features import EmbeddingCache, Embeddings, Featurizer
from routerjax.likelihoods import BRADLEY_TERRY, Likelihood
from routerjax.policies import Policy, Threshold
from routerjax.router.outputs import (
    ReadFn,
    batches_of,
    checked_probability,
    jitted,
    jitted_module,
    module_scores,
    pair_outcome_prob,
    require_values,
    run,
)
from routerjax.scoring import apply_module, pair_win_prob
from routerjax.typing import Array, Query, Variables


@dataclass(frozen=True, eq=False, kw_only=True)
class Router:
    """Router: all that is needed to score a prompt.

    Attributes:
        module: linen, from a query to scores; of a registered family if the router is to be saved.
        featurizer: of the module's queries.
        models: names of the models that are scored.
        policy: which of the models answers a prompt; a :class:`routerjax.policies.Threshold` also says of which pair
            of them the win probability is.
        variables: ``{"params": ..., "likelihood": ..., "memory": ..., "calibration": ...}``; each may be absent.
        likelihood: what the scores were trained under.
        provenance: how it came to be: configuration, versions, data hashes; any JSON.

    Raises:
        InputError: names that are repeated, or that the policy cannot choose among.
    """

    module: nn.Module
    featurizer: Featurizer
    models: tuple[str, ...]
    policy: Policy
    variables: Variables
    likelihood: Likelihood = BRADLEY_TERRY
    provenance: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = sorted(name for name, count in collections.Counter(self.models).items() if count > 1 or not name)
        if wrong or len(self.models) < 2:
            got = f"{wrong[0]!r} among {len(self.models)}" if wrong else list(self.models)
            raise InputError(f"a router's models must be two or more different names, none of them empty, got {got}")
        self.policy.require_models(self.models)
        family = family_of(self.module)
        if family is not None and self.has_pair:
            family.require_pair(self.variables, self.models, self.strong, self.weak)

    @property
    def family(self) -> str:
        """Name of the module's family; the name of its class where none is registered."""
        family = family_of(self.module)
        return type(self.module).__name__ if family is None else family.name

    @property
    def has_pair(self) -> bool:
        """True if the policy is that of a strong and a weak model."""
        return isinstance(self.policy, Threshold)

    @property
    def strong(self) -> str:
        """The strong model; InputError where the policy has none."""
        return self._pair.strong

    @property
    def weak(self) -> str:
        """The weak model; InputError where the policy has none."""
        return self._pair.weak

    @property
    def threshold(self) -> float | None:
        """Route to the strong model from this win probability on; None before calibration, or of another policy."""
        return cast("float | None", self.policy.threshold) if isinstance(self.policy, Threshold) else None

    @property
    def _pair(self) -> Threshold:
        if isinstance(self.policy, Threshold):
            return self.policy
        raise InputError(f"the router's policy {self.policy.name} has no pair of models: give both strong and weak")

    def column(self, model: str) -> int:
        """The column of a model in the scores.

        Raises:
            InputError: unknown; says which there are, or how many, and the nearest.
        """
        return model_column(model, self.models, "the router's")

    def with_pair(self, strong: str | None = None, weak: str | None = None) -> Router:
        """Return the same router for another pair of its models.

        A calibration and a threshold are those of a pair, so that another one has neither. Of a router whose policy has
        no pair, both models make it one of a pair.

        Raises:
            InputError: a model is unknown, both are the same, or one is neither given nor the policy's.
        """
        if strong is None and weak is None:
            return self
        strong = self.strong if strong is None else strong
        weak = self.weak if weak is None else weak
        if self.has_pair and (strong, weak) == (self.strong, self.weak):
            return self
        variables = {name: leaf for name, leaf in self.variables.items() if name != "calibration"}
        provenance = {name: value for name, value in self.provenance.items() if name != "calibration"}
        return dataclasses.replace(self, policy=Threshold(strong, weak), variables=variables, provenance=provenance)

    def with_threshold(self, threshold: float | None) -> Router:
        """Return the same router with another threshold, or with none.

        Raises:
            InputError: a threshold out of range, or a policy without a pair of models.
        """
        return dataclasses.replace(self, policy=dataclasses.replace(self._pair, threshold=threshold))

    def choose(
        self, variables: Variables, scores: Float[Array, "batch outputs"], policy: Policy | None = None
    ) -> Int[Array, "batch"]:
        """Choose a column of ``models`` for each row of what the module computed; pure, jits.

        A calibration is that of the router's pair: the policy is told other pairs' win probabilities as trained.

        Args:
            variables: of the router.
            scores: of the module.
            policy: default the router's own.

        Returns:
            int32 column, -1 where a score is not finite.

        Raises:
            InputError: the policy has no threshold yet.
        """
        plain = {name: leaf for name, leaf in variables.items() if name != "calibration"}

        def win_prob(strong: str, weak: str) -> Array:
            is_calibrated = self.has_pair and (strong, weak) == (self.strong, self.weak)
            columns = self.column(strong), self.column(weak)
            return pair_win_prob(variables if is_calibrated else plain, scores, *columns, self.likelihood)

        policy = self.policy if policy is None else policy
        column = policy.choose(self.models, self.likelihood.model_scores(scores), win_prob)
        return jnp.where(jnp.isfinite(scores).all(axis=-1), column, -1).astype(jnp.int32)

    @functools.cached_property
    def _jit_choose(self) -> ReadFn:
        return jax.jit(self.choose)

    def route(
        self, prompts: Sequence[str] | Embeddings, *, cache: EmbeddingCache | None = None, progress: bool = False
    ) -> list[str]:
        """Name the model that the policy chooses for each prompt; see :meth:`win_prob` for the arguments.

        Raises:
            InputError: as :meth:`scores`, or the policy has no threshold yet.
        """
        self.policy.require_choice()
        columns = self.map_scores(self._jit_choose, prompts, cache=cache, progress=progress)
        is_model = (columns >= 0) & (columns < len(self.models))
        require_values(is_model, columns, "choice must be a column of its models", prompts)
        return [self.models[int(column)] for column in columns]

    def output_fn(self) -> Callable[[Variables, Query], dict[str, Array]]:
        """The pure ``(variables, query) -> outputs`` that is exported.

        ``scores`` float32 [batch, models], see :meth:`scores`; ``win_prob`` float32 [batch], where the policy has a
        pair; and ``model``, int32 [batch], as :meth:`choose` gives it, once the policy can choose.
        """

        def outputs(variables: Variables, query: Query) -> dict[str, Array]:
            scores = apply_module(self.module, variables, query)
            computed = {"scores": self.likelihood.model_scores(scores).astype(jnp.float32)}
            if self.has_pair:
                columns = self.column(self.strong), self.column(self.weak)
                computed["win_prob"] = pair_win_prob(variables, scores, *columns, self.likelihood)
            return {**computed, "model": self.choose(variables, scores)} if self.policy.chooses else computed

        return outputs

    def scores(
        self,
        prompts: Sequence[str] | Embeddings,
        *,
        exclude_own_battles: bool = False,
        cache: EmbeddingCache | None = None,
        progress: bool = False,
    ) -> Float32[np.ndarray, "prompts models"]:
        """Score every model on every prompt; see :meth:`win_prob` for the arguments.

        A tie's score, as of ``three_outcome``, is left out here; the columns of ``three_labels`` are win, tie and loss
        of ``models[0]`` against ``models[1]``.
        """
        scores = self.map_scores(module_scores, prompts, exclude_own_battles, cache, progress)
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
        read = jitted(pair_win_prob, *columns, self.likelihood)
        win_prob = router.map_scores(read, prompts, exclude_own_battles, cache, progress)
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
    ) -> Float32[np.ndarray, "prompts outcomes"]:
        """P(the strong model wins), P(tie), P(the weak model wins) for each prompt, as trained: not calibrated.

        A likelihood of four outcomes adds P(both answers are bad). The expected gain of calling the strong model is
        P(it wins) - P(the weak one wins). See :meth:`win_prob` for the arguments; under a likelihood without ties
        P(tie) is 0.
        """
        strong = self.strong if strong is None else strong
        weak = self.weak if weak is None else weak
        columns = self.column(strong), self.column(weak)
        read = jitted(pair_outcome_prob, *columns, self.likelihood)
        prob = self.map_scores(read, prompts, exclude_own_battles, cache, progress)
        return checked_probability(prob, "probability of an outcome", prompts)

    def map_scores(
        self,
        read: ReadFn,
        prompts: Sequence[str] | Embeddings,
        exclude_own_battles: bool = False,
        cache: EmbeddingCache | None = None,
        progress: bool = False,
    ) -> Float32[np.ndarray, "prompts *output"]:
        """Read from what the module computes for each prompt; see :meth:`win_prob` for the arguments.

        Args:
            read: ``(variables, scores of the module) -> output`` of a batch, which may be jitted.
        """
        if isinstance(prompts, Embeddings):
            self.featurizer.require_same(prompts.fingerprint, prompts.embedding.shape[1])
        excludes = exclude_own_battles and "prompt_id" in self.variables.get("memory", {})
        row_of, batches = batches_of(prompts, self.featurizer, has_prompt_id=excludes, cache=cache)
        if len(row_of):
            return run(self.module, read, self.variables, row_of, batches, progress=progress)
        scores = jax.eval_shape(jitted_module(self.module), self.variables, self.featurizer.example())
        return np.zeros((0, *jax.eval_shape(read, self.variables, scores).shape[1:]), np.float32)
