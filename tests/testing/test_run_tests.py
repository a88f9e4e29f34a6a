"""The command line of the runner, on suites of a few lines."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

SCRIPT = str(ROOT / "scripts" / "run_tests.py")
FLAKY = """
from pathlib import Path
import os, pytest

def once(name):
    seen = Path(name).exists()
    Path(name).touch()
    return not seen

def test_fails_at_first():
    print("printed at first")
    assert not once("failed.seen")

def test_crashes_at_first():
    if once("crashed.seen"):
        os.abort()

def test_never_passes():
    assert False

@pytest.fixture
def numeric_baseline():
    pass

def test_compares_numbers(numeric_baseline):
    assert not once("numbers.seen")
"""
LEVELS = """
import os, pytest

pytestmark = pytest.mark.level(1)

def test_of_the_file(): pass

@pytest.mark.level(2)
def test_of_its_own():
    assert os.environ["TEST_LEVEL"] == "2"
"""


@pytest.fixture
def suite(tmp_path):
    """Writes test files and runs them: ``suite(*flags, name=code)``; the process, and the results by name."""

    def run(*flags, code=0, autoload=False, **files):
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.with_suffix(".py").write_text(text)
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        environment = dict(os.environ)
        if not autoload:
            environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        out = tmp_path / "out.json"
        command = [sys.executable, SCRIPT, f"--test_dir={tmp_path}", f"--json={out}", *flags]
        finished = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
        assert finished.returncode == code, finished.stdout + finished.stderr
        found = json.loads(out.read_text())["results"] if out.exists() else []
        return finished, {result["name"]: result for result in found}

    return run


def words(results):
    return {name: result["result"] for name, result in results.items()}


def test_help_imports_neither_pytest_nor_anything_heavy():
    program = (
        "import runpy, sys\n"
        "sys.argv = ['run_tests.py', '--help']\n"
        "try:\n"
        f"    runpy.run_path({SCRIPT!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "heavy = {'jax', 'flax', 'numpy', 'torch', 'pytest', 'yaml', 'interop'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_what_passes_at_another_try_is_flaky_and_what_compares_numbers_has_one_try(suite):
    finished, results = suite("--retries=2", "--parallel=2", code=1, test_flaky=FLAKY)
    assert words(results) == {
        "test_flaky.py::test_fails_at_first": "flaky",
        "test_flaky.py::test_crashes_at_first": "flaky",
        "test_flaky.py::test_never_passes": "failed",
        "test_flaky.py::test_compares_numbers": "failed",
    }
    first = results["test_flaky.py::test_fails_at_first"]
    assert first["info"].startswith("passed at try 2; before: ")
    assert "printed at first" in first["output"]
    assert "=== FLAKY test_flaky.py::test_fails_at_first" in finished.stdout


def test_a_run_of_flaky_and_passed_tests_passes(suite):
    _, results = suite("--retries=1", test_flaky="import os\n" + FLAKY.partition("def test_never")[0])
    assert set(words(results).values()) == {"flaky"}


@pytest.mark.parametrize(
    ("level", "ran"), [(0, []), (1, ["test_of_the_file"]), (2, ["test_of_the_file", "test_of_its_own"])]
)
def test_tests_up_to_the_level_run_and_the_rest_are_skipped(suite, level, ran):
    _, results = suite(f"--level={level}", test_levels=LEVELS)
    assert [name.partition("::")[2] for name, word in words(results).items() if word == "passed"] == ran
    assert len(results) == 2


def test_plugins_that_spread_or_time_tests_are_told_to_leave_it(suite):
    slow = "import pytest, time\n@pytest.mark.timeout(1)\ndef test_slow(): time.sleep(60)\n"
    flags = ("--", "-n2", "--dist=loadfile", "--timeout=30", "--strict-markers")
    _, results = suite(
        *flags, code=1, autoload=True, test_slow=slow, test_ok="def test_ok(worker_id): assert worker_id == 'master'"
    )
    assert words(results) == {"test_slow.py::test_slow": "timeout", "test_ok.py::test_ok": "passed"}


def test_the_timeout_of_pytests_configuration_is_kept(suite):
    slow = "import time\ndef test_slow(): time.sleep(60)\n"
    _, results = suite("--", "-o", "timeout=1", code=1, autoload=True, test_slow=slow)
    assert words(results) == {"test_slow.py::test_slow": "timeout"}


def test_neither_a_terminal_without_letters_nor_a_cache_that_cannot_be_made_loses_results(suite, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    (tmp_path / ".pytest_cache").touch()
    finished, results = suite(code=1, test_euro="def test_it(): assert False, '\\u20ac'")
    assert words(results) == {"test_euro.py::test_it": "failed"}
    assert r"AssertionError: \u20ac" in finished.stdout
    assert "warning: how long tests took is not kept" in finished.stdout


def test_what_follows_two_dashes_is_for_pytest(suite):
    _, results = suite("--", "-k", "second", test_two="def test_first(): assert 0\ndef test_second(): pass\n")
    assert words(results) == {"test_two.py::test_second": "passed"}


def test_list_tests_shows_levels_and_models_and_runs_nothing(suite, tmp_path):
    code = "import pytest\n@pytest.mark.model('org/one')\ndef test_one(): open('ran', 'w')\n"
    finished, _ = suite("--list_tests", test_one=code, test_levels=LEVELS)
    lines = finished.stdout.splitlines()
    assert "test_one.py::test_one  (level 0, org/one)" in lines
    assert "test_levels.py::test_of_its_own  (level 2)" in lines
    assert lines[-1] == "3 tests"
    listed = json.loads((tmp_path / "out.json").read_text())
    assert listed["tests"][-1] == {
        "name": "test_one.py::test_one", "level": 0, "models": ["org/one"], "environment": "default"
    }  # fmt: skip
    assert listed["results"] == []
    assert not (tmp_path / "ran").exists()


def test_list_tests_fails_if_a_file_cannot_be_imported(suite):
    finished, _ = suite("--list_tests", code=1, test_wrong="import nothing_of_this_name")
    assert "No module named 'nothing_of_this_name'" in finished.stdout


def test_shards_share_all_tests_and_balance_by_recorded_durations(suite, tmp_path):
    files = {f"test_{i}": "def test_it(): pass\n" for i in range(5)}
    seconds = tmp_path / "seconds.json"
    text = json.dumps({"test_0.py::test_it": 9, **{f"test_{i}.py::test_it": 2 for i in range(1, 5)}})
    parts, plans = [], set()
    for i in (1, 2):
        seconds.write_text(text)
        finished, results = suite(f"--shard={i}/2", f"--durations={seconds}", **files)
        parts.append(sorted(results))
        plans.add(finished.stdout.partition("of plan ")[2].partition(":")[0])
    assert parts[0] == ["test_0.py::test_it"]
    assert sorted(parts[0] + parts[1]) == [f"test_{i}.py::test_it" for i in range(5)]
    assert len(plans) == 1
    assert json.loads(seconds.read_text())["test_1.py::test_it"] < 2


def test_durations_forget_tests_and_files_that_are_gone(suite, tmp_path):
    seconds = tmp_path / "seconds.json"
    old = {"test_a.py::test_of_another_name": 5, "test_a.py::test_slow": 5, "test_gone.py::test_x": 1}
    (tmp_path / "test_b.py").write_text("def test_it(): pass\n")
    seconds.write_text(json.dumps(old | {"test_b.py::test_old": 7}))
    code = "import pytest\ndef test_it(): pass\n@pytest.mark.level(2)\ndef test_slow(): pass\n"
    suite(f"--durations={seconds}", "--suites", "test_a.py", test_a=code)
    assert json.loads(seconds.read_text()).keys() == {
        "test_a.py::test_it", "test_a.py::test_slow", "test_b.py::test_old"
    }  # fmt: skip


def test_a_run_that_skips_all_its_files_has_shown_nothing(suite):
    finished, _ = suite(code=1, test_skipped="import pytest\npytest.importorskip('no_such_package')")
    assert "nothing was collected" in finished.stdout


def test_suites_are_names_or_ends_of_paths(suite):
    files = {
        "a__test_same": "def test_a(): pass",
        "b__test_same": "def test_b(): pass",
        "test_else": "def test_c(): pass",
    }
    _, results = suite("--suites", "test_same.py", **files)
    assert set(results) == {"a/test_same.py::test_a", "b/test_same.py::test_b"}
    _, results = suite("--suites", "b/test_same.py", **files)
    assert set(results) == {"b/test_same.py::test_b"}


def test_subprocess_gives_each_file_a_process(suite):
    code = "import os, pathlib\ndef test_it(): pathlib.Path(f'{os.getpid()}.pid').touch()\n"
    finished, _ = suite("--subprocess", test_a=code, test_b=code, test_c=code)
    assert "processes: 3" in finished.stdout
    finished, _ = suite(test_a=code, test_b=code, test_c=code)
    assert "processes: 1" in finished.stdout


def test_a_result_dir_keeps_logs_and_without_one_nothing_is_left(suite, tmp_path):
    suite(f"--result_dir={tmp_path / 'logs'}", test_says="def test_says(): print('kept')")
    logs = list((tmp_path / "logs").glob("*/*.log"))
    assert any("kept" in log.read_text() for log in logs)
    before = set(tmp_path.rglob("*.log"))
    suite(test_says="def test_says(): print('kept')")
    assert set(tmp_path.rglob("*.log")) == before


def test_the_slowest_tests_are_shown_unless_the_profile_is_off(suite):
    code = "import time\ndef test_slow(): time.sleep(1.1)\n"
    assert "\nslowest\n" in suite(test_slow=code)[0].stdout
    assert "\nslowest\n" not in suite("--disable_profile", test_slow=code)[0].stdout


def test_files_without_any_test_fail_the_run(suite):
    finished, _ = suite(code=1, test_nothing="x = 1")
    assert "nothing was collected" in finished.stdout


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--pattern=nasty*.py"], "no file in it or below is named like 'nasty*.py'"),
        (["--suites", "test_hree.py"], "did you mean 'test_here.py'?"),
        (["--baseline=record"], "say why with --reason"),
        (["--reason=x"], "--reason goes with --baseline record"),
        (["--timeout=0"], "--timeout 0"),
        (["--retries=-1"], "--retries -1"),
        (["--shard=3/2"], "write i/n"),
        (["--parallel=0"], "neither a number of workers nor auto"),
        (["--gpus=0,0"], "different numbers"),
        (["--junitxml=no/such/folder.xml"], "does not exist"),
        (["--run_config=none.yaml"], "No such file"),
        (["--level=3"], "invalid choice"),
    ],
)
def test_what_makes_no_sense_ends_with_code_2_and_one_message(suite, flags, said):
    finished, _ = suite(*flags, code=2, test_here="def test_here(): pass")
    assert said in finished.stderr
    assert "Traceback" not in finished.stderr
