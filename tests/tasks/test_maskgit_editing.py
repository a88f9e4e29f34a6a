"""Images that are given to a masked transformer: drawn again, and painted around; asked for through a run."""

import argparse
import itertools

import jax
import numpy as np
import pytest
from small_maskgit import KEY, QUICK, images_of_classes, small, task, trained_tokenizer

from jaxkit import pictures, sweep
from jaxkit.cli import margins
from jaxkit.config import parse
from jaxkit.errors import ConfigError
from jaxkit.experiment import run
from jaxkit.inference import sample_run

pytestmark = pytest.mark.level(1)


@pytest.fixture(scope="module")
def batch():
    return images_of_classes()


@pytest.fixture(scope="module")
def made(batch):
    """A task over 4 x 4 tokens of 2 pixels, and variables of random weights."""
    found = task(sampler={"steps": 4})
    return found, found.init(KEY, batch)


def test_of_an_image_drawn_again_the_less_is_left_the_greater_the_strength(made, batch):
    task_, variables = made

    def drawn(images, strength):
        asked = {"image": images, "label": batch["label"]}
        draw = jax.jit(lambda asked: task_.draw(variables, KEY, asked | {"strength": strength}), compiler_options=QUICK)
        return np.asarray(draw(asked))

    other = batch["image"][::-1]
    # the last of 4 steps draws 6 of 16 tokens (the cosine of 3/4), so most are the image's own
    assert not np.array_equal(drawn(batch["image"], 0.25), drawn(other, 0.25))
    assert drawn(batch["image"], 0.25).shape == batch["image"].shape
    # all 4 steps begin at nothing but masks
    np.testing.assert_array_equal(drawn(batch["image"], 1.0), drawn(other, 1.0))


@pytest.mark.parametrize("margins", [(4, 0, 0, 0), (2, 10, 6, 0)], ids=["one side", "three sides"])
def test_an_image_that_is_painted_around_keeps_its_pixels_and_decides_what_surrounds_it(made, batch, margins):
    task_, variables = made
    left, right, top, bottom = margins
    draw = jax.jit(lambda asked: task_.draw(variables, KEY, asked | {"outpaint": margins}), compiler_options=QUICK)

    def drawn(images):
        return np.array(draw({"image": images, "label": batch["label"]}))

    found, of_other = drawn(batch["image"]), drawn(batch["image"][::-1])
    assert found.shape == (8, 8 + top + bottom, 8 + left + right, 1)
    place = np.s_[:, top : top + 8, left : left + 8]
    np.testing.assert_array_equal(found[place], batch["image"])
    assert np.isfinite(found).all()
    for images in (found, of_other):
        images[place] = 0
    assert not np.array_equal(found, of_other)


def test_pixels_around_an_image_are_four_numbers_that_are_not_all_0():
    assert margins("8,0,16,4") == (8, 0, 16, 4)
    for text in ("8,8,0", "0,0,0,0", "8,8,0,-1", "8,8,0,x", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="is no LEFT,RIGHT,TOP,BOTTOM in pixels"):
            margins(text)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a run of two steps on digits."""
    tokenizer = trained_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    raw = small(tokenizer, sampler={"steps": 3})
    raw["train"] |= {"steps": 2, "eval_every": 2, "checkpoint_every": 2}
    folder = tmp_path_factory.mktemp("maskgit") / "run"
    run(parse(raw, "maskgit"), folder)
    return folder


IMAGE = np.random.default_rng(0).random((8, 8, 1), np.float32)
MASK = np.ones((8, 8), np.float32)


def test_a_run_draws_images_again_and_around_them(trained):
    again = sample_run(trained, 2, label=3, image=IMAGE, strength=0.4)
    assert again.shape == (2, 8, 8, 1)
    around = sample_run(trained, 2, label=3, image=IMAGE, outpaint=(0, 8, 0, 2))
    assert around.shape == (2, 10, 16, 1)
    np.testing.assert_array_equal(around[:, :8, :8], np.stack([IMAGE, IMAGE]))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"strength": 0.5}, "--strength: of which image"),
        ({"image": IMAGE}, "--mask, --strength and --outpaint, and none was given"),
        ({"image": IMAGE, "mask": MASK, "strength": 0.5}, "and --mask and --strength was given"),
        ({"image": IMAGE, "strength": 0.2}, r"strength: must be 0.333 \(one of 3 steps\) to 1, got 0.2"),
        ({"image": IMAGE, "strength": 1.5}, "to 1, got 1.5"),
        ({"image": IMAGE, "outpaint": (3, 0, 0, 0)}, "no whole tokens, of 2 pixels each"),
        ({"image": IMAGE[:4], "strength": 0.5}, "--image: is 4 x 8 x 1; the run's images are 8 x 8 x 1"),
        ({"image": IMAGE, "mask": MASK[:4]}, "--mask: is 4 x 8; the run's images are 8 x 8"),
    ],
)
def test_what_cannot_be_asked_of_an_image_is_refused_by_its_flag(trained, asked, message):
    with pytest.raises(ConfigError, match=message):
        sample_run(trained, 1, **asked)


def test_a_sample_that_was_written_as_a_file_is_an_image_that_can_be_changed(trained, tmp_path):
    (file,) = pictures.write(IMAGE[None], None, tmp_path / "drawn")
    read = pictures.read(file / "00000.png")
    assert read.shape == (8, 8, 3)
    levels = np.round(IMAGE * 255) / 255
    given = [sample_run(trained, 1, image=image, mask=MASK) for image in (read, levels.astype(np.float32))]
    np.testing.assert_array_equal(*given)


def test_colours_are_never_left_out_of_an_image():
    colours = np.stack([IMAGE[..., 0], IMAGE[..., 0], 1 - IMAGE[..., 0]], -1)
    assert pictures.in_channels(colours, 1) is colours
    np.testing.assert_array_equal(pictures.in_channels(IMAGE, 3), np.repeat(IMAGE, 3, -1))


def test_a_grid_has_the_name_of_a_png(tmp_path):
    with pytest.raises(ConfigError, match=r"a PNG is written; call it grid\.png"):
        pictures.require_free(tmp_path / "grid.jpg", None, force=True)


def test_overrides_of_training_are_refused_where_nothing_is_trained(trained):
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate=1: has no part in what a checkpoint draws"):
        sample_run(trained, 1, overrides=("optimizer.learning_rate=1",))


def test_a_sweep_draws_a_panel_for_each_score_and_no_other(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    kept, plain = [], Figure.subplots

    def subplots(figure, *counts, **options):
        kept.append(figure)
        return plain(figure, *counts, **options)

    monkeypatch.setattr(Figure, "subplots", subplots)
    settings = {"task.sampler.steps": ["2", "10", "4"], "task.sampler.top_k": ["1", "2"]}
    scores = dict.fromkeys("abcde", 1.0)
    rows = [dict(zip(settings, values, strict=True)) | scores for values in itertools.product(*settings.values())]
    sweep.write(rows, settings, tmp_path)
    assert [panel.get_title() for panel in kept[0].axes] == list("abcde")
    assert list(kept[0].axes[0].lines[0].get_xdata()) == [2.0, 10.0, 4.0]
