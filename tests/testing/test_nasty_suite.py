"""The runner on a suite of files that crash, hang, vanish and lie: every outcome of one run, and the report of it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import ROOT

pytestmark = pytest.mark.level(1)

NASTY = Path(__file__).parent / "nasty"
CONFIG = """
isolated: [nasty_segfault.py, nasty_atexit.py, nasty_hang_at_exit.py, nasty_session_finish.py, nasty_unconfigure.py,
           nasty_should_stop.py]
envs:
  newer:
    dependencies: [--no-index, --no-deps, "{wheel}"]
    tests: [nasty_package_version.py]
  impossible:
    dependencies: [--no-index, a-package-that-nobody-has]
    tests: [nasty_no_environment.py]
"""
PASSED = """
    ignoring/nasty_heeded.py::test_here
    internal/nasty_internal_error.py::test_after internal/nasty_internal_error.py::test_at_the_end
    internal/nasty_internal_error.py::test_before internal/nasty_internal_error.py::test_breaks_the_plugin
    nasty_atexit.py::test_passes_and_the_process_then_fails
    nasty_bytes.py::test_has_odd_names[a/b] nasty_bytes.py::test_has_odd_names[a::b]
    nasty_bytes.py::test_has_odd_names[[x]] nasty_bytes.py::test_has_odd_names[<i>&amp;]
    nasty_bytes.py::test_has_odd_names[\\xe4\\n\\u20ac]
    nasty_closes_descriptors.py::test_after nasty_daemon.py::test_leaves_a_daemon_in_a_session_of_its_own
    nasty_fork_bomb.py::test_after nasty_fork_returns.py::test_after
    ending/nasty_session_finish.py::test_passes_and_the_session_cannot_finish
    nasty_unconfigure.py::test_passes_and_pytest_then_fails
    nasty_should_stop.py::test_passes_and_asks_the_session_to_stop
    nasty_grows.py::test_is_found[0] nasty_timeouts.py::test_has_seconds_in_words
    nasty_fork_returns.py::test_both_processes_return_from nasty_hang.py::test_after
    nasty_hang_at_exit.py::test_leaves_a_thread_that_nobody_joins nasty_interrupt.py::test_after
    nasty_levels.py::test_one nasty_levels.py::test_zero
    nasty_models.py::test_fails_in_part nasty_models.py::test_passes
    nasty_no_folder.py::test_after nasty_no_folder.py::test_leaves_the_process_in_a_folder_that_is_gone
    nasty_os_exit.py::test_after nasty_package_none.py::test_outside_the_environment_there_is_no_such_package
    nasty_package_version.py::test_has_the_version_of_its_environment
    nasty_pytest_exit.py::test_after nasty_random_names.py::test_beside
    nasty_replaces.py::test_replaces_functions nasty_segfault.py::test_after nasty_segfault.py::test_before
    nasty_subtests.py::test_all_well nasty_system_exit.py::test_after
    one/nasty_same_name.py::test_of_one one/nasty_same_name.py::test_same
