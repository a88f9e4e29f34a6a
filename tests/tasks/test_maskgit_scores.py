"""A run of a masked transformer scores what it draws."""

import json

import pytest
from conftest import small_config
from small_maskgit import small, trained_tokenizer

from jaxkit.config import parse
from jaxkit.experiment import run
from jaxkit.inference import score_run

pytestmark = pytest.mark.level(1)


def test_a_run_scores_its_samples_and_is_scored_again_to_the_same_numbers(tmp_path):
    short = {"train__steps": 2, "train__eval_every": 2, "train__checkpoint_every": 2}
    run(parse(small_config(**short), "classifier"), tmp_path / "classifier")
    score = {"classifier": {"workdir": str(tmp_path / "classifier")}, "samples": 50}
    raw = small(trained_tokenizer(tmp_path / "tokenizer"), score=score, sampler={"steps": 2})
    raw["train"] |= {"steps": 2, "eval_every": 2, "checkpoint_every": 2}
    results = run(parse(raw, "maskgit"), tmp_path / "run")
    assert results["fid"] > results["fid_train_vs_test"] > 0
    assert {"class_conditional_accuracy", "inception_score"} <= results.keys()
    assert json.loads((tmp_path / "run" / "results.json").read_text())["fid"] == results["fid"]
    again = score_run(tmp_path / "run")
    assert again == {name: results[name] for name in again}
