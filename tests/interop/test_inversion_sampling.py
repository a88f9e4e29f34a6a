import jax
import numpy as np
import pytest
from PIL import Image
from test_textual_inversion import WORD, config, folders, refused, trained  # noqa: F401

from interop.starts import READERS
from jaxkit import experiment, inference
from jaxkit.errors import ConfigError
from jaxkit.inference import sample_run
from jaxkit.pictures import grid

pytestmark = pytest.mark.level(1)

PROMPTS = ["a {}", "{} b"]


@pytest.fixture(scope="module")
def run(folders, tmp_path_factory):  # noqa: F811
    """Of 4 updates, evaluated at each, that draws 3 samples at every second."""
    folder = tmp_path_factory.mktemp("sampled") / "run"
    asked = {"validation_prompts": PROMPTS, "validation_images": 3}
    trained(config(folders["sd1"], steps=4, task=asked, train={"eval_every": 1, "sample_every": 2}), folder)
    return folder


def drawn(run, n=8, **asked):
    return sample_run(run, n, readers=READERS, **asked)


def test_samples_are_drawn_as_often_as_sample_every_says_and_as_many_as_validation_images(run):
    paths = sorted((run / "samples").iterdir())
    assert [path.name for path in paths] == ["00000002.png", "00000004.png"]
    with Image.open(paths[0]) as picture:
        drawn, expected = (picture.height, picture.width, 3), grid(np.zeros((3, 16, 16, 3), np.float32)).shape
    assert drawn == expected != grid(np.zeros((16, 16, 16, 3), np.float32)).shape


def test_eight_devices_draw_the_images_that_one_does(run, monkeypatch):
    placed, over_devices = [], inference._over_devices

    def seen(*arguments):
        variables, asked = over_devices(*arguments)
        placed.append(len(asked["input_ids_0"].sharding.device_set))
        return variables, asked

    monkeypatch.setattr(inference, "_over_devices", seen)
    found = {n: drawn(run, n, prompts=("a {}",)) for n in (8, 6, 1)}
    assert placed == [8, 6, 1]
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    for n, images in found.items():
        # the same sums, but by programs for other shapes
        np.testing.assert_allclose(drawn(run, n, prompts=("a {}",)), images, atol=1e-5)
    assert placed == [8, 6, 1, 1, 1, 1]
    assert found[8].std((1, 2, 3)).min() > 0.01


def test_without_a_prompt_those_of_the_config_are_drawn_in_turn(run):
    np.testing.assert_array_equal(drawn(run), drawn(run, prompts=tuple(PROMPTS)))
    assert np.abs(drawn(run) - drawn(run, prompts=("",))).max() > 1e-3


def test_a_prompt_without_the_word_is_drawn_with_a_warning_and_one_of_which_it_is_cut_off_is_refused(run, capsys):
    drawn(run, 1, prompts=("a b",))
    assert f"warning: 'a b' has no new word in it; those of this run: {WORD}" in capsys.readouterr().out
    drawn(run, 1, prompts=(f"a {WORD}",))
    assert "warning" not in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"2 vectors of new words are cut off; shorten it"):
        drawn(run, 1, prompts=(f"a b a b a b a b a b a b {WORD}",))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"image": np.zeros((600, 600, 3), np.float32), "strength": 0.5}, "draws images of words alone; give --prompt"),
        ({"label": 3}, "is asked in words; give --prompt"),
    ],
)
def test_images_and_classes_are_not_what_it_is_asked_by(run, asked, said):
    with pytest.raises(ConfigError, match=said):
        drawn(run, 1, **asked)


def test_of_several_words_a_prompt_names_one_and_each_has_a_sample(folders, tmp_path):  # noqa: F811
    words = [{"placeholder_token": f"<w{i}>", "initializer_token": "ab"} for i in range(5)]
    raw = config(folders["sd1"], digits=(1, 2, 3), vectors=1, task={"words": words[:3]})
    assert experiment.prepare(raw, tmp_path, READERS)[1].task.samples == 4
    raw = config(folders["sd1"], digits=(1, 2, 3, 4, 5), vectors=1, task={"words": words})
    job = experiment.prepare(raw, tmp_path, READERS)[1]
    assert job.task.samples == len(job.task.prompts) == 5
    with pytest.raises(ConfigError, match="is the word of a run of one; write <w0> or <w1>"):
        job.task.read_prompt("a {}")


def test_classes_that_the_judge_does_not_have_are_refused(folders, tmp_path):  # noqa: F811
    judge = {"config": "configs/classify_digits.yaml"}
    refused(folders["sd1"], "how many classes it has", tmp_path, task={"score": {"classifier": judge, "labels": [7]}})
    judge["overrides"] = ["task.model.num_classes=10"]
    for label in (17, -1):
        score = {"classifier": judge, "labels": [label]}
        refused(folders["sd1"], f"{label} is no class of the classifier", tmp_path, task={"score": score})


def test_texts_that_samples_are_drawn_of_have_room_for_the_word(folders, tmp_path):  # noqa: F811
    refused(folders["sd1"], "is too long by", tmp_path, task={"validation_prompts": ["abcdefghij {}"]})
    score = {"classifier": {"config": "configs/classify_digits.yaml"}, "labels": [7], "prompt": "abcdefghij {}"}
    refused(folders["sd1"], "is too long by", tmp_path, task={"score": score})
