"""The decoder of causal language models: tokens to hidden states, each of which has seen the tokens before it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import spmd
from jax.extend.core import Primitive
from jaxtyping import Array, Bool, Float, Int

from routerjax.models.attention import cudnn_attention, padding_right, plain_attention
from routerjax.models.decoder_config import DecoderConfig
from routerjax.models.decoder_layers import RmsNorm, rotary_frequencies, rotate
from routerjax.models.layers import at_place, last_place
from routerjax.models.linear import FROZEN, Linear, rows_of_table, weight
from routerjax.typing import Query

REMAT_POLICIES: Mapping[str, Callable[..., bool] | None] = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": None,
}
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


class DecoderLayer(nn.Module):
    """Causal attention and a gated MLP, each on a normalised input and added to it.

    Attributes:
        config: of the decoder.
        deterministic: False drops attention weights at random.
    """

    config: DecoderConfig
    deterministic: bool

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "tokens embed"],
        window: Int[Array, ""],
        is_token: Bool[Array, "batch length"],
        angles: Sequence[tuple[Float[Array, "batch length half"], Float[Array, "batch length half"]]],
        place: Int[Array, "batch"] | None = None,
    ) -> tuple[Float[Array, "tokens embed"], None]:
        """Apply one layer to tokens that lie flat, ``[batch * length, embed]``.

        Args:
            hidden: of the layer below.
            window: tokens that each attends to, 0 for all before it.
            is_token: false on padding.
            angles: cosine and sine of the rotary positions: of layers without a window, and of those with one if they
                are others.
            place: of one token of each row, whose hidden state alone is computed, from the keys and values of all; None
                for all tokens.

        Returns:
            The hidden states, ``[batch, embed]`` where a place is given, and None, as a scan over layers takes them.
        """
        config = self.config
        hidden = spmd.with_logical_constraint(hidden, ("batch", "embed"))
        turn = jax.tree.map(functools.partial(jnp.where, window > 0), angles[-1], angles[0])
        attended = self._attention(self._norm("attention_norm")(hidden), is_token, window, turn, place)
        hidden = rows_at(hidden, place) + self._norm("attention_out_norm", config.sandwich_norms)(attended)
        hidden = hidden + self._norm("mlp_out_norm", config.sandwich_norms)(
            self._mlp(self._norm("mlp_norm")(hidden)),
        )
        return spmd.with_logical_constraint(hidden, ("batch", "embed")), None

    def _norm(self, name: str, is_there: bool = True) -> Callable[[Array], Array]:
        return rms_norm(self.config, name) if is_there else lambda hidden: hidden

    def _linear(self, name: str, features: int, axes: tuple[str, str], *, use_bias: bool) -> Linear:
        config = self.config
        return Linear(
            features,
            axes,
            use_bias=use_bias,
            frozen=config.lora_rank > 0,
            rank=config.lora_rank if name in config.lora_targets else 0,
            scale=config.lora_scale,
            initializer_range=config.initializer_range,
            dtype=config.dtype,
            param_dtype=config.param_dtype,
            name=name,
        )

    def _attention(
        self,
        hidden: Float[Array, "tokens embed"],
        is_token: Bool[Array, "batch length"],
        window: Int[Array, ""],
        angles: tuple[Array, Array],
        place: Int[Array, "batch"] | None,
    ) -> Float[Array, "tokens embed"]:
        config, batch = self.config, is_token.shape[0]

        def heads(name: str, count: int, hidden: Array) -> Float[Array, "batch length heads head_dim"]:
            linear = self._linear(name, count * config.head_dim, ("embed", "heads"), use_bias=config.qkv_bias)
            return linear(hidden).reshape(batch, -1, count, config.head_dim)

        query = heads("query", config.num_heads, rows_at(hidden, place))
        key, value = heads("key", config.num_key_heads, hidden), heads("value", config.num_key_heads, hidden)
        query_angles = angles if place is None else [at_place(each, place) for each in angles]
        query = rotate(self._norm("query_norm", config.qk_norm)(query), *query_angles)
        key = rotate(self._norm("key_norm", config.qk_norm)(key), *angles)
        if config.attention == "cudnn" and place is None:
            lengths = jnp.maximum(is_token.sum(axis=1, dtype=jnp.int32), 1)
            scale, windows = config.attention_scale, config.windows
            mixed = cudnn_attention(query, key, value, lengths, window, scale=scale, windows=windows)
        else:
            drop = nn.Dropout(config.attention_dropout_rate, deterministic=self.deterministic)
            scale = config.attention_scale
            mixed = plain_attention(query, key, value, is_token, window, scale=scale, drop=drop, place=place)
        mixed = mixed.reshape(-1, config.num_heads * config.head_dim)
        return self._linear("out", config.width, ("heads", "embed"), use_bias=config.out_bias)(mixed)

    def _mlp(self, hidden: Float[Array, "tokens embed"]) -> Float[Array, "tokens embed"]:
        config = self.config
        gate = self._linear("gate", config.mlp_dim, ("embed", "mlp"), use_bias=config.mlp_bias)(hidden)
        up = self._linear("up", config.mlp_dim, ("embed", "mlp"), use_bias=config.mlp_bias)(hidden)
        activated = ACTIVATIONS[config.activation](gate) * up
        return self._linear("down", config.width, ("mlp", "embed"), use_bias=config.mlp_bias)(activated)


class Decoder(nn.Module):
    """Token ids to hidden states, each of which depends on the tokens up to its own.

    One module is Llama 2 to 3.2, Mistral, Qwen 2, 2.5 and 3, and the text model of Gemma 3. Padding may be on the left
    or on the right of a row.

    Attributes:
        config: sizes and choices.
    """

    config: DecoderConfig

    @property
    def model_type(self) -> str:
        """Name of the architecture in ``config.json``."""
        return self.config.model_type

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return self.config.width

    @property
    def max_length(self) -> int:
        """The longest input in tokens."""
        return self.config.max_positions

    @property
    def vocab_size(self) -> int:
        """Number of tokens, those that were added included."""
        return self.config.vocab_size + self.config.added_tokens

    @property
    def padding_id(self) -> int:
        """Token that fills a row up: any, as no token attends to it."""
        return 0

    @nn.compact
    def __call__(
        self, query: Query, *, deterministic: bool = True, last_only: bool = False
    ) -> Float[Array, "batch length embed"]:
        """Read ``token_ids`` and ``attention_mask``, both int ``[batch, length]``; the mask is 0 on padding.

        Args:
            query: tokens.
            deterministic: False drops attention weights at random.
            last_only: return the hidden state of each row's last token alone, ``[batch, 1, embed]``: of the last layer,
                only keys and values are computed for all.

        Raises:
            ValueError: more tokens than the decoder has positions.
        """
        config, token_ids, is_token = self.config, query["token_ids"], query["attention_mask"] > 0
        batch, length = token_ids.shape
        if length > config.max_positions:
            raise ValueError(f"this decoder reads at most {config.max_positions} tokens, got {length}")
        moved_back = None
        if config.attention == "cudnn":
            moved, moved_back = padding_right(is_token)
            token_ids, is_token = moved(token_ids), moved(is_token)
        hidden = self._embed(token_ids).reshape(-1, config.width)
        place = last_place(is_token) if last_only else None
        if place is None or self.is_initializing():
            hidden = rows_at(self._all_layers(hidden, is_token, deterministic), place)
        else:
            hidden = self._layers_to_one_token(hidden, is_token, place, deterministic)
        if config.final_norm:
            hidden = rms_norm(config, "final_norm")(hidden)
        hidden = hidden.reshape(batch, -1, config.width)
        return hidden if last_only or moved_back is None else moved_back(hidden)

    def _all_layers(
        self, hidden: Float[Array, "tokens embed"], is_token: Bool[Array, "batch length"], deterministic: bool
    ) -> Float[Array, "tokens embed"]:
        config, layer_class = self.config, DecoderLayer
        if config.remat:
            layer_class = nn.remat(DecoderLayer, prevent_cse=False, policy=REMAT_POLICIES[config.remat_policy])
        in_axes: Any = (0, nn.broadcast, nn.broadcast)
        scan = nn.scan(
            layer_class,
            variable_axes={"params": 0, FROZEN: 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=in_axes,
            length=config.num_layers,
            unroll=min(config.unroll, config.num_layers),
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        windows = jnp.asarray(config.windows, jnp.int32)
        return scan(config, deterministic, name="layers")(hidden, windows, is_token, self._angles(is_token))[0]

    def _layers_to_one_token(
        self,
        hidden: Float[Array, "tokens embed"],
        is_token: Bool[Array, "batch length"],
        place: Int[Array, "batch"],
        deterministic: bool,
    ) -> Float[Array, "batch embed"]:
        """Apply all layers, of which the last one for one token of each row.

        Each layer reads its own part of the stacked weights, which are not split for the loop: that would copy them.
        """
        config, angles, top = self.config, self._angles(is_token), self.config.num_layers - 1
        of_layers = {name: self.variables.get(name, {}).get("layers", {}) for name in ("params", FROZEN)}
        leaves, tree = jax.tree.flatten(nn.meta.unbox(of_layers))
        stacked, last = map(tree.unflatten, zip(*map(last_apart, leaves), strict=True))
        windows = jnp.asarray(config.windows, jnp.int32)
        drops = config.attention_dropout_rate > 0 and not deterministic
        keys = jax.random.split(self.make_rng("dropout"), config.num_layers) if drops else None
        policy = REMAT_POLICIES[config.remat_policy] if config.remat else all_but_slices

        @functools.partial(jax.checkpoint, prevent_cse=False, policy=policy)
        def layer(hidden: Array, index: Array, place: Array | None) -> Array:
            part = functools.partial(jax.lax.dynamic_index_in_dim, index=index, keepdims=False)
            variables = jax.tree.map(part, stacked) if place is None else last
            rngs = {} if keys is None else {"dropout": keys[index]}
            one = DecoderLayer(config, deterministic, parent=None)
            return one.apply(variables, hidden, windows[index], is_token, angles, place, rngs=rngs)[0]

        if top:
            hidden, _ = jax.lax.scan(
                lambda hidden, index: (layer(hidden, index, None), None),
                hidden,
                jnp.arange(top),
                unroll=min(config.unroll, top),
            )
        return layer(hidden, jnp.asarray(top), place)

    def _embed(self, token_ids: Int[Array, "batch length"]) -> Float[Array, "batch length embed"]:
        config = self.config
        table = weight(
            self,
            "token_embedding",
            nn.initializers.normal(config.initializer_range),
            ("vocab", "embed"),
            (config.vocab_size, config.width),
            dtype=config.param_dtype,
            frozen=config.lora_rank > 0,
        )
        rows = functools.partial(rows_of_table, dtype=config.dtype)
        if config.added_tokens:
            shape, axes = (config.added_tokens, config.width), ("added", "embed")
            normal = nn.initializers.normal(config.initializer_range)
            added = weight(self, "added_embedding", normal, axes, shape, dtype=config.param_dtype, frozen=False)
            is_added = (token_ids >= config.vocab_size)[..., None]
            place, known = jnp.maximum(token_ids - config.vocab_size, 0), jnp.minimum(token_ids, config.vocab_size - 1)
            hidden = jnp.where(is_added, rows(added, place), rows(table, known))
        else:
            hidden = rows(table, token_ids)
        return hidden * jnp.asarray(config.width**0.5, config.dtype) if config.scale_embeddings else hidden

    def _angles(self, is_token: Bool[Array, "batch length"]) -> list[tuple[Array, Array]]:
        """Cosine and sine of the rotary positions: of layers that attend to all, and of those that have a window."""
        config = self.config
        frequencies = [rotary_frequencies(config.head_dim, config.rope_base, config.rope_scaling)]
        if config.rope_local_base:
            frequencies.append(rotary_frequencies(config.head_dim, config.rope_local_base))
        # Counted over tokens, so that padding on the left changes nothing.
        position = jnp.maximum(jnp.cumsum(is_token, axis=1) - 1, 0).astype(jnp.float32)
        turns = [position[:, :, None] * each[None, None] for each in frequencies]
        return [(jnp.cos(turn), jnp.sin(turn)) for turn in turns]


def all_but_slices(primitive: Primitive, *_: object, **__: object) -> bool:
    """Policy that keeps all for the backward pass but parts of stacked weights, which would be a copy of all layers."""
    return primitive.name not in ("dynamic_slice", "squeeze")


@jax.custom_vjp
def last_apart(stacked: Float[Array, "layers *shape"]) -> tuple[Float[Array, "layers *shape"], Float[Array, "*shape"]]:
    """A weight of all layers, and its part of the last one, whose gradient is written into that of all, not added."""
    return stacked, stacked[-1]


last_apart.defvjp(
    lambda stacked: (last_apart(stacked), None),
    lambda _, gradients: (gradients[0].at[-1].set(gradients[1]),),
)


def rows_at(hidden: Float[Array, "tokens embed"], place: Int[Array, "batch"] | None) -> Float[Array, "rows embed"]:
    """Rows of one token each, of tokens that lie flat; all where no place is given."""
    if place is None:
        return hidden
    rows = at_place(hidden.reshape(place.shape[0], -1, hidden.shape[-1]), place)[:, 0]
    return spmd.with_logical_constraint(rows, ("batch", "embed"))


def rms_norm(config: DecoderConfig, name: str) -> RmsNorm:
    """RMS norm of a decoder."""
    return RmsNorm(config.norm_epsilon, config.norm_offset, config.param_dtype, config.lora_rank > 0, name=name)
