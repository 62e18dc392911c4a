"""An interrupted fine-tuning ends bit for bit as an undisturbed one."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from factor_search.errors import CheckpointError, OutputError
from factor_search.finetune import checkpoints, output
from factor_search.finetune.output import FinetuneResult
from factor_search.finetune.run import finetune
from factor_search.finetune.training import OnStep, TrainingStep
from factor_search.testbed.byte_tokenizer import byte_tokenizer
from tests.training import ORIGINAL, TARGET, cycles, factors_for, quick, tiny_loaded

DROPOUT = {"attention_dropout": 0.2}
CASES: dict[str, dict[str, Any]] = {
    "full": {"gradient_accumulation": 2, "mixed_window": 0.4, "weight_decay": 0.1},
    "lora": {"method": "lora", "gradient_checkpointing": True, "data_form": "segments"},
}


class StopError(Exception):
    pass


def stop_after(step: int) -> OnStep:
    def on_step(done: TrainingStep) -> None:
        if done.step == step:
            raise StopError

    return on_step


def run(folder: Path, out: str, on_step: OnStep = lambda step: None, **changes: Any) -> FinetuneResult:
    loaded = tiny_loaded(folder / "source", **DROPOUT)
    return finetune(loaded, cycles(), factors_for(loaded), TARGET, quick(**changes), folder / out, on_step)


def content(result: FinetuneResult) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in result.model.iterdir()}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_interrupted_in_process(changes: dict[str, Any], tmp_path: Path) -> None:
    undisturbed = run(tmp_path, "undisturbed", **changes)
    for step in (2, 5, 6, 8):  # before the first checkpoint, between two, at one, at the end
        with pytest.raises(StopError):
            run(tmp_path, "interrupted", stop_after(step), **changes)
    reported: list[int] = []
    resumed = run(tmp_path, "interrupted", lambda step: reported.append(step.step), **changes)
    assert reported == []
    assert resumed.losses == undisturbed.losses
    assert resumed.tokens == undisturbed.tokens
    assert content(resumed) == content(undisturbed)


def test_killed(tmp_path: Path) -> None:
    undisturbed = run(tmp_path, "undisturbed", **CASES["full"])
    program = (
        "import sys, time; from pathlib import Path; from tests.test_finetune_resume import CASES, run\n"
        "def on_step(step):\n"
        "    print(step.step, flush=True)\n"
        "    if step.step == 5: time.sleep(60)\n"
        "run(Path(sys.argv[1]), 'killed', on_step, **CASES['full'])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=os.environ.copy()
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(5)] == [f"{step}\n" for step in range(1, 6)]
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    process.stdout.close()
    (tmp_path / "killed" / "checkpoints" / ".partial-x").mkdir()  # as if killed while writing
    reported: list[int] = []
    resumed = run(tmp_path, "killed", lambda step: reported.append(step.step), **CASES["full"])
    assert reported == [4, 5, 6, 7, 8]
    assert resumed.losses == undisturbed.losses
    assert content(resumed) == content(undisturbed)
    assert resumed.seconds > 0


def test_a_training_that_began_on_sequences_without_the_prefix_ends_without_it(tmp_path: Path) -> None:
    """Earlier versions began sequences in the middle of a document without the tokenizer's first token."""

    def trained(out: str, prefix: bool, on_step: OnStep = lambda step: None) -> FinetuneResult:
        loaded = tiny_loaded(tmp_path / "source")
        if prefix:
            tokenizer = byte_tokenizer(ORIGINAL)
            tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
                single="! $A", special_tokens=[("!", tokenizer.convert_tokens_to_ids("!"))]
            )
            loaded = replace(loaded, tokenizer=tokenizer)
        return finetune(loaded, cycles(), factors_for(loaded), TARGET, quick(), tmp_path / out, on_step)

    plain = trained("plain", prefix=False)
    with pytest.raises(StopError):
        trained("continued", prefix=False, on_step=stop_after(4))
    assert trained("continued", prefix=True).losses == plain.losses
    assert trained("continued", prefix=True).losses == plain.losses, "it is finished"
    begun = trained("begun", prefix=True)
    assert begun.losses != plain.losses
    with pytest.raises(CheckpointError, match="differs in data"):
        trained("begun", prefix=False)


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def on_step(step: TrainingStep) -> None:
        seen.append(sorted(item.name for item in (tmp_path / "out" / "checkpoints").iterdir()))

    run(tmp_path, "out", on_step, checkpoint_every=2)
    assert seen[:2] == [[], ["step-00000002"]]
    assert seen[-1] == ["step-00000006", "step-00000008"]
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_what_belongs_to_another_is_refused(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    with pytest.raises(StopError):
        run(tmp_path, "out", stop_after(4))

    def attempt(reason: str, **changes: Any) -> None:
        loaded = tiny_loaded(changes.pop("source", source), **changes.pop("overrides", DROPOUT))
        documents, target = changes.pop("documents", cycles()), changes.pop("target", TARGET)
        factors = changes.pop("factors", factors_for(loaded))
        with pytest.raises(CheckpointError, match=f"belongs to another fine-tuning: it differs in {reason};"):
            finetune(loaded, documents, factors, target, quick(**changes), out)

    others = {
        "specification": {"learning_rate": 1e-4},
        "data": {"documents": cycles(151)},
        "lengths": {"target": 2 * TARGET},
        "model": {"source": tmp_path / "other", "overrides": {"rms_norm_eps": 1e-3}},
        "specification, data": {"documents": cycles(151), "steps": 9},
    }
    for reason, changes in others.items():
        attempt(reason, **dict(changes))
    loaded = tiny_loaded(source)
    attempt("factors", factors=type(factors_for(loaded)).of([1.5] * loaded.geometry.pairs))
    run(tmp_path, "out", checkpoint_every=1)  # how often they are written does not matter
    attempt("specification", seed=3)


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(StopError):
        run(tmp_path, "out", stop_after(7))
    last = tmp_path / "out" / "checkpoints" / "step-00000006"
    weights = last / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"step-00000006 cannot be read: .* remove it"):
        run(tmp_path, "out")
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    reported: list[int] = []
    run(tmp_path, "out", lambda step: reported.append(step.step))
    assert reported[0] == 4


