"""What runs in a worker's process: one model in memory that evaluates candidates, or a long-running task."""

import gc
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch

from factor_search.errors import ModelChangedError
from factor_search.factors import Factors
from factor_search.files.reading import EVERYTHING, under
from factor_search.job import check_samples, measured_model, read_documents, read_samples
from factor_search.measure.evaluation import EARLIER_IDENTITY, Evaluation
from factor_search.measure.evaluator import LocalEvaluator
from factor_search.measure.race import Race
from factor_search.model.allocator import keep_freed_memory, release_freed_memory
from factor_search.model.geometry import Geometry
from factor_search.model.injection import probe
from factor_search.model.loading import LoadedModel, load_model
from factor_search.model.memory import PeakMemory, available_bytes
from factor_search.model.speed import device_of
from factor_search.search.estimate import Known
from factor_search.spec import JobSpec, ModelSpec
from factor_search.text.samples import Samples, SampleSet
from workers.policy import Policy

SAMPLE_SETS_KEPT = 6
"""The three parts of two jobs."""
ReportProgress: TypeAlias = Callable[[dict[str, Any]], None]
"""Receives the progress of a long-running task; may raise to end it."""
LongTaskCall: TypeAlias = Callable[[ReportProgress], Any]
"""A long-running task: a picklable function that reports its progress."""


@dataclass(frozen=True)
class Setting:
    """How candidates of a job are evaluated."""

    model: ModelSpec
    length: int
    """Tokens in a window."""
    stride: int | None
    """Tokens that the sliding window advances; None scores the first window only."""
    identity: tuple[tuple[str, str], ...] = ()
    """Identity of the model as the job was prepared with it; empty accepts any."""

    @classmethod
    def of(cls, spec: JobSpec, identity: Mapping[str, str] | None = None) -> "Setting":
        """The setting of a specification, for a model with this identity."""
        return cls(spec.model, spec.target_length, spec.stride, tuple(sorted((identity or {}).items())))


@dataclass(frozen=True)
class Prepared:
    """What a job needs to know before its search begins."""

    identity: dict[str, str]
    """Identity of the loaded model and its environment, for the keys of evaluations."""
    geometry: Geometry
    samples: Samples
    known: Known | None = None
    """Size and speed of the model, measured by this worker, and its memory."""


def check_same(begun: Mapping[str, str], found: Mapping[str, str], where: str) -> None:
    """Check that a model and its environment are those that a job began with.

    Raises:
        ModelChangedError: they are not; the message says in what.
    """
    if begun.get("model") != found.get("model"):
        raise ModelChangedError(
            "the files of the model are not those that the job began with: restore them, or submit the job again for "
            "the model as it is now"
        )
    different = [name for name in found if begun.get(name) != found[name]]
    if different:
        theirs, ours = (", ".join(f"{name} {one.get(name)}" for name in different) for one in (begun, found))
        raise ModelChangedError(
            f"{where} computes with {ours}, but the job was prepared with {theirs}: give all workers the same kind of "
            "device and the same versions"
        )


def _is_current(loaded: LoadedModel) -> bool:
    """Whether the files of a loaded model are still those that were loaded."""
    try:
        loaded.files.check_unchanged()
    except ModelChangedError:
        return False
    return True


