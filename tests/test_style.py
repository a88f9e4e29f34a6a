import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]], ids=["linted", "formatted"])
def test_the_code_is(arguments):
    finished = subprocess.run(
        [sys.executable, "-m", "ruff", *arguments, "."], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert finished.returncode == 0, finished.stdout


def test_no_file_outgrows_300_lines():
    long = {
        str(path): count
        for folder in ("jaxkit", "interop", "scripts")
        for path in (ROOT / folder).rglob("*.py")
        if (count := len(path.read_text().splitlines())) > 300
    }
    assert not long


def test_no_two_files_of_tests_have_one_name():
    # pytest would collect but one of them
    nasty = ROOT / "tests" / "testing" / "nasty"
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py") if nasty not in path.parents]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})
