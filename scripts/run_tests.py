"""Runs tests in parallel, in fresh processes that are watched; run with --help."""

import argparse
import sys
from pathlib import Path

from jaxkit.cli import reported
from jaxkit.testing import files, page, report
from jaxkit.testing.options import Options, shard, workers
from jaxkit.testing.run import Run

parser = argparse.ArgumentParser(
    description="Runs pytest's and unittest's tests in fresh, watched processes. What follows -- is pytest's: -- -k x.",
    epilog="exit codes: 0 all is well, 1 a test is not or there is none, 2 usage, 130 Ctrl-C, 143 SIGTERM",
)
add = parser.add_argument
add("--list_tests", action="store_true", help="print what would be collected, and run nothing")
add("--test_dir", type=Path, default=Path("tests"), metavar="DIR", help="default: tests")
add("--pattern", metavar="GLOB", help="of the names of test files; default: pytest's python_files")
add("--suites", nargs="+", default=(), metavar="F", help="only these files: names, or ends of paths")
add("--level", type=int, choices=(0, 1, 2), default=0, help="run tests marked level(n) up to this; default: 0")
add("--run_config", "--run-config", type=Path, metavar="FILE", help="YAML: isolated files, and environments")
add("--subprocess", action="store_true", help="each file in a process of its own")
add("--parallel", type=workers, default=1, metavar="N", help="workers; auto: one a processor, or one a GPU; default: 1")
add("--gpus", metavar="0,1", help="of those that CUDA_VISIBLE_DEVICES leaves; default: all of them")
add("--timeout", type=float, default=600, metavar="SECONDS", help="for a test, and an import; default: 600")
add("--retries", type=int, default=0, metavar="N", help="run again what failed, unless it compares numbers; default: 0")
add("--shard", type=shard, metavar="I/N", help="the I-th of N parts that take as long, by --durations")
add("--durations", type=Path, metavar="FILE", help="of earlier runs; default: .pytest_cache/durations.json")
add("--baseline", choices=("check", "record"), default="check", help="numeric baselines; record needs --reason")
add("--reason", default="", metavar="TEXT", help="why baselines are recorded anew; kept with them")
add("--result_dir", type=Path, metavar="DIR", help="keep the logs and events of all processes in a folder in it")
add("--disable_profile", action="store_true", help="no slowest tests and no use of GPUs in the report")
for kind, what in (("json", "as JSON"), ("junitxml", "as JUnit does"), ("html", "as a page")):
    add(f"--{kind}", type=Path, metavar="OUT", help=f"write the results {what}")


def main() -> int:
    """Parses, runs, reports."""
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given = vars(parser.parse_args(sys.argv[1:cut]))
    json, junitxml, html = outputs = [given.pop(name) for name in ("json", "junitxml", "html")]
    listing, profile = given.pop("list_tests"), not given.pop("disable_profile")
    sys.stdout.reconfigure(errors="backslashreplace")  # tests have names that a terminal has no letters for
    files.require_places([path for path in outputs if path])
    run = Run(Options(**given, arguments=tuple(sys.argv[cut + 1 :])))
    outcome = run.listed() if listing else run.done()
    # before anything is written: the disk may be full
    print(report.listing(outcome) if listing else report.render(outcome, profile), flush=True)
    files.write(outcome, json, junitxml)
    if html:
        from interop.report.style import SCRIPT, STYLE

        page.write(html, outcome, profile, STYLE, SCRIPT)
    return outcome.exit_code


if __name__ == "__main__":
    with reported("before anything was written"):
        sys.exit(main())