class ModelWorker:
    """Keeps the last model in memory; independent of the backend that runs it."""

    def __init__(self, threads: int | None = None, policy: Policy | None = None) -> None:
        """Start without a model.

        Args:
            threads: CPU threads to compute with; None leaves torch's choice.
            policy: what jobs may read, checked when a file is opened; None is everything.
        """
        self._rules = EVERYTHING
        if policy is not None:
            self._rules = policy.reading_rules()
            policy.close_the_hub()
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        keep_freed_memory()
        if threads is not None:
            torch.set_num_threads(threads)
        self._loaded: LoadedModel | None = None
        self._evaluator: tuple[Setting, LocalEvaluator] | None = None
        self._samples: dict[str, SampleSet] = {}
        self._losses: list[float] = []
        self._peak = PeakMemory()
        self._progress: dict[str, Any] | None = None

    def name(self) -> str:
        """Host and process, for logs and records."""
        return f"{socket.gethostname()}:{os.getpid()}"

    @staticmethod
    def read(spec: JobSpec, policy: Policy | None = None) -> Samples:
        """Read the documents of a job, where that takes no worker.

        Args:
            spec: the job.
            policy: what jobs may read; None is everything.

        Raises:
            FactorSearchError: the documents or the tokenizer cannot be used.
        """
        if policy is not None:
            policy.close_the_hub()
        with under(EVERYTHING if policy is None else policy.reading_rules()):
            return read_documents(spec)

    def prepare(
        self, spec: JobSpec, samples: Samples | None = None, begun: Mapping[str, str] | None = None
    ) -> Prepared:
        """Load a job's model, verify that factors take effect in it, and read the job's documents unless that is done.

        Args:
            spec: the job.
            samples: its documents; None reads them.
            begun: identity of the model with which an earlier run of the job began; None accepts any.

        Raises:
            ModelChangedError: it is another model than that.
            FactorSearchError: the model or the documents cannot be used.
        """
        # That a model is another one comes before what is wrong with it; another environment may continue the job.
        model = {name: begun[name] for name in EARLIER_IDENTITY if name in begun} if begun else {}
        loaded = self._load(spec.model, tuple(model.items()), "the job")
        with under(self._rules):
            if samples is None:
                samples = read_samples(spec, loaded)
            else:
                check_samples(samples, loaded)
            known = measured_model(loaded, spec.target_length)
            if known is not None:
                known = replace(known, available=available_bytes(str(loaded.model.device)))
            return Prepared(loaded.identity | loaded.environment, loaded.geometry, samples, known)

    def load(self, setting: Setting) -> None:
        """Get ready to evaluate with a setting; does nothing if it is ready.

        Raises:
            ModelError: the model cannot be loaded here, although another worker could load it.
            ModelChangedError: the model, the device or the libraries here are not those that the job began with.
        """
        if self._evaluator is not None and self._evaluator[0] == setting:
            return
        loaded = self._load(setting.model, setting.identity)
        self._close_evaluator()
        evaluator = LocalEvaluator(loaded, setting.length, setting.stride)
        evaluator.__enter__()
        self._evaluator = (setting, evaluator)

    def knows(self, samples_sha256: str) -> bool:
        """Whether the worker has samples already."""
        return samples_sha256 in self._samples

    def learn(self, samples_sha256: str, samples: SampleSet) -> None:
        """Keep samples for later candidates."""
        while len(self._samples) >= SAMPLE_SETS_KEPT:
            del self._samples[next(iter(self._samples))]
        self._samples[samples_sha256] = samples

    def evaluate(
        self,
        setting: Setting,
        factors: Factors,
        samples_sha256: str,
        *,
        race: Race | None = None,
        known: Evaluation | None = None,
    ) -> Evaluation:
        """Evaluate a candidate on samples that the worker has; see :meth:`LocalEvaluator.evaluate`."""
        self.load(setting)
        assert self._evaluator is not None
        self._losses = list(known.losses) if known else []
        samples, on_document = self._samples[samples_sha256], self._losses.append
        return self._evaluator[1].evaluate(factors, samples, on_document, race=race, known=known)

    def losses_so_far(self) -> list[float]:
        """The mean loss of each finished document of the candidate in progress."""
        return list(self._losses)

    def peak_memory(self) -> int | None:
        """Bytes that were used at most since the model was loaded, of the device or else of the process."""
        return self._peak.bytes()

    def run_long_task(self, call: LongTaskCall) -> Any:
        """Run a task that loads what it needs; no other model is in memory before or after it."""
        self._forget_model()
        try:
            with under(self._rules):
                return call(self._report_progress)
        finally:
            self._progress = None
            self._forget_model()

    def progress(self) -> dict[str, Any] | None:
        """The last progress report of the long-running task in progress."""
        return self._progress

    def _report_progress(self, progress: dict[str, Any]) -> None:
        """Keep a report together with its phase, because the pool polls too seldom to see every report."""
        phase = {key: value for key, value in (self._progress or {}).items() if key == "phase"}
        self._progress = phase | progress

    def _forget_model(self) -> None:
        self._close_evaluator()
        self._loaded = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _load(self, model: ModelSpec, begun: tuple[tuple[str, str], ...] = (), where: str | None = None) -> LoadedModel:
        """The model, which must be the one that a job began with; that comes before whether its weights are usable."""

        def check(loaded: LoadedModel) -> LoadedModel:
            if begun:
                found = loaded.identity | loaded.environment
                compared = {name: found[name] for name, _ in begun} if where else found
                check_same(dict(begun), compared, where or f"worker {self.name()}")
            return loaded

        if self._loaded is None or self._loaded.spec != model or not _is_current(self._loaded):
            self._close_evaluator()
            self._loaded = None  # two models may not fit
            release_freed_memory()
            self._peak = PeakMemory(device_of(model))
            with under(self._rules):
                loaded = check(load_model(model))
            probe(loaded.model, loaded.geometry)
            self._loaded = loaded
        elif self._evaluator is not None:
            self._close_evaluator()
        return check(self._loaded)

    def _close_evaluator(self) -> None:
        if self._evaluator is not None:
            self._evaluator[1].__exit__(None, None, None)
            self._evaluator = None
