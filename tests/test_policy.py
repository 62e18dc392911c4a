"""What a job may use."""

import argparse
import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

from api.cli.demo import specification
from factor_search.errors import SpecError
from factor_search.spec import parse_spec
from workers.policy import Policy, add_policy_arguments


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a model, a text, and links out of it; beside it something secret."""
    root = tmp_path / "root"
    for folder in (root / "model", root / "texts", tmp_path / "outside"):
        folder.mkdir(parents=True)
    (root / "model" / "config.json").write_text("{}")
    (root / "texts" / "a.txt").write_text("a")
    (tmp_path / "outside" / "secret.txt").write_text("secret")
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "leak.txt").symlink_to(tmp_path / "outside" / "secret.txt")
    (root / "within").symlink_to(root / "texts")
    return root


@pytest.fixture
def policy(root: Path) -> Policy:
    return Policy((root,), allow_hub=False, allow_remote_code=False)


def check(policy: Policy, model: Any = None, data: Any = None, **rest: Any) -> None:
    root = policy.roots[0]
    policy.check(
        parse_spec(
            {"model": model or str(root / "model"), "data": data or [str(root / "texts" / "*.txt")], **rest}
            | {"target_length": 512}
        )
    )


def test_what_lies_under_a_root_is_allowed(policy: Policy, root: Path) -> None:
    check(policy)
    check(policy, data=[str(root / "texts" / "a.txt"), str(root / "within" / "*"), str(root / "texts" / "[ab].txt")])
    check(policy, data=[str(root / "texts" / ".." / "texts" / "a.txt")])


def test_relative_paths_are_those_of_the_server(policy: Policy, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    check(policy, model="model", data=["texts/*.txt"])
    monkeypatch.chdir(root.parent)
    with pytest.raises(SpecError, match="not in a folder"):
        check(policy, model="./outside")


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/etc/*",
        "/*",
        "{root}/../outside/secret.txt",
        "{root}/../outside/*.txt",
        "{root}/out/secret.txt",
        "{root}/out/*.txt",
        "{root}/*/secret.txt",
        "{root}/**/secret.txt",
        "{root}/leak.txt",
        "{root}/*.txt",
        "{root}/texts/*/../../../outside/*",
        "{root}/nothing/../../outside/secret.txt",
        "{root}2/x.txt",
        "../outside/secret.txt",
        "~/x.txt",
        "/no/such/file",
    ],
)
def test_data_outside_the_roots_is_refused(
    path: str, policy: Policy, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    given = path.format(root=root)
    if path == "~/x.txt":  # nobody expands it, so it lies in the current folder
        check(policy, data=[given])
        return
    for data in ({"files": [given]}, {"files": [str(root / "texts" / "a.txt")], "held_out_files": [given]}):
        with pytest.raises(SpecError, match=r"data\.(held_out_)?files.*(--root|without)") as raised:
            check(policy, data=data)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "model", ["/etc", "{root}/out", "{root}/../outside", "../outside", "{root}/out/../../root/x/../.."]
)
def test_a_model_outside_the_roots_is_refused(
    model: str, policy: Policy, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    with pytest.raises(SpecError, match=r"model\.id.*--root"):
        check(policy, model=model.format(root=root))


def test_a_folder_with_a_link_out_of_the_roots_is_refused(policy: Policy, root: Path) -> None:
    (root / "model" / "weights.safetensors").symlink_to(root.parent / "outside" / "secret.txt")
    with pytest.raises(SpecError, match=r"weights\.safetensors links out"):
        check(policy)


def test_links_between_roots_are_fine(root: Path) -> None:
    (root / "model" / "weights.safetensors").symlink_to(root.parent / "outside" / "secret.txt")
    check(Policy((root, root.parent / "outside"), allow_hub=False, allow_remote_code=False))


def test_a_root_may_itself_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    check(Policy((tmp_path / "link",), allow_hub=False, allow_remote_code=False))


def test_the_hub_is_allowed_or_not(policy: Policy) -> None:
    for what in ({"model": "gpt2"}, {"model": "some/model"}, {"data": {"dataset": "some/data"}}):
        with pytest.raises(SpecError, match="hub is not allowed"):
            check(policy, **what)
        check(Policy(policy.roots, allow_hub=True, allow_remote_code=False), **what)


def test_a_data_set_of_the_hub_cannot_be_a_local_path(policy: Policy, root: Path) -> None:
    hub = Policy(policy.roots, allow_hub=True, allow_remote_code=False)
    for dataset in ("/etc", "./x", "../outside", str(root / "out"), "a/b/c", str(root / "texts")):
        with pytest.raises(SpecError, match=r"data\.dataset"):
            check(hub, data={"dataset": dataset})


@pytest.mark.parametrize("revision", ["../../x", "a/../b", "", "a b", "x\n"])
def test_a_revision_that_could_be_a_path_is_refused(policy: Policy, revision: str) -> None:
    hub = Policy(policy.roots, allow_hub=True, allow_remote_code=False)
    with pytest.raises(SpecError, match=r"model\.revision"):
        check(hub, model={"id": "some/model", "revision": revision})
    check(hub, model={"id": "some/model", "revision": "refs/pr/1"})


def test_foreign_code_needs_permission(policy: Policy, root: Path) -> None:
    for changes in ({"trust_remote_code": True}, {"attention": "kernels-community/flash-attn"}):
        model = {"id": str(root / "model"), **changes}
        with pytest.raises(SpecError, match="--allow-remote-code"):
            check(policy, model=model)
        check(Policy(policy.roots, allow_hub=False, allow_remote_code=True), model=model)


def test_the_demo_is_always_allowed(policy: Policy) -> None:
    policy.check(parse_spec(specification(None)))


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "loop/x"])
def test_what_cannot_be_a_path_is_one_line(
    path: str, policy: Policy, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    Path("loop").symlink_to("loop")
    for what in ({"model": path}, {"data": [path]}, {"data": {"dataset": path}}):
        with pytest.raises(SpecError) as raised:
            check(policy, **what)
        assert len(str(raised.value)) < 500


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_policy_arguments(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize("code", [True, False])
@pytest.mark.parametrize("hub", [True, False])
def test_a_policy_passes_through_a_command_line(hub: bool, code: bool, root: Path) -> None:
    policy = Policy((root.resolve(), root.parent.resolve()), hub, code)
    assert Policy.from_arguments(parsed(*policy.as_arguments()), hub=not hub) == policy


def test_trackers_and_hosts_pass_through_a_command_line(root: Path) -> None:
    policy = Policy((root.resolve(),), False, False, root, ("tensorboard",), ("hooks.example", "127.0.0.1:8500"))
    assert Policy.from_arguments(parsed(*policy.as_arguments()), hub=True) == policy
    with pytest.raises(SpecError, match=r"--tracker needs a folder.*--work"):
        Policy.from_arguments(parsed("--tracker", "tensorboard"), hub=True)
    with pytest.raises(SpecError, match="--webhook-host 'a b' is not a host"):
        Policy.from_arguments(parsed("--webhook-host", "a b"), hub=True)


def test_by_default_the_current_folder_is_the_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    assert Policy.from_arguments(parsed(), hub=True) == Policy((root.resolve(),), True, False)
    with pytest.raises(SpecError, match="--root nothing is not a folder"):
        Policy.from_arguments(parsed("--root", "nothing"), hub=True)


def test_files_to_start_from_lie_under_a_root(policy: Policy, root: Path) -> None:
    check(policy, warm_start={"files": [str(root / "texts" / "a.txt"), str(root / "none.json")]})
    for name in ("leak.txt", "out/secret.txt", "../outside/secret.txt", "/etc/passwd", "a\0b"):
        with pytest.raises(SpecError, match=r"warm_start\.files"):
            check(policy, warm_start={"files": [str(root / name)]})


def test_a_kernel_in_place_of_a_missing_package_is_code(
    policy: Policy, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers fetches it from the hub where flash_attn is not installed and kernels is."""
    installed: dict[str, Any] = {"flash_attn": None, "kernels": True}
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: installed[name] if name in installed else find(name, *rest)
    )
    model = {"id": str(root / "model"), "attention": "flash_attention_2"}
    with pytest.raises(SpecError, match="names code on the hub"):
        check(policy, model=model)
    monkeypatch.setitem(installed, "flash_attn", True)
    check(policy, model=model)


def test_without_the_hub_the_libraries_are_offline(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    for name in ("HF_HUB_OFFLINE", "USE_HUB_KERNELS"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    Policy(policy.roots, allow_hub=True, allow_remote_code=False).close_the_hub()
    assert (constants.HF_HUB_OFFLINE, os.environ["HF_HUB_OFFLINE"]) == (False, "")
    policy.close_the_hub()
    assert (constants.HF_HUB_OFFLINE, os.environ["HF_HUB_OFFLINE"]) == (True, "1")
    assert os.environ["USE_HUB_KERNELS"] == "0"
