"""Workers as Ray actors, on a private Ray instance or on a cluster that is joined by its address."""

import contextlib
import logging
import random
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import ray
import torch
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from factor_search.errors import FactorSearchError, one_line
from factor_search.factors import Factors
from factor_search.measure.evaluation import Evaluation
from factor_search.measure.race import Race
from factor_search.spec import JobSpec
from factor_search.text.samples import Samples, SampleSet
from workers.backend import Capacity, Reading, SharedSamples, WorkerGoneError, WorkerOutOfMemoryError
from workers.model_worker import LongTaskCall, ModelWorker, Prepared, Setting
from workers.policy import Policy
from workers.ray_environment import ClusterError, check_reachable

WATCH = "watch"
MEMORY = ("memory", "object_store_memory")
"""Resources of a node that together are what was available when it started; the second is hardly used."""


class ActorMethods:
    """The methods that an actor adds to a worker; samples come from Ray's object store on first use."""

    def evaluate_shared(
        self: Any,
        setting: Setting,
        factors: Factors,
        sha256: str,
        reference: list[Any],
        race: Race | None,
        known: Evaluation | None,
    ) -> Evaluation:
        """Evaluate a candidate; the reference is in a list so that Ray does not resolve it with each call."""
        if not self.knows(sha256):
            self.learn(sha256, ray.get(reference[0]))
        evaluation: Evaluation = self.evaluate(setting, factors, sha256, race=race, known=known)
        return evaluation

    @ray.method(concurrency_group=WATCH)
    def watch_long_task(self: Any) -> dict[str, Any] | None:
        """The last progress report of a long-running task, answered while the task runs."""
        progress: dict[str, Any] | None = self.progress()
        return progress

    @ray.method(concurrency_group=WATCH)
    def watch(self: Any) -> list[float]:
        """The losses so far, answered while a candidate is evaluated."""
        losses: list[float] = self.losses_so_far()
        return losses

    @ray.method(concurrency_group=WATCH)
    def watch_memory(self: Any) -> int | None:
        """The most memory so far, answered while a candidate is evaluated."""
        peak: int | None = self.peak_memory()
        return peak


class RayModelWorker(ActorMethods, ModelWorker):
    """The worker of a service."""


class RayWorker:
    """The handle of one actor. Ray never restarts it: the pool replaces it, because it knows the actor's work."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def name(self) -> "Future[str]":
        """Resolves when the actor is up."""
        return _future(self._actor.name.remote())

    def prepare(self, spec: JobSpec, samples: Samples | None, begun: Mapping[str, str] | None) -> "Future[Prepared]":
        """See the protocol."""
        return _future(self._actor.prepare.remote(spec, samples, begun))

    def load(self, setting: Setting) -> "Future[None]":
        """See the protocol."""
        return _future(self._actor.load.remote(setting))

    def evaluate(
        self,
        setting: Setting,
        factors: Factors,
        samples: SharedSamples,
        *,
        race: Race | None = None,
        known: Evaluation | None = None,
    ) -> "Future[Evaluation]":
        """See the protocol."""
        remote = self._actor.evaluate_shared.remote
        return _future(remote(setting, factors, samples.sha256, samples.reference, race, known))

    def losses_so_far(self) -> "Future[list[float]]":
        """See the protocol."""
        return _future(self._actor.watch.remote())

    def peak_memory(self) -> "Future[int | None]":
        """See the protocol."""
        return _future(self._actor.watch_memory.remote())

    def run_long_task(self, call: LongTaskCall) -> "Future[Any]":
        """See the protocol."""
        return _future(self._actor.run_long_task.remote(call))

    def progress(self) -> "Future[dict[str, Any] | None]":
        """See the protocol."""
        return _future(self._actor.watch_long_task.remote())

    def kill(self) -> None:
        """End the actor's process."""
        with contextlib.suppress(RayError, ValueError):
            ray.kill(self._actor, no_restart=True)


