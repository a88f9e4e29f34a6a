import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from weight_samples import contents, identical, specs_of, write

from interop.files import atomic, open_weights, write_weights
from jaxkit.errors import ConfigError, UserError

OLD = {"a": np.zeros(4), "b": np.zeros(4)}
NEW = {"a": np.ones(4), "b": np.ones(4), "c": np.ones(4)}
TARGETS = [
    ("w.safetensors", "flax", {}),
    ("w.safetensors", "flax", {"max_shard_size": 40}),
    ("w.pt", "torch", {}),
    ("w.msgpack", "flax", {}),
    ("w.npz", "flax", {}),
    ("folder", "flax", {}),
    ("folder", "torch", {}),
    ("folder", "torch", {"max_shard_size": 40, "config": {"a": 1}}),
]
KINDS = ["safetensors", "shards", "torch", "msgpack", "npz", "orbax", "pretrained", "pretrained_shards"]
cases = pytest.mark.parametrize(("name", "format", "options"), TARGETS, ids=KINDS)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def result(folder: Path) -> dict[str, np.ndarray]:
    """What is in the only file or folder there, or in the index of the shards."""
    found = sorted(folder.iterdir())
    with open_weights(found[0] if len(found) == 1 else folder) as weights:
        return contents(weights)


def interrupted(arrays, after: int, error: BaseException):
    yield from itertools.islice(arrays.items(), after)
    raise error


@cases
@pytest.mark.parametrize("error", [RuntimeError("no more"), KeyboardInterrupt()], ids=["failure", "ctrl_c"])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_interrupted_write_leaves_nothing(tmp_path, name, format, options, error, after):
    settings = {"format": format, "metadata": {}, "max_shard_size": None, "force": False, **options}
    with pytest.raises(type(error)):
        write_weights(tmp_path / name, specs_of(NEW), interrupted(NEW, after, error), **settings)
    assert not list(tmp_path.iterdir())


@cases
def test_nothing_is_overwritten_without_force(tmp_path, name, format, options):
    write(tmp_path / name, OLD, format, **options)
    before = snapshot(tmp_path)
    with pytest.raises(ConfigError, match="exists already; --force overwrites it"):
        write(tmp_path / name, NEW, format, **options)
    assert snapshot(tmp_path) == before


@cases
def test_with_force_the_new_replaces_the_old(tmp_path, name, format, options):
    write(tmp_path / name, OLD, format, **options)
    write(tmp_path / name, NEW, format, force=True, **options)
    assert identical(result(tmp_path), NEW)


@cases
@pytest.mark.parametrize("after", [0, 1, 3])
def test_with_force_the_old_survives_an_interrupted_write(tmp_path, name, format, options, after):
    write(tmp_path / name, OLD, format, **options)
    before = snapshot(tmp_path)
    settings = {"format": format, "metadata": {}, "max_shard_size": None, "force": True, **options}
    with pytest.raises(KeyboardInterrupt):
        write_weights(tmp_path / name, specs_of(NEW), interrupted(NEW, after, KeyboardInterrupt()), **settings)
    assert snapshot(tmp_path) == before


@cases
@pytest.mark.parametrize("moved", range(5))
def test_with_force_the_old_is_put_back_if_the_replacement_stops_halfway(
    tmp_path, monkeypatch, name, format, options, moved
):
    write(tmp_path / name, OLD, format, **options)
    before, rename, count = snapshot(tmp_path), os.rename, itertools.count()

    def stopping(source, target):
        if next(count) == moved:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(atomic.os, "rename", stopping)
    try:
        write(tmp_path / name, NEW, format, force=True, **options)
    except KeyboardInterrupt:
        assert snapshot(tmp_path) == before
    else:
        # fewer renames than that were needed
        assert identical(result(tmp_path), NEW)


@pytest.mark.parametrize(("first", "second"), [(40, None), (None, 40), (40, 80)])
def test_files_of_the_earlier_sharding_go_with_it(tmp_path, first, second):
    write(tmp_path / "m.safetensors", OLD, max_shard_size=first)
    written = write(tmp_path / "m.safetensors", NEW, max_shard_size=second, force=True)
    assert sorted(written) == sorted(tmp_path.iterdir())
    with open_weights(written[-1]) as weights:
        assert identical(contents(weights), NEW)


def test_other_files_in_the_folder_stay(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    write(tmp_path / "m", OLD, "torch")
    write(tmp_path / "m", NEW, "torch", force=True)
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_is_no_checkpoint_is_never_replaced_by_one(tmp_path, force):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("...")
    with pytest.raises(ConfigError, match=r"exists already|no Orbax checkpoint"):
        write(tmp_path / "thesis", NEW, force=force)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "..."


def test_an_empty_folder_is_filled(tmp_path):
    for name, format in (("orbax", "flax"), ("pretrained", "torch")):
        (tmp_path / name).mkdir()
        write(tmp_path / name, NEW, format)
        with open_weights(tmp_path / name) as weights:
            assert identical(contents(weights), NEW)


def test_a_folder_is_not_replaced_by_a_file_nor_a_file_by_a_folder(tmp_path):
    (tmp_path / "w.npz").mkdir()
    with pytest.raises(ConfigError, match="is a folder; name a file"):
        write(tmp_path / "w.npz", NEW, force=True)
    (tmp_path / "model").touch()
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        write(tmp_path / "model", NEW, "torch", force=True)
    with pytest.raises(ConfigError, match="no Orbax checkpoint"):
        write(tmp_path / "model", NEW, "flax", force=True)


def test_a_full_disk_is_one_message_and_nothing_is_left(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda path: usage._replace(free=50))
    with pytest.raises(UserError, match="96 bytes do not fit on the disk, which has 50 free"):
        write(tmp_path / "w.npz", NEW)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_a_signal_ends_while_it_writes_leaves_nothing(tmp_path, number):
    program = f"""
import sys, time
sys.path[:0] = {[str(ROOT), str(Path(__file__).parent)]!r}
import numpy as np
from pathlib import Path
from weight_samples import specs_of
from interop.files import write_weights
from jaxkit.cli import reported
arrays = {{"a": np.ones(4), "b": np.ones(4)}}
def slowly():
    yield "a", arrays["a"]
    print("begun", flush=True)
    time.sleep(60)
with reported("before anything was written"):
    write_weights(Path({str(tmp_path / "w.safetensors")!r}), specs_of(arrays), slowly(), format="flax", metadata={{}},
                  max_shard_size=None, force=False)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"begun\n"
    assert list(tmp_path.iterdir())
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said.decode().startswith(f"stopped by {number.name}; {tmp_path}")
    assert not list(tmp_path.iterdir())
