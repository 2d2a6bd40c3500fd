"""The BERT family as routers: sizes, padding, gradients, and the forms that must compute the same."""

import functools

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from routerjax import losses, models


def tiny(model_type: str = "bert", **attributes) -> models.BertEncoder:
    of_type = {"num_token_types": 0} if model_type in ("distilbert", "mpnet") else {}
    of_type |= {"padding_id": 1} if model_type not in ("bert", "distilbert") else {}
    sizes = {"vocab_size": 50, "width": 16, "num_layers": 1, "num_heads": 4, "mlp_dim": 32, "max_positions": 20}
    return models.BertEncoder(**{**sizes, **of_type, "model_type": model_type, **attributes})


def query(*, length: int = 12, padding_id: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    token_ids, mask = np.full((3, length), padding_id, np.int32), np.zeros((3, length), np.int32)
    for row, count in enumerate((2, 7, 12)):
        token_ids[row, :count], mask[row, :count] = rng.integers(4, 50, 12)[:count], 1
    return {"token_ids": token_ids, "attention_mask": mask}


def initial(module: nn.Module, inputs: dict | None = None) -> dict:
    """Random parameters, biases too, in the module's form; drawn by numpy, which compiles nothing."""
    rng = np.random.default_rng(0)
    shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), inputs or query()))["params"]
    return jax.tree.map(lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(leaf.dtype), shapes)


def scores_of(module: nn.Module, params: dict, inputs: dict) -> jax.Array:
    return jax.jit(module.apply)({"params": params}, inputs)


def loss_of(scores: jax.Array) -> jax.Array:
    return losses.bradley_terry(scores[:, 0] - scores[:, 1], jnp.asarray([1.0, 0.0, 0.7])).mean()


def loss(module: nn.Module, params: dict, **arguments) -> jax.Array:
    return loss_of(module.apply({"params": params}, query(), **arguments))


def training_loss(module: nn.Module, params: dict, stream: str, key: jax.Array) -> jax.Array:
    return loss(module, params, deterministic=False, rngs={stream: key})


@pytest.mark.parametrize(
    ("encoder", "parameters"),
    [
        # As transformers counts them: BertForSequenceClassification of bert-base-uncased with two labels, and
        # XLMRobertaForSequenceClassification of xlm-roberta-base with three.
        ({"vocab_size": 30522, "max_positions": 512}, 109_483_778),
        (
            {
                **{"model_type": "xlm-roberta", "vocab_size": 250_002, "max_positions": 514},
                **{"padding_id": 1, "num_token_types": 1},
            },
            278_045_955,
        ),
    ],
)
def test_full_size_has_the_published_number_of_parameters(encoder: dict, parameters: int) -> None:
    base = models.BertEncoder(width=768, num_layers=12, num_heads=12, mlp_dim=3072, **encoder)
    assert base.max_length == 512
    router = models.BertRouter(base, num_models=3 if base.model_type == "xlm-roberta" else 2)
    full = {name: jax.ShapeDtypeStruct((4, 512), jnp.int32) for name in ("token_ids", "attention_mask")}
    scores, variables = jax.eval_shape(functools.partial(router.init_with_output, jax.random.key(0)), full)
    assert scores.shape == (4, router.num_models)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == parameters
    boxes = jax.tree.leaves(variables, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))
    assert all(len(box.names) == len(box.value.shape) and all(box.names) for box in boxes)


@pytest.mark.parametrize(
    ("model_type", "head"),
    [("bert", "architecture"), ("xlm-roberta", "architecture"), ("distilbert", "linear"), ("mpnet", "mean")],
)
def test_padding_and_what_stands_under_it_change_nothing(model_type: str, head: str) -> None:
    router = models.BertRouter(tiny(model_type), num_models=4, head=head)
    params = initial(router)
    scores = scores_of(router, params, query())
    assert scores.shape == (3, 4)
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores_of(router, params, query(length=17, padding_id=9)), scores, atol=2e-5)
    alone = {name: leaf[1:2, :7] for name, leaf in query().items()}
    np.testing.assert_allclose(scores_of(router, params, alone)[0], scores[1], atol=2e-5)


