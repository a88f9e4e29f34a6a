import json

import numpy as np
import pytest
import yaml
from conftest import small_config
from runs import identical, learned

from jaxkit import experiment
from jaxkit.config import parse
from jaxkit.errors import ConfigError

pytestmark = pytest.mark.level(1)

RULE = {"window": 3, "ratio": 0.9}
EVERY = {"train__eval_every": 1, "train__checkpoint_every": 50, "train__steps": 30, "data__eval_batch_size": 600}


def run(folder, **changes):
    raw = parse(small_config(**{**EVERY, **changes}), "small")
    return experiment.run(raw, folder)


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["top1"] for line in lines if line["kind"] == "eval"]


def test_a_run_ends_at_the_first_evaluation_after_which_the_last_ones_vary_less_than_all(tmp_path, capsys):
    results = run(tmp_path / "run", train__early_stop=RULE)
    found = losses(tmp_path / "run")
    settled = [step for step in range(3, len(found) + 1) if np.var(found[step - 3 : step]) < 0.9 * np.var(found[:step])]
    assert settled == [len(found)]
    assert results["train"]["steps"] == len(found) < 30
    assert f"ends it after step {len(found)} of 30" in capsys.readouterr().out
    # once more, and nothing is left to do
    assert run(tmp_path / "run", train__early_stop=RULE)["train"]["steps"] == len(found)
    assert losses(tmp_path / "run") == found


def test_a_stopped_run_remembers_its_evaluations(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", train__early_stop=RULE)["train"]["steps"]
    assert whole > 3
    run(tmp_path / "parts", train__early_stop=RULE, train__steps=whole - 1)
    assert run(tmp_path / "parts", train__early_stop=RULE)["train"]["steps"] == whole


def test_a_rate_of_one_example_is_multiplied_by_the_batch(tmp_path):
    short = {"train__steps": 2, "train__eval_every": 2}
    run(tmp_path / "one", optimizer__learning_rate=0.001, optimizer__scale_learning_rate=True, **short)
    run(tmp_path / "all", optimizer__learning_rate=0.064, **short)
    assert identical(learned(tmp_path / "one", 2), learned(tmp_path / "all", 2))


def test_a_window_of_one_is_refused():
    with pytest.raises(ConfigError, match=r"train.early_stop.window"):
        parse(yaml.safe_load(yaml.safe_dump(small_config(train__early_stop={"window": 1}))), "small")
