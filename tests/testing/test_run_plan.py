"""Which files are found, how a run config is read, and how files are spread over shards and processes."""

from pathlib import Path

import pytest

from jaxkit.errors import ConfigError
from jaxkit.testing import plan, results


@pytest.fixture
def config(tmp_path):
    def read(text):
        path = tmp_path / "run_config.yaml"
        path.write_text(text)
        return plan.read_config(path)

    return read


def collected(counts):
    return [results.Test(f"{file}::{i}", file) for file, count in counts.items() for i in range(count)]


def test_the_run_config_of_modelscope_is_read(config, tmp_path):
    (tmp_path / "tensorflow1x.txt").write_text("tensorflow==1.15\n")
    found = config(
        "isolated:  # a process of their own\n  - test_text_to_speech.py\n"
        "envs:\n  default:\n    dependencies:\n      - numpy>=1.20,<=1.22.0\n      - protobuf<4,>=3.20.2\n"
        "  tensorflow1x:\n    requirements:\n      - tensorflow1x.txt\n    dependencies:\n      - numpy==1.18.5\n"
        "    tests:\n      - test_text_to_speech.py\n"
    )
    assert found.isolated == ("test_text_to_speech.py",)
    assert found.environments["default"].dependencies == ("numpy>=1.20,<=1.22.0", "protobuf<4,>=3.20.2")
    assert found.environments["tensorflow1x"] == plan.Environment(
        (tmp_path / "tensorflow1x.txt",), ("numpy==1.18.5",), ("test_text_to_speech.py",)
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("isolate: []", "did you mean 'isolated'?"),
        ("envs: {a: {test: []}}", "in envs.a there is no key 'test', did you mean 'tests'?"),
        ("envs: {a: {tests: test_a.py}}", "envs.a.tests must be a list of strings"),
        ("isolated: [1]", "isolated must be a list of strings"),
        ("envs: {a: {requirements: [none.txt]}}", "there is no file"),
        ("[1, 2]", "must have keys"),
        ("a: [", "no YAML"),
    ],
)
def test_a_wrong_run_config_is_refused(config, text, said):
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        config(text)


def test_a_file_of_two_environments_or_of_no_name_is_refused():
    files = [Path("/t/a/test_x.py"), Path("/t/b/test_x.py"), Path("/t/test_y.py")]
    two = plan.RunConfig(
        environments={"a": plan.Environment(tests=("test_x.py",)), "b": plan.Environment(tests=("b/test_x.py",))}
    )
    with pytest.raises(ConfigError, match="belongs to a already"):
        plan.assigned(files, two)
    with pytest.raises(ConfigError, match="did you mean 'test_y.py'"):
        plan.assigned(files, plan.RunConfig(environments={"a": plan.Environment(tests=("test_z.py",))}))
    found = plan.assigned(files, plan.RunConfig(environments={"a": plan.Environment(tests=("a/test_x.py",))}))
    assert list(found.values()) == ["a", "default", "default"]