"""
# the result of each, and what its line of information holds
OTHERS = {
    "nasty_bytes.py::test_has_odd_names[ ]": ("passed", ""),
    "nasty_subtests.py::TestSub::test_some [third] (i=0)": ("passed", ""),
    "nasty_subtests.py::TestSub::test_some [third] (i=2)": ("passed", ""),
    "nasty_subtests.py::test_all_well [well]": ("passed", ""),
    "nasty_subtests.py::test_pytests_own (i=0)": ("passed", ""),
    "nasty_bytes.py::test_prints_what_is_no_text": ("failed", "]]> <b>not bold</b> red"),
    "nasty_fixtures.py::test_both": ("failed", "failed itself, too"),
    "nasty_flaky.py::test_has_one_try_as_it_compares_numbers": ("failed", "the first time"),
    "nasty_flaky.py::test_passes_the_second_time": ("failed", "the first time"),
    "nasty_memory.py::test_wants_more_than_there_is": ("failed", "MemoryError"),
    "nasty_models.py::test_fails": ("failed", "the model is wrong"),
    "nasty_much_output.py::test_prints_ten_megabytes_and_fails": ("failed", "the last line"),
    "nasty_recursion.py::test_has_no_end": ("failed", "RecursionError"),
    "nasty_replaces.py::test_after": ("failed", "seen all the same"),
    "nasty_subtests.py::TestSub::test_some": ("failed", "contains 1 failed subtest"),
    "nasty_subtests.py::TestSub::test_some [third] (i=1)": ("failed", "assert 1 != 1"),
    "nasty_subtests.py::test_pytests_own": ("failed", "contains 1 failed subtest"),
    "nasty_subtests.py::test_pytests_own (i=1)": ("failed", "assert 1 == 0"),
    "nasty_system_exit.py::test_exits": ("failed", "SystemExit"),
    "two/nasty_same_name.py::test_same": ("failed", "of two"),
    "broken_conftest/nasty_beside.py": ("error", "ended with 4 before its tests were collected"),
    "nasty_fixtures.py::test_after": ("error", "teardown: RuntimeError: no tear-down"),
    "nasty_fixtures.py::test_before": ("error", "setup: RuntimeError: no set-up"),
    "nasty_fixtures.py::test_unknown": ("error", "setup: "),
    "nasty_import_error.py": ("error", "No module named 'a_module_that_nobody_has'"),
    "nasty_levels.py::test_three": ("error", "a level is 0, 1 or 2"),
    "nasty_no_environment.py": ("error", "environment impossible could not be made"),
    "nasty_second_import.py::test_is_lost": ("error", "when its file was to be run: RuntimeError"),
    "nasty_set_up_class.py::TestSetUp::test_first": ("error", "setup: RuntimeError: no set-up"),
    "nasty_set_up_class.py::TestSetUp::test_second": ("error", "setup: RuntimeError: no set-up"),
    "nasty_set_up_class.py::TestTearDown::test_only": ("error", "teardown: RuntimeError: no tear-down"),
    "nasty_set_up_module.py::test_first": ("error", "setup: RuntimeError: no set-up"),
    "nasty_set_up_module.py::test_second": ("error", "setup: RuntimeError: no set-up"),
    "nasty_syntax_error.py": ("error", "SyntaxError"),
    "internal/nasty_internal_error.py::test_breaks_the_reporting": ("crashed", "ended with 3"),
    "nasty_abort.py::test_aborts": ("crashed", "SIGABRT"),
    "nasty_closes_descriptors.py::test_closes_what_is_not_its_own": ("crashed", "ended with"),
    "nasty_flaky.py::test_crashes_the_first_time": ("crashed", "SIGABRT"),
    "nasty_fork_bomb.py::test_forks_without_end": ("crashed", "more than 256 processes"),
    "nasty_import_exit.py": ("crashed", "ended with 0 while it was imported"),
    "nasty_import_segfault.py": ("crashed", "SIGSEGV while it was imported"),
    "nasty_interrupt.py::test_raises_what_ctrl_c_raises": ("crashed", "ended with 2"),
    "nasty_killed.py::test_is_killed_as_the_kernel_kills_when_memory_runs_out": ("crashed", "if memory ran out"),
    "nasty_models.py::test_crashes": ("crashed", "SIGABRT"),
    "nasty_os_exit.py::test_ends_the_process_as_if_all_were_well": ("crashed", "ended with 0"),
    "nasty_pytest_exit.py::test_ends_the_session": ("crashed", "ended with 2"),
    "nasty_recursion.py::test_overflows_the_stack_of_c": ("crashed", "SIGSEGV"),
    "nasty_segfault.py::test_reads_address_zero": ("crashed", "SIGSEGV"),
    "process of nasty_session_finish.py": ("crashed", "all its tests were done, then the process ended with 3"),
    "process of nasty_unconfigure.py": ("crashed", "all its tests were done, then the process ended with 1"),
    "process of nasty_should_stop.py": ("error", "pytest ended with 2, though no test of it failed"),
    "nasty_grows.py::test_is_found[1]": ("error", "not run: found when its file was run"),
    "nasty_timeouts.py::test_has_no_seconds": ("error", "timeout('soon'): give seconds"),
    "nasty_timeouts.py::test_has_a_level_by_name": ("skipped", "runs with --level 2"),
    "process of nasty_atexit.py": ("crashed", "all its tests were done, then the process ended with 3"),
    "nasty_hang.py::test_sleeps": ("timeout", "no end after 2 s"),
    "nasty_hang_deaf.py::test_ignores_every_signal_it_can": ("timeout", "no end after 2 s"),
    "nasty_hang_in_c.py::test_pauses_with_the_lock_held": ("timeout", "no end after 2 s"),
    "nasty_hang_in_import.py": ("timeout", "while it was imported"),
    "nasty_hang_in_teardown.py::test_passes_and_never_ends": ("timeout", "no end after 2 s"),
    "nasty_hang_in_xla.py::test_loops_for_ever_on_the_device": ("timeout", "no end after 3 s"),
    "nasty_stopped.py::test_stops_itself": ("timeout", "no end after 2 s"),
    "process of nasty_hang_at_exit.py": ("timeout", "all its tests were done, then no end"),
    "nasty_models.py::test_vanishes[]": ("missing", "the same every time?"),
    "nasty_random_names.py::test_has_another_name_every_time[]": ("missing", "the same every time?"),
    "nasty_unexpected.py::TestUnittest::test_passes": ("xpassed", "Unexpected success"),
    "nasty_unexpected.py::test_lax": ("xpassed", "lax"),
    "nasty_unexpected.py::test_strict": ("xpassed", "strict"),
    "nasty_unexpected.py::TestUnittest::test_fails": ("xfailed", ""),
    "nasty_unexpected.py::test_fails": ("xfailed", "known"),
    "nasty_levels.py::TestDecorated::test_two": ("skipped", "current test level"),
    "nasty_levels.py::test_two": ("skipped", "runs with --level 2"),
    "nasty_models.py::test_skips": ("skipped", "runs with --level 2"),
    "nasty_skipped_file.py": ("skipped", "not on this machine"),
    "nasty_skips.py::TestClass::test_first": ("skipped", "not this class"),
    "nasty_skips.py::test_in_the_middle": ("skipped", "not here"),
    "nasty_skips.py::test_marked": ("skipped", "not today"),
}


@pytest.fixture(scope="module")
def nasty(tmp_path_factory, wheel):
    """The folder that the suite was run in, and the finished process of the runner."""
    folder = tmp_path_factory.mktemp("nasty") / "suite"
    shutil.copytree(NASTY, folder, ignore=shutil.ignore_patterns("__pycache__"))
    config = folder / "run_config.yaml"
    config.write_text(CONFIG.format(wheel=wheel(2)))
    command = [sys.executable, str(ROOT / "scripts" / "run_tests.py"), "--test_dir", str(folder)]
    flags = ["--pattern=nasty_*.py", "--level=1", "--parallel=2", "--timeout=8", f"--run_config={config}"]
    files = [f"--json={folder / 'out.json'}", f"--junitxml={folder / 'out.xml'}", f"--html={folder / 'out.html'}"]
    # plugins that nobody asks for take half a second to import, a hundred times
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return folder, subprocess.run(
        [*command, *flags, *files], capture_output=True, text=True, env=environment, check=False
    )


@pytest.fixture(scope="module")
def report(nasty):
    return json.loads((nasty[0] / "out.json").read_text())


@pytest.fixture(scope="module")
def results(report):
    """By name, the number of the process that is in some of them left out."""
    return {re.sub(r"\[(of )?process \d+\]", "[]", result["name"]): result for result in report["results"]}


def test_the_suite_has_more_than_thirty_files():
    assert len(list(NASTY.rglob("nasty_*.py"))) > 30


def test_every_outcome_is_right_and_nothing_is_missing_or_added(results, report):
    expected = {**dict.fromkeys(PASSED.split(), "passed"), **{name: word for name, (word, _) in OTHERS.items()}}
    assert {name: result["result"] for name, result in results.items()} == expected
    assert len(results) == len(report["results"])


def test_every_reason_is_told_in_a_line(results):
    wrong = {name: results[name]["info"] for name, (_, info) in OTHERS.items() if info not in results[name]["info"]}
    assert not wrong


def test_what_was_collected_is_what_is_reported(report):
    tests = [result for result in report["results"] if "::" in result["name"] and " (i=" not in result["name"]]
    # none of these is a test that was collected: a subtest, tests with markers that say nothing, one found too late
    others = ("[well]", "::test_three", "::test_has_no_seconds", "::test_is_found[1]")
    tests = [result for result in tests if not result["name"].endswith(others)]
    assert len(tests) == report["collected"]


def test_the_exit_code_is_that_of_the_worst(nasty):
    assert nasty[1].returncode == 1
    assert nasty[1].stdout.splitlines()[-1].startswith("FAILED: ")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("nasty_segfault.py::test_reads_address_zero", ("printed before the crash", "in test_reads_address_zero")),
        ("nasty_hang.py::test_sleeps", ("printed before the hang", "in test_sleeps")),
        ("nasty_hang_in_c.py::test_pauses_with_the_lock_held", ("in test_pauses_with_the_lock_held",)),
        ("nasty_hang_in_xla.py::test_loops_for_ever_on_the_device", ("in test_loops_for_ever_on_the_device",)),
        ("nasty_hang_in_import.py", ("nasty_hang_in_import.py", "line 3")),
        ("nasty_much_output.py::test_prints_ten_megabytes_and_fails", ("the first line", "from a process of its own")),
        ("broken_conftest/nasty_beside.py", ("the conftest is broken",)),
        ("internal/nasty_internal_error.py::test_breaks_the_reporting", ("a plugin fails while it reports",)),
        ("nasty_no_environment.py", ("a-package-that-nobody-has",)),
        ("nasty_pytest_exit.py::test_ends_the_session", ()),
    ],
)
def test_the_output_of_what_died_is_kept(results, name, found):
    assert [words for words in found if words not in results[name]["output"]] == []


def test_ten_megabytes_of_output_are_cut_in_their_middle(results, nasty):
    output = results["nasty_much_output.py::test_prints_ten_megabytes_and_fails"]["output"]
    assert len(output) < 50_000
    assert re.search(r"\.\.\. 10,4\d\d,\d{3} bytes \.\.\.", output)
    assert len(nasty[1].stdout) < 1_000_000


def test_files_without_tests_are_named(report):
    assert {Path(file).name for file in report["files_without_tests"]} == {
        "nasty_no_tests.py",
        "nasty_ignored.py",
        "nasty_in_a_folder_left_out.py",
    }


def test_models_are_judged_by_all_their_tests(report):
    assert report["models"] == {
        "org/crashes": "FAIL",
        "org/fails": "FAIL",
        "org/never_imported": "FAIL",
        "org/not_here": "SKIP",
        "org/passes": "PASS",
        "org/skips": "SKIP",
        "org/vanishes": "MISSING",
    }


def test_nothing_that_a_test_has_started_outlives_it(nasty):
    daemon = int((nasty[0] / "daemon.pid").read_text())
    # a zombie that nobody has collected is dead, too
    state = Path(f"/proc/{daemon}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"
    left = [path for path in Path("/proc").glob("[0-9]*/cwd") if _target(path).is_relative_to(nasty[0])]
    assert left == []


def _target(link):
    try:
        return link.readlink()
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return Path("/nowhere")


def test_junit_has_a_case_for_each_result_and_its_sums(nasty, report):
    suite = ElementTree.parse(nasty[0] / "out.xml").getroot().find("testsuite")
    cases = suite.findall("testcase")
    counts = report["counts"]
    assert len(cases) == int(suite.get("tests")) == len(report["results"])
    assert len(suite.findall(".//failure")) == int(suite.get("failures")) == counts["failed"] + counts["xpassed"]
    bad = counts["error"] + counts["crashed"] + counts["timeout"] + counts["missing"]
    assert len(suite.findall(".//error")) == int(suite.get("errors")) == bad
    assert len(suite.findall(".//skipped")) == int(suite.get("skipped")) == counts["skipped"] + counts["xfailed"]
    (crash,) = [case for case in cases if case.get("name") == "test_reads_address_zero"]
    assert "printed before the crash" in crash.find("error").text


def test_the_table_of_the_terminal_has_every_result_but_skips(nasty, report):
    table = nasty[1].stdout.partition("\nname ")[2].partition("\n\n")[0].splitlines()[1:]
    assert len(table) == len([result for result in report["results"] if result["result"] != "skipped"])


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is of Linux")
def test_workers_die_with_a_runner_that_is_killed(tmp_path):
    program = "import os, pathlib, time\ndef test_slow():\n    pathlib.Path('pid').write_text(str(os.getpid()))\n"
    (tmp_path / "test_it.py").write_text(program + "    time.sleep(600)\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, str(ROOT / "scripts" / "run_tests.py"), "--test_dir", str(tmp_path)]
    runner = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text()):
        assert runner.poll() is None
        time.sleep(0.05)
    runner.kill()
    runner.wait()
    state, patience = Path(f"/proc/{pid.read_text()}/stat"), time.monotonic() + 30
    # a zombie that nobody has collected is dead, too
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < patience
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_workers_and_what_had_ended_is_reported(tmp_path, number, code):
    (tmp_path / "test_first.py").write_text("def test_quick(): pass\ndef test_fails(): assert False\n")
    program = "import time, pathlib\ndef test_slow():\n    pathlib.Path('slow').touch()\n    time.sleep(600)\n"
    (tmp_path / "test_second.py").write_text(program + "def test_never(): pass\n")
    command = [sys.executable, str(ROOT / "scripts" / "run_tests.py"), "--test_dir", str(tmp_path), "--subprocess"]
    # as in a terminal: under nohup SIGHUP is ignored, and stays so
    begin = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", begin, *command, f"--json={tmp_path / 'out.json'}"]
    runner = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE)
    while not (tmp_path / "slow").exists():
        assert runner.poll() is None
        time.sleep(0.05)
    runner.send_signal(number)
    runner.communicate(timeout=60)
    assert runner.returncode == code
    found = {
        one["name"].partition("::")[2]: one["result"]
        for one in json.loads((tmp_path / "out.json").read_text())["results"]
    }
    assert found.pop("test_slow") == found.pop("test_never") == "missing"
    assert found in (
        {"test_quick": "passed", "test_fails": "failed"},
        {"test_quick": "missing", "test_fails": "missing"},
    )
    assert [path for path in Path("/proc").glob("[0-9]*/cwd") if _target(path).is_relative_to(tmp_path)] == []
