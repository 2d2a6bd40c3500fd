"""Decisions and their calibration, against brute force over all thresholds."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routerjax import policies
from routerjax.errors import InputError

SHARES = st.floats(0.0, 1.0)


@st.composite
def win_probs(draw):
    """At most 12 probabilities, often tied, some at the ends of the range, in float32 or float64."""
    value = st.one_of(st.integers(0, 4).map(lambda number: number / 4.0), st.floats(0.0, 1.0))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    return np.array(draw(st.lists(value, min_size=1, max_size=12)), dtype)


class TestThresholdForShare:
    @given(win_probs(), SHARES)
    def test_largest_attainable_share_by_brute_force(self, win_prob, strong_share):
        threshold, attained = policies.threshold_for_share(win_prob, strong_share)
        normal = np.where(win_prob < np.finfo(np.float32).tiny, 0, win_prob)  # as XLA takes them
        attainable = [0.0, *((normal >= value).mean() for value in normal)]
        assert attained == max(share for share in attainable if share <= strong_share)
        assert 0.0 <= threshold <= 1.0 or (threshold == math.inf and win_prob.max() == 1.0)
        # The same decisions in the type it was calibrated in, in float64, by numpy's promotion, and by JAX.
        for decided in (
            policies.route(win_prob, threshold),
            policies.route(win_prob.astype(np.float64), threshold),
            win_prob >= threshold,
        ):
            assert decided.mean() == attained
        if win_prob.dtype == np.float32:
            assert jnp.asarray(win_prob >= threshold).mean() == pytest.approx(attained)
            assert float(np.mean(np.asarray(jnp.asarray(win_prob) >= threshold))) == attained

    def test_what_xla_flushes_to_zero_counts_as_zero(self):
        win_prob = np.array([0.0, 1e-45], np.float32)
        assert policies.threshold_for_share(win_prob, 0.5) == (float(np.finfo(np.float32).tiny), 0.0)
        assert policies.threshold_for_share(win_prob, 1.0) == (0.0, 1.0)

    def test_hand_values(self):
        win_prob = np.array([0.1, 0.4, 0.4, 0.9])
        expected = {1.0: (0.1, 1.0), 0.99: (0.4, 0.75), 0.75: (0.4, 0.75), 0.74: (0.9, 0.25), 0.25: (0.9, 0.25)}
        assert {share: policies.threshold_for_share(win_prob, share) for share in expected} == expected

    def test_nothing_to_the_strong_model(self):
        just_above = policies.threshold_for_share(np.array([0.5, 0.5]), 0.4)
        assert just_above == (np.nextafter(0.5, 1.0), 0.0)
        in_float32 = policies.threshold_for_share(np.array([0.5, 0.5], np.float32), 0.0)
        assert in_float32.threshold == np.nextafter(np.float32(0.5), np.float32(1.0))
        assert policies.threshold_for_share(np.array([0.5, 1.0]), 0.0) == (math.inf, 0.0)
        assert not policies.route(np.array([0.5, 1.0]), math.inf).any()

    def test_above_zero_is_above_zero_on_an_accelerator_too(self):
        threshold, attained = policies.threshold_for_share(np.zeros(3, np.float32), 0.5)
        assert attained == 0.0
        assert not (jnp.zeros(3) >= threshold).any()
        assert threshold >= np.finfo(np.float32).tiny

    def test_a_share_of_many_thirds_is_attained(self):
        # 1/3 computed by the caller and by a division of counts is the same number.
        assert policies.threshold_for_share(np.array([0.1, 0.2, 0.3]), 1 / 3).strong_share == 1 / 3

    @pytest.mark.parametrize(
        ("win_prob", "share", "message"),
        [
            ([0.5], 1.5, r"strong share must lie in \[0, 1\], such as 0.5; got 1.5"),
            ([0.5], math.nan, "strong share must lie in"),
            ([0.5, math.nan], 0.5, "row 1 is nan"),
            ([1.5, 0.5], 0.5, "row 0 is 1.5"),
            ([], 0.5, "non-empty vector"),
            ([0.5], "0.5", "strong share must lie in .*; got '0.5'"),
            ([0.5], None, "strong share must lie in .*; got None"),
            (["0.5"], 0.5, "win_prob must hold real numbers, got ndarray of <U3"),
            ([0.5 + 1j], 0.5, "win_prob must hold real numbers, got ndarray of complex128"),
        ],
    )
    def test_bad_input(self, win_prob, share, message):
        with pytest.raises(InputError, match=message):
            policies.threshold_for_share(np.array(win_prob), share)


class TestRoute:
    def test_the_threshold_itself_goes_to_the_strong_model(self):
        assert policies.route(jnp.array([0.25, 0.5, 0.75]), 0.5).tolist() == [False, True, True]
        assert policies.route(np.array([0.0, 1.0]), 0.0).tolist() == [True, True]
        assert policies.route(np.array([0.999, 1.0]), 1.0).tolist() == [False, True]

    def test_a_float32_probability_is_not_rounded_up_to_the_threshold(self):
        win_prob = np.array([0.1], np.float32)
        above = float(np.nextafter(float(win_prob[0]), 1.0))
        # numpy alone rounds this threshold to float32, where the two are equal.
        assert (win_prob >= above).tolist() == [True]
        assert policies.route(win_prob, above).tolist() == [False]

    @pytest.mark.parametrize("threshold", [-0.1, 1.1, math.nan, -math.inf])
    def test_bad_threshold(self, threshold):
        with pytest.raises(InputError, match=r"threshold must lie in \[0, 1\]"):
            policies.route(np.array([0.5]), threshold)

    @pytest.mark.parametrize("threshold", ["0.5", None, [0.5]])
    def test_a_threshold_is_a_number(self, threshold):
        with pytest.raises(InputError, match="threshold must lie in"):
            policies.route(np.array([0.5]), threshold)

    def test_values_under_a_mask_are_not_decided_on(self):
        with pytest.raises(InputError, match="real numbers, got MaskedArray of float64"):
            policies.route(np.ma.masked_array([0.1, 0.2], mask=[False, True]), 0.5)

    def test_narrow_types_are_numbers(self):
        assert policies.route(jnp.array([0.25, 0.75], jnp.bfloat16), 0.5).tolist() == [False, True]
        assert policies.route(np.array([False, True]), 0.5).tolist() == [False, True]

    def test_bad_win_prob(self):
        with pytest.raises(InputError, match=r"finite and lie in \[0, 1\]; row 1 is -0.5"):
            policies.route(np.array([0.5, -0.5]), 0.5)


class TestRouteByCost:
    scores = jnp.array([[2.0, 1.0, 0.0], [5.0, 1.0, 0.0], [0.0, 0.0, 0.0]])

    @pytest.mark.parametrize(
        ("cost_weight", "chosen"), [(0.0, [0, 0, 0]), (0.2, [1, 0, 2]), (0.9, [2, 2, 2]), (100.0, [2, 2, 2])]
    )
    def test_hand_values(self, cost_weight, chosen):
        cost = jnp.array([10.0, 3.0, 0.0])
        decided = policies.route_by_cost(self.scores, cost, cost_weight)
        assert decided.dtype == jnp.int32
        assert decided.tolist() == chosen
        assert jax.jit(policies.route_by_cost)(self.scores, cost, cost_weight).tolist() == chosen

    def test_cost_of_each_prompt(self):
        cost = jnp.array([[9.0, 0.0, 9.0], [0.0, 9.0, 9.0], [9.0, 9.0, 0.0]])
        assert policies.route_by_cost(self.scores, cost, 1.0).tolist() == [1, 0, 2]

    @given(st.integers(0, 10_000))
    def test_a_threshold_is_the_case_of_two_models(self, seed):
        rng = np.random.default_rng(seed)
        scores, cost = rng.normal(size=(6, 2)), rng.random(2)
        margin = scores[:, 0] - scores[:, 1]
        expected = np.where(margin >= 0.5 * (cost[0] - cost[1]), 0, 1)
        assert policies.route_by_cost(jnp.asarray(scores), jnp.asarray(cost), 0.5).tolist() == expected.tolist()

    def test_bad_shapes(self):
        with pytest.raises(InputError, match=r"got scores \(3, 3\) and cost \(2,\)"):
            policies.route_by_cost(self.scores, jnp.zeros(2), 1.0)
        with pytest.raises(InputError, match=r"got scores \(3,\) and cost \(3,\)"):
            policies.route_by_cost(self.scores[0], jnp.zeros(3), 1.0)
        with pytest.raises(InputError, match="of at least one model"):
            policies.route_by_cost(jnp.zeros((2, 0)), jnp.zeros(0), 1.0)


class TestPolicies:
    models = ("small", "medium", "big")
    scores = jnp.array([[2.0, 1.9, 0.0], [5.0, 1.0, 9.0]])

    @given(st.floats(0.0, 1.0) | st.just(math.inf), st.lists(st.floats(0.0, 1.0, width=32), max_size=6))
    def test_float32_decides_as_float64_does(self, threshold, others):
        near = np.float32(min(threshold, 1.0))
        win_prob = np.array([*others, near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(1))])
        win_prob = win_prob.astype(np.float32)
        win_prob[win_prob < np.finfo(np.float32).tiny] = 0  # as XLA gives them
        policy = policies.Threshold("big", "small", threshold)
        column = policy.choose(self.models, jnp.zeros((len(win_prob), 3)), lambda strong, weak: jnp.asarray(win_prob))
        expected = [2 if is_strong else 0 for is_strong in policies.route(win_prob, threshold)]
        assert (column.dtype, column.tolist()) == (jnp.int32, expected)

    def test_the_pair_is_the_policys_own(self):
        requested = []

        def win_prob(strong: str, weak: str) -> jax.Array:
            requested.append((strong, weak))
            return jnp.array([0.2, 0.7])

        policy = policies.Threshold("medium", "small", 0.5)
        decide = jax.jit(lambda scores: policy.choose(self.models, scores, win_prob))
        assert decide(self.scores).tolist() == [0, 1]
        assert requested == [("medium", "small")]

    def test_cost_against_score(self):
        policy = policies.CostAware({"big": 10.0, "medium": 0.0, "small": 1.0}, 0.5)
        policy.require_models(self.models)
        decide = jax.jit(lambda scores: policy.choose(self.models, scores, None))
        assert decide(self.scores).tolist() == [1, 0]

    @pytest.mark.parametrize(
        "policy",
        [
            policies.Threshold("big", "small"),
            policies.Threshold("big", "small", 0.25),
            policies.Threshold("big", "small", math.inf),
            policies.CostAware({"big": 1.5, "small": 0.0}, 2.0),
        ],
    )
    def test_what_a_router_keeps_gives_the_policy_back(self, policy):
        assert policies.read_policy(json.loads(json.dumps(policy.to_dict(), allow_nan=False))) == policy

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"name": "treshold"}, r"the policy must be one of .*got 'treshold' \(did you mean 'threshold'"),
            ({"name": "threshold", "strong": "big"}, "threshold.*weak"),
            ({"name": "threshold", "strong": "a", "weak": "a"}, "different models, got 'a' for both"),
            ({"name": "threshold", "strong": "a", "weak": "b", "threshold": 1.5}, r"must lie in \[0, 1\].* got 1.5"),
            ({"name": "threshold", "strong": "a", "weak": "b", "threshold": "half"}, "threshold"),
            ({"name": "cost_aware", "cost": {"a": 1.0}, "cost_weight": -1.0}, "cost_weight must be .* got -1.0"),
        ],
    )
    def test_bad_descriptions_are_refused_in_one_line(self, fields, message):
        with pytest.raises(InputError, match=message) as raised:
            policies.read_policy(fields)
        assert "\n" not in str(raised.value)

    def test_models_are_checked(self):
        with pytest.raises(InputError, match="'bigg' is not one of the router's 3 models"):
            policies.Threshold("bigg", "small").require_models(self.models)
        with pytest.raises(InputError, match="'large' is not one of the router's 3 models"):
            policies.CostAware({"large": 1.0}, 1.0).require_models(self.models)
        with pytest.raises(InputError, match=r"no cost of 'medium' \(2 of 3 models\)"):
            policies.CostAware({"small": 1.0}, 1.0).require_models(self.models)
        with pytest.raises(InputError, match="the cost of 'small' must be finite"):
            policies.CostAware({"small": math.nan}, 1.0)
        with pytest.raises(InputError, match="no threshold yet"):
            policies.Threshold("big", "small").choose(self.models, self.scores, lambda strong, weak: jnp.zeros(2))
