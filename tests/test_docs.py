import importlib
import re
import sys
import types

import numpy as np
import pytest
from conftest import ROOT, small_config, thinned
from runs import learned

from interop import layers
from interop.layers import Place
from jaxkit import experiment, tasks
from jaxkit.config import parse
from jaxkit.data.sources import open_source

pytestmark = pytest.mark.level(1)


def test_the_task_added_in_training_md_trains_without_a_change_to_the_spine(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n# (jaxkit/\S+)\.py\n(.*?)```", (ROOT / "docs" / "training.md").read_text(), re.S)
    assert [path for path, _ in blocks] == ["jaxkit/tasks/mean_image", "jaxkit/schema/mean_image"]
    for path, code in blocks:
        module = types.ModuleType(path.replace("/", "."))
        exec(compile(code, path, "exec"), module.__dict__)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(tasks.TASKS, "mean_image", "mean_image")
    changes = {"optimizer__learning_rate": 20.0, "optimizer__momentum": 0.0, "data__augment": "none"}
    config = parse(small_config(task={"name": "mean_image"}, train__steps=100, **changes), "small")
    results = experiment.run(config, tmp_path)
    assert results["best"]["error"] == min(results["best"]["error"], results["last"]["error"])
    train = open_source(config.data).train
    mean = np.mean([train[i]["image"] for i in range(len(train))], axis=0) / 255
    # a step of 20 on an error averaged over 64 pixels moves the estimate 0.625 of the way to the mean of a batch
    assert np.abs(learned(tmp_path, 100)["params/mean"] - mean).max() < 0.2


@pytest.mark.parametrize("page", thinned(["interop", "crosscheck", "profiling", "spiking"], ["profiling", "spiking"]))
def test_the_examples_of_a_page_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names = {}
    for block in python_blocks(page):
        if file := re.match(r"# (\w+)\.py\n", block):
            (tmp_path / f"{file[1]}.py").write_text(block)
            module = importlib.import_module(file[1])
            for test in [value for name, value in vars(module).items() if name.startswith("test_")]:
                test()
        else:
            exec(compile(block, f"docs/{page}.md", "exec"), names)


def test_the_table_and_the_test_of_ones_own_model_have_ten_lines():
    own, test = (block for block in python_blocks("interop") if block.startswith("# "))
    (table,) = re.findall(r"^TABLE = .*?^\)$", own, re.S | re.M)
    assert len(table.splitlines()) <= 10
    assert len([line for line in test.splitlines()[1:] if line]) <= 10


def test_every_layer_kind_is_listed_with_its_layouts():
    rows = [line for line in (ROOT / "docs" / "interop.md").read_text().splitlines() if line.startswith("|")]
    kinds = {name: kind for name, kind in vars(layers).items() if isinstance(kind, dict) and not name.startswith("_")}
    assert len(kinds) > 20
    for name, kind in kinds.items():
        (start,) = (i for i, row in enumerate(rows) if f"`{name}`" in row.split("|")[1])
        more = next(i for i, row in enumerate(rows[start + 1 :], start + 1) if row.split("|")[1].strip())
        listed = " ".join(rows[start:more])
        unlisted = {place.layout for place in kind.values() if isinstance(place, Place)} - {"o -> o"}
        assert not [layout for layout in unlisted if f"`{layout}`" not in listed], name


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), re.S)