@pytest.mark.parametrize(
    ("model_type", "head"), [("bert", "mean"), ("roberta", "architecture"), ("distilbert", "architecture")]
)
def test_one_step_of_training_changes_every_parameter(model_type: str, head: str) -> None:
    router = models.BertRouter(tiny(model_type), num_models=2, head=head)
    params = initial(router)
    rngs = {"dropout": jax.random.key(1)}

    @jax.jit
    def step(params: dict) -> dict:
        gradient = jax.grad(functools.partial(loss, router, deterministic=False, rngs=rngs))(params)
        return jax.tree.map(jnp.subtract, params, gradient)

    stepped = jax.device_get(step(params))
    params = jax.device_get(params)

    def moved(path: tuple, before: jax.Array, after: jax.Array) -> None:
        name = jax.tree_util.keystr(path)
        # The softmax over the keys does not see their bias: its gradient is zero but for rounding.
        expected = name.endswith("['key']['bias']")
        assert (np.abs(after - before).max() < 1e-5) == expected, name

    jax.tree_util.tree_map_with_path(moved, params, stepped)


@pytest.fixture(scope="module")
def plain() -> tuple[dict, jax.Array, dict]:
    """Parameters of two layers in the plain form, their loss and its gradient; of MPNet, whose layers share a table."""
    router = models.BertRouter(tiny("mpnet", num_layers=2), num_models=2)
    params = initial(router)
    return params, *jax.jit(jax.value_and_grad(functools.partial(loss, router)))(params)


@pytest.mark.parametrize("form", [{"remat": True}, {"scan_layers": True}])
def test_remat_and_scan_compute_the_same_values_and_gradients(form: dict, plain: tuple) -> None:
    params, expected, expected_gradient = plain
    other = models.BertRouter(tiny("mpnet", num_layers=2, **form), num_models=2)
    scans = form.get("scan_layers", False)

    def converted(tree: dict, convert) -> dict:
        return {**tree, "encoder": convert(tree["encoder"])} if scans else tree

    stack, unstack = jax.jit(models.stack_layers), jax.jit(models.unstack_layers)
    same = converted(params, stack)
    assert jax.tree.map(jnp.shape, initial(other)) == jax.tree.map(jnp.shape, same)
    jax.tree.map(np.testing.assert_array_equal, converted(same, unstack), params)
    value, gradient = jax.jit(jax.value_and_grad(functools.partial(loss, other)))(same)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, converted(gradient, unstack), expected_gradient)
    if scans:
        boxed = jax.eval_shape(other.init, jax.random.key(0), query())["params"]["encoder"]["layers"]
        assert boxed["mlp_in"]["kernel"].names == ("layers", "embed", "mlp")


def test_hidden_and_attention_dropout_each_act_in_training_alone() -> None:
    form = {"num_layers": 2, "remat": True, "scan_layers": True}
    for rates in ({"dropout_rate": 0.5}, {"attention_dropout_rate": 0.5}):
        encoder = tiny(**{"dropout_rate": 0.0, "attention_dropout_rate": 0.0, **rates, **form})
        router = models.BertRouter(encoder, num_models=2, dropout_rate=0.0)
        params = initial(router)
        noisy = jax.jit(functools.partial(training_loss, router, params, "dropout"))
        one, two, again = (np.asarray(noisy(jax.random.key(seed))) for seed in (1, 2, 1))
        clean = np.asarray(jax.jit(functools.partial(loss, router))(params))
        assert one == again
        assert min(abs(one - clean), abs(two - clean), abs(one - two)) > 1e-4


