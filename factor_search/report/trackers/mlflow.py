"""MLflow: a run in the store that MLFLOW_TRACKING_URI names, or in an SQLite file in the folder of the run."""

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from factor_search.report.trackers.contract import AXES, Axis, End, RunName, Value, named

STATES: dict[End, str] = {"finished": "FINISHED", "failed": "FAILED"}
"""Those that MLflow has a word for; others are KILLED, and the tag ``state`` has the word."""
TAG = "factor-search.run"
logging.getLogger("mlflow").setLevel(logging.WARNING)  # it reports on its tables
MOST_CHARACTERS = 6000
"""Of a parameter's value, all that MLflow keeps."""
MOST_PARAMETERS = 100
"""In one request."""
REFUSED = re.compile(r"[^\w. -]")
"""Characters that MLflow refuses in names, or reads as the parts of a path."""


class Run:
    """See :class:`factor_search.report.trackers.contract.Tracker`."""

    def __init__(self, name: RunName) -> None:
        own = None if os.environ.get("MLFLOW_TRACKING_URI") else f"sqlite:///{name.folder.resolve() / 'mlflow.db'}"
        artifacts = None if own is None else (name.folder / "mlflow").resolve().as_uri()
        if artifacts is not None:  # for MLflow's default experiment, or it makes a folder mlruns in the current one
            os.environ.setdefault("_MLFLOW_SERVER_ARTIFACT_ROOT", artifacts)
        self._client = MlflowClient(tracking_uri=own)
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or "factor-search", artifacts)
        found = self._client.search_runs([experiment], f"tags.`{TAG}` = '{name.id}'", max_results=1)
        if found:
            run = found[0]
            self._client.update_run(run.info.run_id, status="RUNNING")
        else:
            tags = {TAG: name.id} | ({"plan": name.group} if name.group else {})
            run = self._client.create_run(experiment, run_name=name.name, tags=tags)
        self._id = run.info.run_id
        self._known: dict[str, str] = run.data.params
        metrics = run.data.metrics
        self.reached: Mapping[Axis, int] = {
            axis: int(metrics[key]) for axis in AXES if (key := f"by_{axis}/{axis}") in metrics
        }

    def parameters(self, values: Mapping[str, Value]) -> None:
        """As parameters, which never change; what differs when a run continues is a tag."""
        texts = {_key(name): (_text(value) or "-")[:MOST_CHARACTERS] for name, value in values.items()}
        for key, text in texts.items():
            if self._known.get(key, text) != text:
                self._client.set_tag(self._id, key, text)
        new = [Param(key, text) for key, text in texts.items() if key not in self._known]
        for start in range(0, len(new), MOST_PARAMETERS):
            self._client.log_batch(self._id, params=new[start : start + MOST_PARAMETERS])

    def figures(self, values: Mapping[str, float], axis: Axis, at: int) -> None:
        """As metrics."""
        now = int(time.time() * 1000)
        taken = named({_key(name): value for name, value in values.items()}, axis, at)
        self._client.log_batch(self._id, [Metric(key, value, now, at) for key, value in taken.items()])

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Value]]) -> None:
        """As an artifact that MLflow shows as a table."""
        document = {"columns": list(columns), "data": [list(row) for row in rows]}
        self._client.log_dict(self._id, document, f"{name}.json")

    def file(self, name: str, content: str) -> None:
        """As an artifact."""
        self._client.log_text(self._id, content, name)

    def end(self, state: End) -> None:
        """The state as the run's."""
        self._client.set_tag(self._id, "state", state)
        self._client.set_terminated(self._id, STATES.get(state, "KILLED"))

    def _experiment(self, name: str, artifacts: str | None) -> str:
        known = self._client.get_experiment_by_name(name)
        if known is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=artifacts))
            except MlflowException:  # another run has just made it
                known = self._client.get_experiment_by_name(name)
                if known is None:
                    raise
        return str(known.experiment_id)


def _key(name: str) -> str:
    """A name that MLflow takes; names that a user gave stay apart by their hash where characters are replaced."""
    taken = REFUSED.sub("_", name)
    return taken if taken == name else f"{taken} {hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _text(value: Value) -> str:
    return value if isinstance(value, str) else json.dumps(value)
