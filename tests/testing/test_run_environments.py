"""Environments of tests: made once for what they require, over the runner's interpreter, which they leave alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from jaxkit.testing import environments
from jaxkit.testing.plan import Environment

pytestmark = pytest.mark.level(1)

OFFLINE = ("--no-index", "--no-deps")


def version(python):
    program = "import nasty_package; print(nasty_package.VERSION)"
    finished = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False)
    return int(finished.stdout) if finished.returncode == 0 else None


def test_two_environments_have_two_versions_and_the_interpreter_has_none(wheel, tmp_path):
    pythons = [
        environments.python_of(Environment(dependencies=(*OFFLINE, str(wheel(number)))), tmp_path) for number in (1, 2)
    ]
    assert [version(python) for python in pythons] == [1, 2]
    assert version(sys.executable) is None


def test_an_environment_is_made_once_and_sees_the_packages_below(wheel, tmp_path):
    (tmp_path / "needs.txt").write_text(f"--no-index\n{wheel(3)}\n")
    environment = Environment(requirements=(tmp_path / "needs.txt",))
    python = environments.python_of(environment, tmp_path / "made")
    made = Path(python).stat().st_ctime_ns
    assert environments.python_of(environment, tmp_path / "made") == python
    assert Path(python).stat().st_ctime_ns == made
    subprocess.run([python, "-c", "import pytest, numpy"], check=True)
    assert version(python) == 3


def test_what_is_required_changes_the_key_and_nothing_else_does(tmp_path):
    needs = tmp_path / "needs.txt"
    needs.write_text("a\n")
    keys = [environments.key(Environment(dependencies=given)) for given in (("a", "b"), ("ab",), ("a", "b"))]
    assert keys[0] == keys[2] != keys[1]
    first = environments.key(Environment((needs,)))
    assert environments.key(Environment((needs,), tests=("test_a.py",))) == first
    needs.write_text("b\n")
    assert environments.key(Environment((needs,))) != first


def test_files_that_requirements_include_are_part_of_the_key(tmp_path):
    needs, nested = tmp_path / "needs.txt", tmp_path / "nested.txt"
    needs.write_text("a\n-r nested.txt\n--constraint=lost.txt\n")
    nested.write_text("b\n-r needs.txt\n")
    first = environments.key(Environment((needs,)))
    nested.write_text("b==2\n-r needs.txt\n")
    assert environments.key(Environment((needs,))) != first


def test_without_requirements_it_is_the_interpreter_itself(tmp_path):
    assert environments.python_of(Environment(tests=("test_a.py",)), tmp_path) == sys.executable


def test_an_environment_that_failed_is_made_anew(wheel, tmp_path):
    path = wheel(4)
    hidden = tmp_path / "nasty_package-4-py3-none-any.whl"
    environment = Environment(dependencies=(*OFFLINE, str(hidden)))
    with pytest.raises(environments.EnvironmentFailed, match="nasty_package-4"):
        environments.python_of(environment, tmp_path / "made")
    hidden.write_bytes(path.read_bytes())
    assert version(environments.python_of(environment, tmp_path / "made")) == 4