def test_the_mean_of_attention_dropout_is_no_dropout() -> None:
    attention = models.layers.SelfAttention(2, dropout_rate=0.3, initializer_range=0.5)
    rng, is_token = np.random.default_rng(0), (np.arange(10) < 7)[None]
    hidden = rng.standard_normal((10, 8), np.float32)
    shapes = nn.meta.unbox(jax.eval_shape(attention.init, jax.random.key(1), hidden, is_token))
    variables = jax.tree.map(lambda leaf: 0.5 * rng.standard_normal(leaf.shape, leaf.dtype), shapes)

    @jax.jit
    def draw(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        apply = functools.partial(attention.apply, variables, hidden, is_token)
        drawn = jax.vmap(lambda key: apply(deterministic=False, rngs={"dropout": key}))(keys)
        return apply(), drawn

    clean, drawn = jax.device_get(draw(jax.random.split(jax.random.key(2), 2_000)))
    error = np.abs(drawn.mean(axis=0) - clean)
    assert (error < 6 * drawn.std(axis=0) / 2_000**0.5 + 1e-5).all()
    assert drawn.std(axis=0).max() > 0.1


def test_bfloat16_is_close_and_keeps_float32_parameters() -> None:
    exact = models.BertRouter(tiny(), num_models=2)
    rounded = models.BertRouter(tiny(dtype=jnp.dtype("bfloat16")), num_models=2)
    params = initial(exact)
    assert {leaf.dtype for leaf in jax.tree.leaves(initial(rounded))} == {jnp.dtype("float32")}
    difference = np.abs(np.asarray(scores_of(rounded, params, query())) - scores_of(exact, params, query()))
    assert 1e-6 < difference.max() < 0.05


def test_an_input_that_is_too_long_is_refused() -> None:
    encoder = tiny("roberta")
    assert encoder.max_length == 18
    with pytest.raises(ValueError, match="at most 18 tokens, got 19"):
        jax.eval_shape(encoder.init, jax.random.key(0), {name: leaf for name, leaf in query(length=19).items()})


def test_embed_then_is_its_two_parts() -> None:
    embedding = models.SentenceEmbedding(tiny(dropout_rate=0.5))
    head = models.MatrixFactorization(num_models=3, model_dim=8, noise_std=0.5)
    both = models.EmbedThen(embedding, head)
    params = initial(both)

    def in_two_parts(tree: dict) -> jax.Array:
        vectors = embedding.apply({"params": tree["encoder"]}, query())
        return head.apply({"params": tree["head"]}, {"embedding": vectors})

    @functools.partial(jax.grad, has_aux=True)
    def whole(tree: dict) -> tuple[jax.Array, jax.Array]:
        scores = both.apply({"params": tree}, query())
        return loss_of(scores), scores

    # In one program, which takes half as long to compile as one for each.
    expected, (gradient, scores) = jax.jit(lambda tree: (in_two_parts(tree), whole(tree)))(params)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert np.abs(gradient["encoder"]["encoder"]["token_embedding"]).max() > 0
    assert np.abs(gradient["head"]["model_embedding"]).max() > 0
    # Each part is told that it is in training.
    for given, missing in (("dropout", "noise"), ("noise", "dropout")):
        with pytest.raises(flax.errors.InvalidRngError, match=missing):
            jax.eval_shape(functools.partial(training_loss, both, params, given), jax.random.key(0))


class PromptIdentity(nn.Module):
    """Scores that are the prompt's identity."""

    num_models: int = 2

    @nn.compact
    def __call__(self, query, *, deterministic=True):
        return query["prompt_id"].astype(jnp.float32)


def test_embed_then_passes_the_prompts_identity_on() -> None:
    prompt_id = np.arange(6, dtype=np.uint32).reshape(3, 2)
    both = models.EmbedThen(models.SentenceEmbedding(tiny()), PromptIdentity())
    inputs = {**query(), "prompt_id": prompt_id}
    np.testing.assert_array_equal(scores_of(both, initial(both, inputs), inputs), prompt_id)