class RayBackend:
    """All workers that fit into a Ray cluster."""

    def __init__(
        self,
        address: str | None = None,
        *,
        workers: int | None = None,
        cpus_per_worker: float = 1.0,
        gpus_per_worker: float | None = None,
        worker_class: type[ActorMethods] = RayModelWorker,
        policy: Policy | None = None,
    ) -> None:
        """Start Ray on this machine, or join a cluster.

        Args:
            address: ``host:port`` of a cluster's head; None starts a private Ray instance that ends with this process.
            workers: at most this many; None means as many as fit.
            cpus_per_worker: CPU cores that a worker reserves and computes with (rounded down, at least one).
            gpus_per_worker: GPUs that a worker reserves, possibly a fraction; None means one if there are GPUs.
            worker_class: the class of the actors.
            policy: what they may read, given to each; None for classes that read nothing.

        Raises:
            ClusterError: Ray cannot be started, or there is no cluster at the address.
        """
        options: dict[str, Any] = {"address": address} if address else _LOCAL
        if address is not None:
            check_reachable(address)
        try:
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=False)
        except (ConnectionError, RuntimeError, ValueError, OSError, RayError) as error:
            where = f"join the Ray cluster at {address}" if address else "start Ray on this machine"
            raise ClusterError(f"cannot {where}: {one_line(error)}") from None
        self.grows = address is not None
        self._arguments = (max(1, int(cpus_per_worker)), *([] if policy is None else [policy]))
        self._limit = workers
        self._cpus = cpus_per_worker
        self._gpus = gpus_per_worker
        actor_options: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0, "concurrency_groups": {WATCH: 1}}
        self._actor_class = ray.remote(**actor_options)(worker_class)
        self._reads = getattr(worker_class, "read", None)

    def capacity(self) -> Capacity:
        """The resources of the nodes that are alive; workers are counted node by node."""
        nodes = [node["Resources"] for node in _alive_nodes()]
        gpus = sum(node.get("GPU", 0.0) for node in nodes)
        needs = {"CPU": self._cpus, "GPU": self._gpus_each(gpus)}
        fit = [
            min(int(node.get(kind, 0.0) / amount + 1e-9) for kind, amount in needs.items() if amount) for node in nodes
        ]
        limit = sum(fit) if self._limit is None else self._limit
        with_cores = ((node, count) for node, count in zip(nodes, fit, strict=True) if node.get("CPU"))
        memory = ((sum(int(node.get(kind, 0)) for kind in MEMORY), min(count, limit)) for node, count in with_cores)
        largest, sharing = max(memory, default=(0, 0))
        return Capacity(
            workers=min(sum(fit), limit),
            cpus=sum(node.get("CPU", 0.0) for node in nodes),
            gpus=gpus,
            gpus_each=self._gpus_each(gpus),
            nodes=len(nodes),
            memory=largest or None,
            memory_each=largest // max(sharing, 1) or None,
        )

    def read(self, spec: JobSpec) -> Reading | None:
        """Read documents in a task that reserves nothing, so that it runs although workers take all cores.

        Ray would run such a task on this process's own node, which may be one without cores for this very reason.
        """
        if self._reads is None:
            return None
        options: dict[str, Any] = {"num_cpus": 0, "max_retries": 2}
        nodes = [node["NodeID"] for node in _alive_nodes() if node["Resources"].get("CPU")]
        if nodes:  # softly, since the node may go
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(random.choice(nodes), soft=True)
        reference = ray.remote(**options)(self._reads).remote(spec, *self._arguments[1:])
        return Reading(_future(reference), lambda: ray.cancel(reference, force=True))

    def start_worker(self) -> RayWorker:
        """Start an actor, which Ray places."""
        gpus = self._gpus_each(self.capacity().gpus)
        return RayWorker(self._actor_class.options(num_cpus=self._cpus, num_gpus=gpus).remote(*self._arguments))

    def share(self, samples: SampleSet) -> SharedSamples:
        """Put samples into the object store, owned by this process."""
        return SharedSamples(samples.sha256, samples, [ray.put(samples)])

    def close(self) -> None:
        """Leave the cluster, which ends our actors; a private Ray instance stops."""
        ray.shutdown()

    def _gpus_each(self, gpus: float) -> float:
        return (1.0 if gpus else 0.0) if self._gpus is None else self._gpus


_LOCAL: dict[str, Any] = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}


def _alive_nodes() -> list[dict[str, Any]]:
    try:
        return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    except (RayError, RuntimeError, OSError) as error:
        raise ClusterError(f"the Ray cluster does not answer: {one_line(error)}") from None


def _future(reference: Any) -> "Future[Any]":
    """The future of a Ray call, with Ray's errors translated."""
    result: Future[Any] = Future()

    def resolve(inner: "Future[Any]") -> None:
        error = inner.exception()
        if error is None:
            result.set_result(inner.result())
        else:
            result.set_exception(_translated(error))

    reference.future().add_done_callback(resolve)
    return result


def _translated(error: BaseException) -> BaseException:
    if isinstance(error, OutOfMemoryError):
        return WorkerOutOfMemoryError("the machine ran out of memory")
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, torch.OutOfMemoryError):
            return MemoryError(one_line(cause))
        return cause if isinstance(cause, FactorSearchError | MemoryError) else RuntimeError(one_line(cause or error))
    if isinstance(error, RayActorError):
        return WorkerGoneError(_death_reason(error))
    return WorkerGoneError(one_line(error)) if isinstance(error, RayError) else error


def _death_reason(error: RayActorError) -> str:
    """Ray's explanation of an actor's death, which has several paragraphs, in a few words."""
    explanation = str(error)
    if "its node has died" in explanation or "node was terminated" in explanation:
        return "its node is gone"
    if "process has died" in explanation or "process died" in explanation:
        return "its process died"
    return one_line(error)
