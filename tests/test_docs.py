import re
import sys
import types

import numpy as np
from conftest import ROOT, small_config
from runs import learned

from jaxkit import experiment, tasks
from jaxkit.config import parse
from jaxkit.data.sources import open_source


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
