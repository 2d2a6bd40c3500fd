"""Bradley-Terry ratings from win counts, and the tiers that they fall into. Ratings are in nats."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.sparse.csgraph import connected_components

from routerjax.errors import MOST_LISTED, InputError

# Newton converges quadratically: a step this long leaves an error of its square, below what float32 resolves.
LAST_STEP = 1e-4


def fit(
    wins: Float[Array, "models models"] | Float[np.ndarray, "models models"],
    *,
    prior: float = 1e-4,
    num_steps: int = 64,
) -> Float[Array, "models"]:
    """Maximum-likelihood ratings, by damped Newton steps.

    ``ratings = argmin_r -sum_ij wins_ij * log sigmoid(r_i - r_j)`` subject to ``sum_i r_i = 0``

    ``wins`` is first joined by ties between every two models, so that a model that won all its battles, or never met
    some others, still has a finite rating: in all, a model has ``prior`` times the weight of its own battles in them,
    or less against models with fewer battles than it has; a model without battles is taken to have the mean. So the
    bias is of the order of ``prior`` for every model, however few its battles are, and ratings do not change when all
    of ``wins`` is scaled. Two models of which one always won end ``log(2 / prior + 1)``, 9.9 nats, apart. Battles of a
    model with itself (the diagonal) count nothing.

    It jits and vmaps, and is differentiated at the solution (implicitly), in both modes, whatever the number of steps.

    Args:
        wins: ``wins[i, j]`` = weighted wins of i over j, non-negative; a tie is half a win to each. float32 inside.
        prior: at least 0; 0 needs battles that connect all models in both directions.
        num_steps: at most so many Newton steps; it stops earlier where they have become short.

    Returns:
        Ratings in nats, float32, of mean zero; a positive difference favours the first. All zero where there are no
        battles.

    Raises:
        InputError: ``wins`` is not square or empty, ``prior`` is negative; for numpy arrays also values that are
            negative or not finite (a jax array may be traced, so its values are not looked at).

    Example:
        >>> ratings = fit(np.array([[0.0, 3.0], [1.0, 0.0]]), prior=0.0)
        >>> float(win_prob(ratings[0], ratings[1])).__round__(4)
        0.75

    Reference:
        Bradley and Terry, Biometrika 1952; RouteLLM (arXiv 2406.18665), section 4.1. The damping is that of Sun and
        Tran-Dinh (arXiv 1703.04599) for generalised self-concordant functions, under which no step increases the loss.
    """
    if wins.ndim != 2 or wins.shape[0] != wins.shape[1] or wins.shape[0] == 0:
        raise InputError(f"wins must be a square matrix [models, models]; got shape {wins.shape}")
    if prior < 0:
        raise InputError(f"prior must be at least 0; got {prior}")
    if isinstance(wins, np.ndarray) and not (np.isfinite(wins) & (wins >= 0)).all():
        row, column = np.argwhere(~(np.isfinite(wins) & (wins >= 0)))[0]
        raise InputError(f"wins must be finite and at least 0; wins[{row}, {column}] is {wins[row, column]}")
    if wins.shape[0] == 1:
        return jnp.zeros(1)
    return _fit(jnp.asarray(wins, jnp.float32), jnp.float32(prior), jnp.int32(num_steps))


@jax.jit
def _fit(
    wins: Float[Array, "models models"], prior: Float[Array, ""], num_steps: Int[Array, ""]
) -> Float[Array, "models"]:
    num_models = wins.shape[0]
    others = 1.0 - jnp.eye(num_models)
    wins = wins * others
    pair_weight = jnp.sum(wins) / (num_models * (num_models - 1) / 2)
    # In units of a pair's mean weight.
    wins = wins / jnp.where(pair_weight > 0.0, pair_weight, 1.0)
    own_weight = jnp.sum(wins + wins.T, axis=1)
    own_weight = jnp.where(own_weight > 0.0, own_weight, jnp.maximum(jnp.mean(own_weight), 1.0))
    ties = prior * jnp.minimum(own_weight[:, None], own_weight[None, :]) / (num_models - 1)
    wins = wins + others * jnp.where(pair_weight > 0.0, ties / 2.0, 1.0)

    # The first rating is held at zero, which leaves a positive definite problem in the others; a well conditioned one
    # if the first has the most battles, since then no others hang together more than on it.
    order = jnp.argsort(-own_weight)
    wins = wins[order][:, order]

    def ratings_of(free: Float[Array, "free"]) -> Float[Array, "models"]:
        return jnp.pad(free, (1, 0))

    def gradient(free: Float[Array, "free"]) -> Float[Array, "free"]:
        lost = wins * jax.nn.sigmoid(_differences(ratings_of(free)).T)
        return (jnp.sum(lost, axis=0) - jnp.sum(lost, axis=1))[1:]

    def hessian(free: Float[Array, "free"]) -> Float[Array, "free free"]:
        margin = _differences(ratings_of(free))
        curvature = (wins + wins.T) * jax.nn.sigmoid(margin) * jax.nn.sigmoid(-margin)
        return (jnp.diag(jnp.sum(curvature, axis=1)) - curvature)[1:, 1:]

    def newton(_: object, start: Float[Array, "free"]) -> Float[Array, "free"]:
        def unfinished(state: tuple[Float[Array, "free"], Float[Array, ""], Int[Array, ""]]) -> Array:
            return (state[1] > LAST_STEP) & (state[2] < num_steps)

        def step(
            state: tuple[Float[Array, "free"], Float[Array, ""], Int[Array, ""]],
        ) -> tuple[Float[Array, "free"], Float[Array, ""], Int[Array, ""]]:
            free, _, count = state
            full = _solve(hessian(free), -gradient(free))
            # The largest change of any margin.
            length = jnp.max(ratings_of(full)) - jnp.min(ratings_of(full))
            damping = jnp.where(length > 0.0, jnp.log1p(length) / jnp.where(length > 0.0, length, 1.0), 1.0)
            return free + damping * full, length, count + 1

        return jax.lax.while_loop(unfinished, step, (start, jnp.float32(jnp.inf), jnp.int32(0)))[0]

    # linear is the derivative of the gradient at the solution: the Hessian, as a function.
    def tangent_solve(
        linear: Callable[[Float[Array, "free"]], Float[Array, "free"]], target: Float[Array, "free"]
    ) -> Float[Array, "free"]:
        return _solve(jax.jacobian(linear)(target), target)

    free = jax.lax.custom_root(gradient, jnp.zeros(num_models - 1), newton, tangent_solve)
    ratings = ratings_of(free)[jnp.argsort(order)]
    return ratings - jnp.mean(ratings)


def win_matrix(
    model_a: Int[np.ndarray, "battles"],
    model_b: Int[np.ndarray, "battles"],
    label: Float[np.ndarray, "battles"],
    weight: Float[np.ndarray, "battles"],
    *,
    num_models: int,
) -> Float[np.ndarray, "models models"]:
    """Weighted wins of battles, as :func:`fit` takes them: ``wins[i, j] = sum of weight * P(i is better than j)``.

    Args:
        model_a: index of the first model.
        model_b: likewise the second.
        label: P(a is better) in [0, 1], a tie 0.5.
        weight: non-negative.
        num_models: rows and columns.

    Example:
        >>> win_matrix(np.array([0, 1]), np.array([1, 0]), np.array([1.0, 0.5]), np.ones(2), num_models=2).tolist()
        [[0.0, 1.5], [0.5, 0.0]]
    """
    wins = np.zeros((num_models, num_models))
    label, weight = np.asarray(label, np.float64), np.asarray(weight, np.float64)
    np.add.at(wins, (np.asarray(model_a), np.asarray(model_b)), weight * label)
    np.add.at(wins, (np.asarray(model_b), np.asarray(model_a)), weight * (1.0 - label))
    return wins


def win_prob(ratings_a: Float[Array, "*batch"], ratings_b: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """P(a beats b) = sigmoid(rating of a - rating of b), ratings in nats; element-wise.

    Example:
        >>> float(win_prob(jnp.float32(0.3), jnp.float32(0.3)))
        0.5
    """
    return jax.nn.sigmoid(ratings_a - ratings_b)


def tiers(ratings: Float[np.ndarray, "models"] | Float[Array, "models"], num_tiers: int) -> Int[np.ndarray, "models"]:
    """Split models into contiguous tiers that minimise the sum of the tiers' variances.

    ``argmin sum_tiers mean((rating - mean rating of the tier)^2)``: every tier counts alike, however many models it
    holds. Exact, by dynamic programming over the sorted ratings: O(models^2 * num_tiers).

    Args:
        ratings: in any unit.
        num_tiers: tiers, none of them empty.

    Returns:
        int32 tier of each model, 0 = strongest. Where several splits are equally good, one that ends the stronger
        tiers early.

    Raises:
        InputError: ratings that are not a vector or not finite, or ``num_tiers`` outside 1..models.

    Example:
        >>> tiers(np.array([0.0, 2.1, 2.0, -0.1]), 2).tolist()
        [1, 0, 0, 1]

    Reference:
        RouteLLM (arXiv 2406.18665), section 4.1 and appendix A; ``compute_tiers`` in
        ``routellm/routers/similarity_weighted/utils.py`` of its code.
    """
    ratings = np.asarray(ratings, np.float64)
    if ratings.ndim != 1 or not np.isfinite(ratings).all():
        raise InputError(f"ratings must be a vector of finite numbers; got {ratings.tolist()}")
    if not 1 <= num_tiers <= ratings.size:
        raise InputError(f"num_tiers must lie in 1..{ratings.size}, the number of models; got {num_tiers}")
    order = np.argsort(-ratings, kind="stable")
    # Centred: a variance from sums loses digits to a large mean.
    ordered = ratings[order] - ratings.mean()
    total = np.concatenate([[0.0], np.cumsum(ordered)])
    squares = np.concatenate([[0.0], np.cumsum(ordered**2)])
    num_models = ratings.size
    start, end = np.ogrid[: num_models + 1, : num_models + 1]
    size = np.maximum(end - start, 1)
    mean = (total[None, :] - total[:, None]) / size
    variance = np.maximum((squares[None, :] - squares[:, None]) / size - mean**2, 0.0)
    variance = np.where(end - start == 1, 0.0, np.where(end > start, variance, np.inf))
    # best[e]: the least cost of the first e models in so many tiers; cut[k][e]: where the last of k + 1 tiers starts.
    best, cuts = variance[0], []
    for _ in range(num_tiers - 1):
        cost = best[:, None] + variance
        cuts.append(np.argmin(cost, axis=0))
        best = np.min(cost, axis=0)
    tier = np.zeros(num_models, np.int32)
    stop = num_models
    for index in range(num_tiers - 1, 0, -1):
        begin = int(cuts[index - 1][stop])
        tier[order[begin:stop]] = index
        stop = begin
    return tier


def rated_tiers(
    model_a: Int[np.ndarray, "battles"],
    model_b: Int[np.ndarray, "battles"],
    label: Float[np.ndarray, "battles"],
    weight: Float[np.ndarray, "battles"],
    *,
    models: Sequence[str],
    num_tiers: int,
    prior: float = 1e-4,
) -> tuple[Float[np.ndarray, "models"], Int[np.ndarray, "models"]]:
    """Rate the models of battles, which must connect all of them, and split them into tiers (:func:`tiers`).

    Args:
        model_a, model_b, label, weight: as :func:`win_matrix`.
        models: their names.
        num_tiers: as :func:`tiers`.
        prior: as :func:`fit`.

    Returns:
        Ratings in nats, float32, and the int32 tier of each model, 0 = strongest.

    Raises:
        InputError: models that no chain of battles compares, or ``num_tiers`` outside 1..models.

    Example:
        >>> a, b, label, weight = np.array([0, 1]), np.array([1, 2]), np.array([0.9, 0.4]), np.ones(2)
        >>> rated_tiers(a, b, label, weight, models=["x", "y", "z"], num_tiers=2)[1].tolist()
        [0, 1, 1]
    """
    wins = win_matrix(model_a, model_b, label, weight, num_models=len(models))
    apart = _apart_from_most(wins > 0)
    if apart.size:
        listed = ", ".join([models[int(column)] for column in apart[:MOST_LISTED]])
        more = f" and {apart.size - MOST_LISTED} more" if apart.size > MOST_LISTED else ""
        raise InputError(
            f"{apart.size} of {len(models)} models cannot be rated on one scale with the others, since no chain of "
            f"battles connects them: {listed}{more}; leave their battles out (a boolean column that drop_where names, "
            "as in --set 'data.battles.0.drop_where=(\"COLUMN\",)'), or let a router of the family sw rate every model "
            "by itself (--set router.attributes.num_tiers=0)"
        )
    ratings = np.asarray(fit(wins, prior=prior))
    return ratings, tiers(ratings, num_tiers)


def _apart_from_most(met: Bool[np.ndarray, "models models"]) -> Int[np.ndarray, "apart"]:
    """The models that no chain of battles connects to the largest group of models."""
    group = connected_components(met, directed=False)[1]
    return np.flatnonzero(group != np.argmax(np.bincount(group)))


def _differences(ratings: Float[Array, "models"]) -> Float[Array, "models models"]:
    return ratings[:, None] - ratings[None, :]


def _solve(matrix: Float[Array, "free free"], target: Float[Array, "free"]) -> Float[Array, "free"]:
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(matrix), target)
