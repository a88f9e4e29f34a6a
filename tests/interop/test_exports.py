"""Exports by the task of a run, and their way to the model hub, which is never reached here."""

import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import huggingface_hub
import pytest
import yaml
from conftest import ROOT, small_config
from huggingface_hub.errors import LocalTokenNotFoundError

from interop import exports
from interop.exports import export_run, upload
from jaxkit.errors import ConfigError, UserError


@pytest.fixture
def calls(monkeypatch):
    """What reaches the two that write."""
    found = []
    for name in ("diffusion", "masked"):
        record = lambda *given, name=name: found.append((name, *given)) or [name]  # noqa: E731
        monkeypatch.setattr(getattr(exports, name), "export_run", record)
    return found


@pytest.fixture
def inversion(tmp_path):
    """The folder of a run of textual inversion, as far as its config."""
    task = {"name": "textual_inversion", "pipeline": "nowhere", "words": [{"placeholder_token": "<x>"}]}
    raw = small_config(task=task, data={"name": "digit_concepts", "digits": [7], "batch_size": 8})
    raw["data"] |= {"pictures": 3, "image_size": 16}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    return tmp_path


def test_the_task_of_a_run_says_who_writes_it(calls, inversion, config_file):
    assert export_run(inversion, "out", step=3, force=True) == ["diffusion"]
    folder = config_file().parent
    assert export_run(folder, "out", "diffusers", pipeline="amused") == ["masked"]
    assert calls == [
        ("diffusion", inversion, "out", 3, True),
        ("masked", folder, "out", "diffusers", None, False, "amused"),
    ]


@pytest.mark.parametrize("flag", ["layout", "pipeline"])
def test_flags_of_other_tasks_are_refused_for_pipelines_of_diffusers(calls, inversion, flag):
    message = f"--{flag}: a run of the task textual_inversion becomes a whole pipeline of diffusers; leave it out"
    with pytest.raises(ConfigError, match=message):
        export_run(inversion, "out", **{flag: "diffusers"})
    assert calls == []


def test_a_folder_without_a_run_is_refused(calls, tmp_path):
    with pytest.raises(ConfigError, match="no run is there"):
        export_run(tmp_path, "out")


class Hub:
    """Stands in for ``HfApi``: notes what it is asked, and fails as it is told."""

    asked: ClassVar[list] = []
    failure: ClassVar[Exception | None] = None

    def create_repo(self, name, *, exist_ok):
        assert exist_ok
        Hub.asked.append(("create", name))
        if Hub.failure is not None:
            raise Hub.failure
        return f"https://hub/{name}"

    def upload_folder(self, *, repo_id, folder_path):
        Hub.asked.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))

    def upload_file(self, *, repo_id, path_or_fileobj, path_in_repo):
        Hub.asked.append((repo_id, Path(path_or_fileobj).read_bytes(), path_in_repo))


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "asked", [])
    return Hub


def test_a_folder_is_uploaded_whole_and_a_file_by_its_name(hub, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model_index.json").write_text("{}")
    (tmp_path / "google.npz").write_bytes(b"weights")
    assert upload(tmp_path / "folder", "me/mine") == f"{tmp_path / 'folder'}: uploaded to https://hub/me/mine"
    upload(tmp_path / "google.npz", "me/mine")
    create = ("create", "me/mine")
    assert hub.asked == [create, ("me/mine", ["model_index.json"]), create, ("me/mine", b"weights", "google.npz")]


@pytest.mark.parametrize(
    "failure",
    [
        LocalTokenNotFoundError("Token is required, but no token found.\nLog in."),
        huggingface_hub.errors.OfflineModeIsEnabled("Cannot reach the hub: offline mode is enabled."),
        ConnectionError("no route"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_what_cannot_be_uploaded_stays_and_is_one_clear_line(hub, monkeypatch, tmp_path, failure):
    monkeypatch.setattr(hub, "failure", failure)
    (tmp_path / "a.json").write_text("{}")
    reason = str(failure).partition("\n")[0]
    with pytest.raises(UserError) as error:
        upload(tmp_path, "me/mine")
    assert str(error.value).startswith(f"--push-to-hub me/mine: cannot be uploaded ({reason}); {tmp_path} is written")
    assert "HF_TOKEN" in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_name_that_the_hub_refuses_is_an_error_of_the_command(tmp_path):
    with pytest.raises(ConfigError, match=r"--push-to-hub me/mine--: is no name of a repository"):
        upload(tmp_path, "me/mine--")


def test_an_upload_without_its_package_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"--push-to-hub needs huggingface_hub: pip install 'jaxkit\[diffusion\]'"):
        upload(tmp_path, "me/mine")


def pushed(tmp_path, name):
    """Runs the script off the net, where what writes the folder is replaced."""
    out = tmp_path / "out"
    code = (
        "import pathlib, runpy, sys\n"
        "from interop import exports\n"
        "exports.export_run = lambda path, **rest: path.mkdir() or [f'{path}: written', str(rest)]\n"
        f"sys.argv = ['export.py', 'run', {str(out)!r}, '--push-to-hub', {name!r}]\n"
        "runpy.run_path('scripts/export.py', run_name='__main__')"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code]
    return out, subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


def test_the_script_writes_first_and_off_the_net_says_in_one_line_that_the_folder_stays(tmp_path):
    out, finished = pushed(tmp_path, "me/mine")
    assert finished.returncode == 1
    assert finished.stdout.splitlines()[0] == f"{out}: written"
    assert finished.stdout.splitlines()[1] == str(
        {"workdir": Path("run"), "layout": None, "pipeline": None, "step": None, "force": False}
    )
    assert finished.stderr.startswith("--push-to-hub me/mine: cannot be uploaded (")
    assert finished.stderr.count("\n") == 1
    assert out.is_dir()


def test_the_script_refuses_a_name_without_an_owner_before_it_writes(tmp_path):
    out, finished = pushed(tmp_path, "mine")
    assert finished.returncode == 2
    assert "'mine' is not like owner/name" in finished.stderr
    assert not out.exists()
