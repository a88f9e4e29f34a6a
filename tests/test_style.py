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
