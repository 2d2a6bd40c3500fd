"""Matrix factorisation: a bilinear score of a prompt embedding and a learned model embedding."""

from __future__ import annotations

from typing import Annotated, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from annotated_types import Interval
from jaxtyping import Array, Float

from routerjax.config import NonNegative
from routerjax.models.flops import Flops
from routerjax.models.layers import unit_length
from routerjax.typing import Query, Variables


class MatrixFactorization(nn.Module):
    """``score_m(q) = w2 . (v_m * (W1' v_q + b))``.

    v_q is the prompt's frozen embedding, v_m the model's learned one. The defaults are the paper's form. The published
    code differs: ``bias=False, normalize_models=True, noise_std=0.1``.

    Attributes:
        num_models: columns of the scores.
        model_dim: width of a model's embedding, at most 65,536.
        bias: add a bias to the projection of the prompt.
        normalize_models: scale each v_m to unit length.
        noise_std: standard deviation of Gaussian noise on v_q, from the rng stream ``noise``, when not deterministic.

    Reference:
        RouteLLM (arXiv 2406.18665), section 4.1; ``routellm/routers/matrix_factorization`` in its code.
    """

    num_models: int
    model_dim: Annotated[int, Interval(ge=1, le=2**16)] = 128
    bias: bool = True
    normalize_models: bool = False
    noise_std: NonNegative = 0.0

    @nn.compact
    def __call__(self, query: Query, *, deterministic: bool = True) -> Float[Array, "batch models"]:
        """Score every model on every query.

        Args:
            query: ``embedding`` float ``[batch, embed]``.
            deterministic: True scores; False adds the noise of training.
        """
        prompt_embedding = query["embedding"]
        if self.noise_std > 0 and not deterministic:
            noise = jax.random.normal(self.make_rng("noise"), prompt_embedding.shape, prompt_embedding.dtype)
            prompt_embedding = prompt_embedding + self.noise_std * noise
        initializer = nn.initializers.normal(self.model_dim**-0.5)
        model_embedding = cast(
            Array,
            self.param(
                "model_embedding",
                nn.with_logical_partitioning(initializer, ("models", "model_dim")),
                (self.num_models, self.model_dim),
            ),
        )
        if self.normalize_models:
            model_embedding = unit_length(model_embedding)
        projected = nn.Dense(
            self.model_dim,
            use_bias=self.bias,
            kernel_init=nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", "model_dim")),
            bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), ("model_dim",)),
            name="prompt_projection",
        )(prompt_embedding)
        classifier = cast(
            Array,
            self.param("classifier", nn.with_logical_partitioning(initializer, ("model_dim",)), (self.model_dim,)),
        )
        return projected @ (model_embedding * classifier[None, :]).T

    @property
    def compute_dtype(self) -> jnp.dtype:
        """Type of the matmuls."""
        return jnp.dtype("float32")

    @nn.nowrap
    def training_flops(self, trained: Variables, fixed: Variables, *, rows: int, length: int) -> Flops:
        """Count the operations of the loss of ``rows`` embeddings and of its gradient, see :class:`Flops`."""
        del fixed, length
        params = trained["params"]
        projection, scores = (
            2 * rows * leaf.size for leaf in (params["prompt_projection"]["kernel"], params["model_embedding"])
        )
        return Flops(projection + scores, projection + 2 * scores, 0)  # embeddings have no gradient