def test_a_full_disk_leaves_the_checkpoints_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = checkpoints.save_file
    calls: list[int] = []

    def failing(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == 4:  # in the middle of the second checkpoint
            raise OSError(28, "No space left on device")
        write(*args, **kwargs)

    monkeypatch.setattr(checkpoints, "save_file", failing)
    with pytest.raises(OutputError, match=r"cannot write a checkpoint .* No space left"):
        run(tmp_path, "out")
    monkeypatch.undo()
    reported: list[int] = []
    run(tmp_path, "out", lambda step: reported.append(step.step))
    assert reported[0] == 4


def test_a_result_is_there_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = run(tmp_path, "undisturbed")
    for place, name in ((output, "export_huggingface"), (output, "write_json")):

        def fail(*args: object, **kwargs: object) -> None:
            raise StopError

        monkeypatch.setattr(place, name, fail)
        with pytest.raises(StopError):
            run(tmp_path, "out")
        monkeypatch.undo()
        assert not (tmp_path / "out" / "finetune.json").exists()
        leftovers = {item.name for item in (tmp_path / "out").iterdir()}
        assert leftovers <= {"checkpoints", "model"}
    result = run(tmp_path, "out")
    assert content(result) == content(undisturbed)
    shutil.rmtree(result.model)
    assert content(run(tmp_path, "out")) == content(undisturbed), "what was taken away is made again"


def test_a_record_that_is_none(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for text in ("{", "[]", json.dumps({"losses": 3})):
        (out / "finetune.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"finetune\.json"):
            run(tmp_path, "out")
