"""Search for non-uniform RoPE rescale factors that extend a language model's context window.

::

    import factor_search as fs

    result = fs.search_factors(model="path/or/hub-id", data="books/*.txt", target_length=32768, out="results")
    print(result.table())
    with fs.apply(model, fs.load_factors("results/factors.json")):
        model.generate(...)

The functions are imported from :mod:`factor_search.interface` when they are first used: importing the package, or one
of its value types, loads neither torch nor transformers.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from factor_search.version import __version__

if TYPE_CHECKING:
    from factor_search.factors import Factors
    from factor_search.factors_file import FactorsFile
    from factor_search.interface import (
        SearchResult,
        apply,
        apply_factors,
        evaluate_factors,
        export_factors,
        import_factors,
        load_factors,
        notebook_watcher,
        save_factors,
        search_factors,
        verify_factors,
    )

__all__ = [
    "Factors",
    "FactorsFile",
    "SearchResult",
    "__version__",
    "apply",
    "apply_factors",
    "evaluate_factors",
    "export_factors",
    "import_factors",
    "load_factors",
    "notebook_watcher",
    "save_factors",
    "search_factors",
    "verify_factors",
]
_VALUES = {"Factors": "factor_search.factors", "FactorsFile": "factor_search.factors_file"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with warnings.catch_warnings():  # of tqdm in notebooks, about bars that are not shown
        warnings.filterwarnings("ignore", message="IProgress not found")
        return getattr(importlib.import_module(_VALUES.get(name, "factor_search.interface")), name)
