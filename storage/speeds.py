"""How fast models were evaluated, by what workers have measured and by jobs that have finished."""

from dataclasses import dataclass
from typing import Any

from storage.evaluations import EvaluationStore
from storage.jobs import JobStore


@dataclass(frozen=True)
class RecordedSpeeds:
    """See :class:`factor_search.model.speed.Recorded`."""

    evaluations: EvaluationStore
    jobs: JobStore

    def speed(self, key: str) -> Any:
        """What a worker measured of models of a size, as JSON, or None."""
        return self.evaluations.speed_of(key)

    def pace(self, model: str) -> tuple[int, float] | None:
        """Length, and seconds a token, of an earlier job with a model, or None."""
        return self.jobs.pace_of(model)