def test_hidden_folders_and_virtual_environments_hold_no_test_files(tmp_path):
    for name in ("test_a.py", "deep/er/test_b.py", ".tox/test_c.py", "env/test_d.py", "__pycache__/test_e.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "env" / "pyvenv.cfg").touch()
    assert [path.name for path in plan.discover(tmp_path, ["test_*.py"])] == ["test_b.py", "test_a.py"]


def test_every_file_is_in_one_shard_and_shards_take_as_long():
    files = [Path(f"/t/test_{i}.py") for i in range(30)]
    seconds = {str(file): float(1 + i**2 % 17) for i, file in enumerate(files)}
    shards = [plan.shard(files, seconds, i, 4) for i in range(1, 5)]
    assert sorted(file for part in shards for file in part) == sorted(files)
    loads = [sum(seconds[str(file)] for file in part) for part in shards]
    # greedy: no two parts are further apart than the shortest of the last files
    assert max(loads) - min(loads) <= 2


def test_batches_hold_every_test_once_and_files_whole():
    tests = collected({f"/t/test_{i}.py": 1 + i % 5 for i in range(40)})
    made = plan.batches(tests, {test.id: 3.0 for test in tests}, 3)
    assert sorted(test.id for batch in made for test in batch.tests) == sorted(test.id for test in tests)
    places = [{test.file for test in batch.tests} for batch in made]
    assert sum(map(len, places)) == 40


def test_batches_are_large_first_and_small_at_the_end_but_not_tiny():
    tests = collected({f"/t/test_{i}.py": 1 for i in range(300)})
    sizes = [batch.seconds for batch in plan.batches(tests, {test.id: 2.0 for test in tests}, 2)]
    assert sizes == sorted(sizes, reverse=True)
    # half a worker's share of 600 seconds; then of what is left; a minute unless less is left
    assert sizes[:2] == [150, 112]
    assert min(sizes[:-1]) >= 60


def test_of_tests_that_were_never_run_those_of_a_higher_level_begin_first():
    tests = collected({"/t/test_many.py": 7, "/t/test_long.py": 1})
    tests[-1] = tests[-1]._replace(level=1)
    first = plan.batches(tests, {}, 2)[0]
    assert {test.file for test in first.tests} == {"/t/test_long.py"}


def test_a_short_suite_still_has_a_batch_for_each_worker():
    tests = collected({f"/t/test_{i}.py": 1 for i in range(8)})
    assert [len(batch.tests) for batch in plan.batches(tests, {test.id: 0.125 for test in tests}, 2)] == [4, 4]
    assert len(plan.batches(tests, {}, 1)) == 1


def test_a_file_as_long_as_all_others_begins_first():
    tests = collected({"/t/test_long.py": 1, **{f"/t/test_{i}.py": 1 for i in range(9)}})
    seconds = {test.id: 100.0 if "long" in test.file else 10.0 for test in tests}
    first = plan.batches(tests, seconds, 2)[0]
    assert {test.file for test in first.tests} == {"/t/test_long.py"}


def test_files_imported_under_one_name_never_share_a_process(tmp_path):
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test_same.py").touch()
    (tmp_path / "c" / "__init__.py").touch()
    tests = collected({str(tmp_path / folder / "test_same.py"): 1 for folder in "abc"})
    places = [{Path(test.file).parent.name for test in batch.tests} for batch in plan.batches(tests, {}, 1)]
    # in a package it has another name
    assert sorted(map(sorted, places)) == [["a", "c"], ["b"]]


def test_isolated_files_have_a_batch_of_their_own():
    tests = collected({"/t/test_a.py": 2, "/t/test_b.py": 1, "/t/test_c.py": 1})
    made = plan.batches(tests, {}, 1, alone=frozenset({"/t/test_a.py"}))
    assert [sorted({test.file for test in batch.tests}) for batch in made] == [
        ["/t/test_a.py"],
        ["/t/test_b.py", "/t/test_c.py"],
    ]


def test_the_nearest_pytest_configuration_gives_the_root(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (tmp_path / "a" / "pyproject.toml").write_text("[project]\n")
    root = plan.pytest_root(tmp_path / "a" / "b")
    assert (root.folder, root.arguments[1]) == (tmp_path, f"--config-file={tmp_path / 'pyproject.toml'}")


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("pytest.ini", "[pytest]\npython_files = check_*.py\n    *_spec.py\n", ("check_*.py", "*_spec.py")),
        ("pytest.ini", "[pytest]\n", plan.PYTHON_FILES),
        ("setup.cfg", "[tool:pytest]\npython_files = check_*.py\n", ("check_*.py",)),
        ("pyproject.toml", "[tool.pytest.ini_options]\npython_files = ['a_*.py', 'b_*.py']\n", ("a_*.py", "b_*.py")),
        ("pyproject.toml", "[tool.pytest.ini_options]\npython_files = 'a_*.py b_*.py'\n", ("a_*.py", "b_*.py")),
        ("pytest.toml", "[pytest]\npython_files = ['a_*.py']\n", ("a_*.py",)),
    ],
)
def test_test_files_are_named_as_pytests_configuration_says(tmp_path, name, text, found):
    (tmp_path / name).write_text(text)
    assert plan.pytest_root(tmp_path).python_files == found


def test_a_configuration_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n= 3\n")
    with pytest.raises(ConfigError, match=r"pyproject\.toml: cannot be read"):
        plan.pytest_root(tmp_path)


def test_links_to_folders_and_files_are_followed_but_in_no_circle(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "test_far.py").touch()
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "linked").symlink_to(tmp_path / "elsewhere")
    (tests / "test_file.py").symlink_to(tmp_path / "elsewhere" / "test_far.py")
    (tests / "around").symlink_to(tests)
    found = plan.discover(tests, plan.PYTHON_FILES)
    assert [str(path.relative_to(tests)) for path in found] == ["linked/test_far.py", "test_file.py"]
