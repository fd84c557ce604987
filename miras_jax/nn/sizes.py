"""The paper's model sizes (Miras Table 5) as configurations.

The paper gives blocks, width and heads of the first three and a peak learning rate each; it leaves
out the width of the SwiGLU, whether embeddings are tied, and the shape of the 1.3B model. Here the
vocabulary is 32,000 (Llama 2's, as in Titans), and the SwiGLU takes what is left of the parameters
named, which comes to between 2.2 and 4 times the width.

The names hold, within 3%, for the paper's three models, which also get rotary positions here, as do
their hybrids. Other models have the same width, depth and SwiGLU with the layer and the rotary
positions of the zoo, and with them their own number of parameters. Of "340m", 343M in `yaad`: the
transformer has 303M, the hybrids 323M, RetNet 404M, `titans_mag` and `titans_mal` 444M,
`titans_mac` 494M. `equal_parameters` gives any model the parameters of another by its SwiGLU.
"""

import dataclasses
from functools import partial

import jax
from flax import nnx

from miras_jax.nn.config import ModelConfig
from miras_jax.nn.model import LanguageModel

ROTARY = ("moneta", "yaad", "memora", "moneta_h", "yaad_h", "memora_h")
"""The models of the paper."""


def _size(memory: str, *, dim: int, depth: int, heads: int, ff_dim: int, tie: bool) -> ModelConfig:
    return ModelConfig(
        memory=memory,
        vocab_size=32_000,
        dim=dim,
        depth=depth,
        heads=heads,
        ff_dim=ff_dim,
        rotary=True if memory in ROTARY else None,
        tie_embeddings=tie,
        dtype="bfloat16",
    )


SIZES = {
    "170m": partial(_size, dim=768, depth=12, heads=16, ff_dim=3072, tie=False),
    "340m": partial(_size, dim=1024, depth=24, heads=16, ff_dim=2304, tie=True),
    "780m": partial(_size, dim=1536, depth=24, heads=16, ff_dim=3840, tie=True),
    "1300m": partial(_size, dim=2048, depth=24, heads=16, ff_dim=4608, tie=True),
}
"""By name, a function from a memory's name to the configuration: `SIZES["340m"]("yaad")`."""


def parameters(config: ModelConfig) -> int:
    """Parameters of the model; makes none of them."""
    build = jax.eval_shape(lambda key: LanguageModel(config, rngs=nnx.Rngs(key)), jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(build))


def equal_parameters(config: ModelConfig, count: int, multiple: int = 128) -> ModelConfig:
    """The same model with the width of its SwiGLU chosen for about `count` parameters.

    Args:
      config: any model; what stands in its `ff_dim` does not matter.
      count: parameters to come close to.
      multiple: of which the width shall be one; accelerators like 128.

    Raises:
      ValueError: the rest of the model alone has more.
    """
    narrow, wide = (
        parameters(dataclasses.replace(config, ff_dim=width)) for width in (multiple, 2 * multiple)
    )
    width = multiple * (1 + round((count - narrow) / (wide - narrow)))
    if width < multiple:
        raise ValueError(
            f"{config.memory} of width {config.dim} and depth {config.depth} has {narrow:,} "
            f"parameters with a SwiGLU of width {multiple}, more than {count:,}: make it shallower."
        )
    return dataclasses.replace(config, ff_dim=width)
