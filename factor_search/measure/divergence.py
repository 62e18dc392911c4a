"""Samples on which candidates are compared with a reference, instead of with the text."""

from dataclasses import dataclass

from factor_search.factors import Factors
from factor_search.files.canonical_json import sha256_of
from factor_search.text.samples import SampleSet


@dataclass(frozen=True)
class DivergenceSamples(SampleSet):
    """The losses of a candidate are the divergence of its predictions from those of the model with other factors.

    See :func:`factor_search.model.losses.divergences`.
    """

    reference: Factors

    def __post_init__(self) -> None:
        if any(sample.scored is not None for sample in self.samples):
            raise ValueError("a divergence is measured on all tokens")

    @property
    def sha256(self) -> str:
        """The hash of the samples' addresses, in order, and of the reference."""
        addresses = [sample.address for sample in self.samples]
        return sha256_of({"samples": addresses, "divergence_from": self.reference.as_json()})


def reference_of(samples: SampleSet) -> Factors | None:
    """Return what candidates are compared with; None where their losses are those of the text."""
    return samples.reference if isinstance(samples, DivergenceSamples) else None
