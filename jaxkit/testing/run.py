"""A whole run: what there is to run, who runs it, and what became of it."""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from jaxkit.testing import environments, gpus, plan, pool
from jaxkit.testing.accounts import account, gathered
from jaxkit.testing.durations import Durations
from jaxkit.testing.ending import Ending
from jaxkit.testing.options import Options
from jaxkit.testing.pool import Job, Setting, Signals
from jaxkit.testing.results import SHOWN, Result, Test
from jaxkit.testing.texts import clean

_RETRIED = ("failed", "error", "crashed", "timeout")


class Outcome(NamedTuple):
    """What became of a run."""

    results: list[Result]
    tests: list[Test]
    """All that were collected."""
    empty: list[str]
    """Files without a test."""
    signal: int | None
    started: float
    ended: float
    setup: dict[str, str]
    """Of the run, in words."""

    @property
    def exit_code(self) -> int:
        """0: all is well; 1: something is not, or there was nothing; 128 + n: ended by signal n."""
        if self.signal is not None:
            return 128 + self.signal
        return int(any(result.bad for result in self.results) or not self.tests)


class Run:
    """The state of a run: tests that were collected, results as they come.

    Raises:
        ConfigError: if options or run config ask for what is not there.
    """

    def __init__(self, options: Options):
        self._options = options
        self._config = plan.read_config(options.run_config) if options.run_config else plan.RunConfig()
        root = plan.pytest_root(options.test_dir)
        files = plan.discover(options.test_dir, [options.pattern] if options.pattern else root.python_files)
        assigned = plan.assigned(files, self._config)
        isolated = files if options.subprocess else plan.chosen(files, self._config.isolated, "isolated")
        self._isolated = frozenset(map(str, isolated))
        self._root, self._arguments = root.folder, (*root.arguments, *options.arguments)
        self._durations = Durations(options.durations or self._root / ".pytest_cache" / "durations.json", self._root)
        self._files = plan.chosen(files, options.suites, "--suites") if options.suites else files
        self._setup = {"shard": ""}
        if options.shard:
            index, count = options.shard
            stamp = self._durations.stamp(self._files)
            self._setup["shard"] = f"{index}/{count} of plan {stamp}: every shard must say the same plan"
            self._files = plan.shard(self._files, self._durations.of_files(), index, count)
        self._assigned = {file: assigned[file] for file in self._files}
        visible = gpus.visible(options.gpus)
        self._parallel = options.parallel or len(visible) or _processors()
        self._slots = gpus.Slots(visible, self._parallel)
        self._setup |= {"workers": str(self._parallel), "GPUs": ", ".join(visible) or "none", "root": str(self._root)}
        self._tests: list[Test] = []
        self._ids: dict[str, list[str]] = {}
        """Of all tests of a file."""
        self._results: dict[str, list[Result]] = {}
        """By test; that of the test itself, then those of its subtests."""
        self._others: list[Result] = []
        """Of files and processes."""

    def listed(self) -> Outcome:
        """Collects, and runs nothing."""
        return self._within(self._collect, runs=False)

    def done(self) -> Outcome:
        """Collects, runs, tries again what may be tried again, and keeps how long tests took."""
        return self._within(self._execute, runs=True)

    def _within(self, work: Callable[[Setting, Signals], None], runs: bool) -> Outcome:
        started = time.time()
        with Signals() as signals, _folder(self._options.result_dir) as folder:
            work(self._setting(folder), signals)
        if runs:
            # the promise of every run: what was collected is reported
            said = "no process reported it" if signals.number is None else "not run: the runner was stopped"
            lost = [test for test in self._tests if test.id not in self._results]
            self._results |= {test.id: [_unrun(test, "missing", said)] for test in lost}
        results = [*self._others, *(result for those in self._results.values() for result in those)]
        named = {test.file for test in self._tests}
        named |= {str(self._root / one.name.partition("::")[0]) for one in self._others}
        empty = [str(file) for file in self._files if str(file) not in named]
        return Outcome(results, self._tests, empty, signals.number, started, time.time(), self._setup)

    def _setting(self, folder: Path) -> Setting:
        variables = {
            # what decorators of unittest suites ask
            "TEST_LEVEL": str(self._options.level),
            "NUMERIC_BASELINE": self._options.baseline,
            "NUMERIC_BASELINE_REASON": self._options.reason,
            "JAX_COMPILATION_CACHE_DIR": os.environ.get(
                "JAX_COMPILATION_CACHE_DIR", str(self._root / ".pytest_cache" / "xla")
            ),
        }
        arguments = (*self._arguments, "-o", f"cache_dir={folder / 'cache'}")
        top = self._options.test_dir.resolve()
        return Setting(folder, self._root, top, arguments, variables, self._pythons(), self._options.timeout)

    def _pythons(self) -> dict[str, str]:
        """The interpreters of the environments in use; what needs one that cannot be made is an error."""
        pythons, place = {}, self._root / ".pytest_cache" / "environments"
        for name in sorted(set(self._assigned.values())):
            try:
                pythons[name] = environments.python_of(self._config.environments[name], place)
            except environments.EnvironmentFailed as error:
                now, info = time.time(), f"environment {name} could not be made"
                lost = [file for file, its in self._assigned.items() if its == name]
                self._others += [
                    Result(str(file.relative_to(self._root)), "error", info, now, now, output=str(error))
                    for file in lost
                ]
        return pythons

    def _collect(self, setting: Setting, signals: Signals) -> None:
        jobs = []
        for name in setting.pythons:
            files = [str(file) for file, its in self._assigned.items() if its == name]
            jobs += [Job((file,), None, name) for file in files if file in self._isolated]
            files = [file for file in files if file not in self._isolated]
            jobs += [Job(group, None, name) for group in _collectable(files, self._parallel)]
        pool.run(jobs, setting, self._parallel, self._slots, signals, self._gathered)
        self._tests.sort(key=lambda test: test.file)
        for test in self._tests:
            self._ids.setdefault(test.file, []).append(test.id)

    def _gathered(self, ending: Ending) -> list[Job]:
        found = gathered(ending)
        self._tests += found.tests
        self._others += [one._replace(name=one.name.removeprefix(f"{self._root}{os.sep}")) for one in found.results]
        return [Job(files, None, ending.environment) for files in found.again]

    def _execute(self, setting: Setting, signals: Signals) -> None:
        self._collect(setting, signals)
        if signals.number is not None:
            return
        level = self._options.level
        for test in self._tests:
            if test.level > level:
                info = f"level {test.level}: runs with --level {test.level}"
                self._results[test.id] = [_unrun(test, "skipped", info)]
        wanted = [test for test in self._tests if test.level <= level]
        batches = []
        for name in setting.pythons:
            tests = [test for test in wanted if test.environment == name]
            batches += plan.batches(tests, self._durations.of_tests(), self._parallel, self._isolated)
        batches.sort(key=lambda batch: -batch.seconds)
        self._say(f"{len(self._tests)} tests in {len(self._files)} files; processes: {len(batches)}")
        jobs = [self._job(batch.tests) for batch in batches]
        pool.run(jobs, setting, self._parallel, self._slots, signals, self._accounted)
        for number in range(self._options.retries):
            self._retry(setting, signals, number + 2)
        try:
            self._durations.keep((one for those in self._results.values() for one in those[:1]), self._ids)
        except OSError as error:
            self._say(f"warning: how long tests took is not kept: {error}")

    def _accounted(self, ending: Ending) -> list[Job]:
        found = account(ending)
        self._take(found.results, {test.id for test in ending.tests})
        if not found.left:
            return []
        if len(found.left) < len(ending.tests):
            return [self._job(found.left)]
        files = dict.fromkeys(test.file for test in found.left)
        return [self._job([test for test in found.left if test.file == file]) for file in files]

    def _take(self, results: Iterable[Result], ids: set[str]) -> None:
        current = None
        for result in results:
            if result.name in ids:
                current = self._results.setdefault(result.name, [])
                current.append(result)
            elif current is not None and result.name.startswith(current[0].name):
                current.append(result)
            elif any(result[:3] == other[:3] for other in self._others):
                # a file that is run in two parts says the same twice
                continue
            else:
                self._others.append(result)
            if result.result in SHOWN:
                self._say(f"{result.result.upper()} {result.name}: {result.info}")

    def _retry(self, setting: Setting, signals: Signals, number: int) -> None:
        """Runs what failed once more, each test in a process of its own; what passes then is flaky, not passed."""
        if signals.number is not None:
            return
        tests = [test for test in self._tests if self._results[test.id][0].result in _RETRIED and not test.numeric]
        former = {test.id: self._results.pop(test.id) for test in tests}
        pool.run([self._job([test]) for test in tests], setting, self._parallel, self._slots, signals, self._accounted)
        for test in tests:
            now, before = self._results.get(test.id), former[test.id][0]
            if now is None or any(result.bad for result in now):
                self._results[test.id] = former[test.id]
            else:
                info = f"{now[0].result} at try {number}; before: {before.info}"
                self._results[test.id] = [now[0]._replace(result="flaky", info=info, output=before.output), *now[1:]]

    def _job(self, tests: Iterable[Test]) -> Job:
        tests = tuple(tests)
        files = tuple(dict.fromkeys(test.file for test in tests))
        known = tuple(id for file in files for id in self._ids[file])
        return Job(files, tests, tests[0].environment, known)

    def _say(self, line: str) -> None:
        print(clean(line), flush=True)


def _collectable(files: list[str], parallel: int) -> Iterator[tuple[str, ...]]:
    """Groups files for collecting processes; files imported under the same name never share one."""
    groups: list[dict[str, str]] = []
    most = -(-len(files) // parallel)
    for file in files:
        name = plan.module_name(Path(file))
        group = next((group for group in groups if len(group) < most and name not in group), None)
        if group is None:
            groups.append(group := {})
        group[name] = file
    return (tuple(group.values()) for group in groups)


def _processors() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _unrun(test: Test, word: str, info: str) -> Result:
    now = time.time()
    return Result(test.id, word, info, now, now, test.models, test.level)


@contextlib.contextmanager
def _folder(chosen: Path | None) -> Iterator[Path]:
    """The folder of jobs, events and logs: one of this run's own, in that which was asked for, or one that goes."""
    if chosen is None:
        with tempfile.TemporaryDirectory(prefix="run_tests.", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
        return
    chosen.mkdir(parents=True, exist_ok=True)
    yield Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S."), dir=chosen)).resolve()
