"""Whether a job fits into the cluster, checked before anything is loaded."""

from factor_search.errors import FactorSearchError
from factor_search.spec import JobSpec
from workers.backend import Capacity


class CapacityError(FactorSearchError):
    """The job needs more workers or GPUs than there are."""


def missing_capacity(spec: JobSpec, capacity: Capacity) -> str | None:
    """What a job needs and the cluster does not have, in one line; None if the job can start."""
    workers, gpus = spec.resources.workers, spec.resources.gpus
    if workers * gpus > capacity.gpus:
        return f"needs {_count(workers * gpus, 'GPU')}, the cluster has {capacity.gpus:g}"
    if gpus > capacity.gpus_each:
        return f"needs {_count(gpus, 'GPU')} for each worker, workers here have {capacity.gpus_each:g}"
    if spec.model.device.startswith("cuda") and not capacity.gpus_each:
        return "needs a GPU (model.device), workers here have none"
    if workers > capacity.workers:
        return (
            f"needs {_count(workers, 'worker')}, the cluster has room for {capacity.workers} "
            f"({_count(capacity.cpus, 'CPU core')}, {_count(capacity.gpus, 'GPU')}, {_count(capacity.nodes, 'node')})"
        )
    return None


def _count(number: float, what: str) -> str:
    return f"{number:g} {what}" + ("" if number == 1 else "s")
