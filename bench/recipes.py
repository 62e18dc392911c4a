"""Recipes of the small models on which strategies are compared.

Strategies were designed on the ``develop`` models; the ``judge`` models were not used before the settings were fixed.
Judges that nobody has looked at are drawn from a seed: :mod:`bench.fresh`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from factor_search.testbed.train import END_OF_TEXT_ID

ARCHITECTURES: dict[str, Callable[..., PreTrainedModel]] = {
    "llama": lambda **settings: LlamaForCausalLM(LlamaConfig(**settings)),
    "qwen3": lambda **settings: Qwen3ForCausalLM(Qwen3Config(**settings)),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A model, its training texts, and the length of its training."""

    name: str
    role: str
    """``develop`` or ``judge``."""
    architecture: str
    text: str
    context: int
    target: int
    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    rope_theta: float
    steps: int
    batch_tokens: int = 16_384
    seed: int = 0

    def build(self) -> PreTrainedModel:
        """The model, randomly initialised."""
        return ARCHITECTURES[self.architecture](
            vocab_size=257,
            hidden_size=self.hidden,
            intermediate_size=3 * self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            head_dim=self.head_dim,
            max_position_embeddings=self.context,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            tie_word_embeddings=True,
            bos_token_id=END_OF_TEXT_ID,
            eos_token_id=END_OF_TEXT_ID,
            dtype="float32",
        )


SHIPPED = "shipped"
"""The architecture of recipes that stand for the model of the package, which is trained already."""
RECIPES = {
    recipe.name: recipe
    for recipe in (
        *(
            Recipe(
                name=f"shipped-{scale}x",
                role="develop",
                architecture=SHIPPED,
                text="python",
                context=256,
                target=256 * scale,
                hidden=256,
                layers=4,
                heads=4,
                key_value_heads=2,
                head_dim=64,
                rope_theta=10_000.0,
                steps=0,
            )
            for scale in (4, 8)
        ),
        Recipe(
            name="docs-64",
            role="develop",
            architecture="llama",
            text="docstrings",
            context=256,
            target=1024,
            hidden=192,
            layers=3,
            heads=3,
            key_value_heads=3,
            head_dim=64,
            rope_theta=10_000.0,
            steps=900,
        ),
        Recipe(
            name="headers-32",
            role="develop",
            architecture="qwen3",
            text="headers",
            context=128,
            target=1024,
            hidden=128,
            layers=4,
            heads=4,
            key_value_heads=2,
            head_dim=32,
            rope_theta=100_000.0,
            steps=1200,
        ),
        Recipe(
            name="books-64",
            role="develop",
            architecture="qwen3",
            text="books",
            context=256,
            target=1024,
            hidden=128,
            layers=4,
            heads=4,
            key_value_heads=2,
            head_dim=64,
            rope_theta=10_000.0,
            steps=700,
        ),
        Recipe(
            name="python-32",
            role="develop",
            architecture="llama",
            text="python",
            context=128,
            target=1024,
            hidden=192,
            layers=3,
            heads=6,
            key_value_heads=6,
            head_dim=32,
            rope_theta=10_000.0,
            steps=700,
        ),
        Recipe(
            name="docs-128",
            role="judge",
            architecture="llama",
            text="docstrings",
            context=256,
            target=1536,
            hidden=192,
            layers=3,
            heads=2,
            key_value_heads=1,
            head_dim=128,
            rope_theta=500_000.0,
            steps=600,
            seed=1,
        ),
        Recipe(
            name="headers-64",
            role="develop",
            architecture="qwen3",
            text="headers",
            context=256,
            target=1024,
            hidden=128,
            layers=4,
            heads=2,
            key_value_heads=1,
            head_dim=64,
            rope_theta=500_000.0,
            steps=700,
        ),
        Recipe(
            name="python-64",
            role="develop",
            architecture="llama",
            text="python",
            context=192,
            target=1152,
            hidden=192,
            layers=3,
            heads=3,
            key_value_heads=1,
            head_dim=64,
            rope_theta=10_000.0,
            steps=700,
            seed=2,
        ),
        Recipe(
            name="books-32",
            role="develop",
            architecture="qwen3",
            text="books",
            context=128,
            target=1024,
            hidden=128,
            layers=4,
            heads=4,
            key_value_heads=4,
            head_dim=32,
            rope_theta=10_000.0,
            steps=300,
            seed=3,
        ),
        Recipe(
            name="python-128",
            role="judge",
            architecture="llama",
            text="python",
            context=256,
            target=1024,
            hidden=192,
            layers=3,
            heads=2,
            key_value_heads=2,
            head_dim=128,
            rope_theta=50_000.0,
            steps=300,
            seed=4,
        ),
        Recipe(
            name="docs-16x",
            role="develop",
            architecture="llama",
            text="docstrings",
            context=128,
            target=2048,
            hidden=192,
            layers=3,
            heads=3,
            key_value_heads=3,
            head_dim=64,
            rope_theta=10_000.0,
            steps=600,
            seed=5,
        ),
        Recipe(
            name="docs-16x-small",
            role="develop",
            architecture="llama",
            text="docstrings",
            context=128,
            target=2048,
            hidden=96,
            layers=2,
            heads=3,
            key_value_heads=3,
            head_dim=64,
            rope_theta=10_000.0,
            steps=600,
            seed=5,
        ),
        Recipe(
            name="python-32x",
            role="develop",
            architecture="qwen3",
            text="python",
            context=64,
            target=2048,
            hidden=192,
            layers=3,
            heads=3,
            key_value_heads=1,
            head_dim=64,
            rope_theta=500_000.0,
            steps=500,
            seed=6,
        ),
        Recipe(
            name="headers-64x",
            role="develop",
            architecture="llama",
            text="headers",
            context=64,
            target=4096,
            hidden=192,
            layers=3,
            heads=6,
            key_value_heads=2,
            head_dim=32,
            rope_theta=10_000.0,
            steps=500,
            seed=7,
        ),
        Recipe(
            name="python-512",
            role="develop",
            architecture="llama",
            text="python",
            context=512,
            target=4096,
            hidden=192,
            layers=3,
            heads=3,
            key_value_heads=3,
            head_dim=64,
            rope_theta=10_000.0,
            steps=600,
            seed=8,
        ),
    )
}
