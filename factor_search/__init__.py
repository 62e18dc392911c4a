"""Search for non-uniform RoPE rescale factors that extend a language model's context window."""

from factor_search.version import __version__

__all__ = ["__version__"]
