import numpy as np
import pytest
from PIL import Image

from jaxkit.config import parse
from jaxkit.data import DataError
from jaxkit.data.concepts import boxes
from jaxkit.data.loader import Loader
from jaxkit.data.sources import open_source
from jaxkit.errors import ConfigError
from jaxkit.schema.concepts import Concepts, DigitConcepts
from jaxkit.schema.data import Digits

SIZE = 8


def section(*roots, **fields):
    fields = {"name": "concepts", "batch_size": 2, "image_size": SIZE, "roots": tuple(map(str, roots))} | fields
    return Concepts(**fields)


def concept(root, **fields):
    (found,) = open_source(section(root, **fields)).concepts
    return found


def noise(height, width, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def bicubic(pixels):
    return np.asarray(Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def test_pictures_are_read_in_order_of_name_and_each_example_takes_one_of_every_concept(tmp_path):
    for name, count in (("cat", 3), ("dog", 2)):
        for number in reversed(range(count)):
            write(tmp_path / name / f"{number}.png", np.full((SIZE, SIZE, 3), 10 * count + number, np.uint8))
    source = open_source(section(tmp_path / "cat", tmp_path / "dog", repeats=5))
    assert [concept.pictures[:, 0, 0, 0].tolist() for concept in source.concepts] == [[30, 31, 32], [20, 21]]
    assert [concept.names for concept in source.concepts] == [("0.png", "1.png", "2.png"), ("0.png", "1.png")]
    assert (source.num_classes, source.image_shape) == (2, (SIZE, SIZE, 3))
    assert (len(source.train), len(source.test)) == (15, 3)
    assert [source.train[i]["picture"].tolist() for i in range(5)] == [[0, 0], [1, 1], [2, 0], [0, 1], [1, 0]]
    assert source.train[14]["picture"].dtype == np.int32
    with pytest.raises(IndexError):
        source.test[3]
    seen = np.concatenate([Loader(source.train, 5, 0, 1, 0, 1, "")._read(step)["picture"] for step in range(3)])
    assert np.bincount(seen[:, 0]).tolist() == [5, 5, 5]


@pytest.mark.parametrize("size", [(13, 20), (20, 13), (9, 9), (5, 4)])
def test_center_is_the_original_s_center_crop_and_squash_is_without(tmp_path, size):
    image = write(tmp_path / "a.png", noise(*size))
    height, width = size
    crop = min(size)
    cut = image[(height - crop) // 2 : (height + crop) // 2, (width - crop) // 2 : (width + crop) // 2]
    np.testing.assert_array_equal(concept(tmp_path).pictures[0], bicubic(cut))
    np.testing.assert_array_equal(concept(tmp_path, fit="squash").pictures[0], bicubic(image))


@pytest.mark.parametrize(("background", "color"), [("#ff8000", (255, 128, 0)), ((0.0, 0.5, 1.0), (0, 128, 255))])
def test_padding_is_of_the_background_and_keeps_the_whole_picture(tmp_path, background, color):
    image = write(tmp_path / "a.png", noise(SIZE, 5))
    (padded,) = concept(tmp_path, fit="pad", background=background).pictures
    np.testing.assert_array_equal(padded[:, 2:7], image)
    assert (padded[:, [0, 1, 7]] == color).all()


def test_random_crops_are_within_the_picture_and_drawn_by_the_seed(tmp_path):
    image = write(tmp_path / "a.png", noise(SIZE, 40))
    write(tmp_path / "b.png", noise(40, SIZE, seed=1))
    (tmp_path / "a.txt").write_text("first {}")
    (tmp_path / "b.txt").write_text("second {}")
    found = concept(tmp_path, fit="random", crops=4, captions=True)
    assert (found.names, found.captions) == (("a.png",) * 4 + ("b.png",) * 4, ("first {}",) * 4 + ("second {}",) * 4)
    places = [[left for left in range(33) if (image[:, left : left + SIZE] == cut).all()] for cut in found.pictures[:4]]
    assert {len(place) for place in places} == {1}
    assert len({place[0] for place in places}) > 1
    again = concept(tmp_path, fit="random", crops=4)
    np.testing.assert_array_equal(again.pictures, found.pictures)
    assert (concept(tmp_path, fit="random", crops=4, crop_seed=1).pictures != found.pictures).any()


def test_every_place_of_a_random_crop_is_as_likely():
    found = boxes(12, 9, section("a", fit="random", crops=4000), np.random.default_rng(0))
    lefts = np.bincount([left for left, *_ in found])
    assert {box[1] for box in found} == {0}
    assert {box[2] - box[0] for box in found} == {9}
    # four standard errors of a count of one in four
    assert np.abs(lefts - 1000).max() < 110


def test_transparent_pixels_show_the_background_and_none_of_the_colour_below(tmp_path):
    pixels = np.full((SIZE, SIZE, 4), (255, 0, 0, 255), np.uint8)
    pixels[:4, :, 3] = 0
    pixels[4, :, 3] = 51
    write(tmp_path / "a.png", pixels)
    (shown,) = concept(tmp_path).pictures
    assert (shown[:4] == 255).all()
    assert (shown[4] == (255, 204, 204)).all()
    assert (shown[5:] == (255, 0, 0)).all()
    assert (concept(tmp_path, background="00ff00").pictures[0][:4] == (0, 255, 0)).all()


def test_a_transparent_palette_shows_the_background(tmp_path):
    image = Image.fromarray(noise(SIZE, SIZE, 1) % 2)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "a.png", transparency=0)
    (shown,) = concept(tmp_path).pictures
    expected = np.array([[255, 255, 255], [0, 0, 255]])[np.asarray(image)]
    np.testing.assert_array_equal(shown, expected)


def test_grey_16_bit_cmyk_and_turned_pictures_become_upright_rgb(tmp_path):
    grey = write(tmp_path / "grey.png", noise(SIZE, SIZE, 1))
    deep = np.random.default_rng(1).integers(0, 2**16, (SIZE, SIZE), np.uint16)
    write(tmp_path / "deep.png", deep)
    Image.new("CMYK", (SIZE, SIZE), (0, 255, 255, 0)).save(tmp_path / "ink.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = write(tmp_path / "turned.png", noise(SIZE, SIZE), exif=exif)
    found = concept(tmp_path)
    pictures = dict(zip(found.names, found.pictures, strict=True))
    np.testing.assert_array_equal(pictures["grey.png"], np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_array_equal(pictures["deep.png"][..., 0], deep >> 8)
    # red ink survives JPEG only to within its quantisation
    np.testing.assert_allclose(pictures["ink.jpg"].astype(int), [[[255, 0, 0]] * SIZE] * SIZE, atol=3)
    np.testing.assert_array_equal(pictures["turned.png"], np.rot90(turned, 3))


def test_one_of_sixteen_bits_greys_is_transparent(tmp_path):
    deep = np.full((SIZE, SIZE), 40_000, np.uint16)
    deep[:4] = 40_001
    Image.fromarray(deep).save(tmp_path / "a.png", transparency=40_001)
    (shown,) = concept(tmp_path).pictures
    assert (shown[:4] == 255).all()
    assert (shown[4:] == 40_000 >> 8).all()


def test_integers_of_32_bits_are_refused_as_nobody_knows_their_range(tmp_path):
    Image.fromarray(np.full((SIZE, SIZE), 200, np.int32)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match="integers of 32 bits, of unknown range"):
        concept(tmp_path)


def test_hidden_files_and_what_is_no_picture_are_left_out_with_a_note(tmp_path, capsys):
    write(tmp_path / "B.PNG", noise(SIZE, SIZE))
    write(tmp_path / "within" / "c.png", noise(SIZE, SIZE, seed=1))
    for name in (".DS_Store", "._B.png", ".cache/d.png", "notes.md", "B.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert concept(tmp_path).names == ("B.PNG",)
    assert capsys.readouterr().err == (
        f"data.roots[0] {tmp_path}: no pictures, left out: .DS_Store, ._B.png, notes.md\n"
    )
    assert concept(tmp_path, recursive=True).names == ("B.PNG", "within/c.png")


def test_a_small_picture_is_enlarged_with_a_note(tmp_path, capsys):
    for number in range(7):
        write(tmp_path / f"{number}.png", noise(5, 30, seed=number))
    assert concept(tmp_path).pictures.shape == (7, SIZE, SIZE, 3)
    note = "smaller than 8 pixels, enlarged: 0.png, 1.png, 2.png, 3.png, 4.png and 2 more\n"
    assert capsys.readouterr().err.endswith(note)
    concept(tmp_path, fit="pad")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["a_mask.png", "a-masklabel.png"])
def test_masks_are_cut_as_their_pictures_and_are_no_pictures(tmp_path, name):
    write(tmp_path / "a.png", noise(SIZE, 14))
    mask = write(tmp_path / name, noise(SIZE, 14, 1, seed=1))
    found = concept(tmp_path, masks=True)
    assert found.names == ("a.png",)
    assert found.masks.dtype == np.float32
    np.testing.assert_array_equal(found.masks[0], mask[:, 3:11] / np.float32(255))
    assert concept(tmp_path).masks is None
    # a mask without its picture is a picture
    (tmp_path / "a.png").unlink()
    assert concept(tmp_path).names == (name,)


def test_padding_does_not_count(tmp_path):
    write(tmp_path / "a.png", noise(SIZE, 4))
    write(tmp_path / "a_mask.png", np.full((SIZE, 4), 255, np.uint8))
    (mask,) = concept(tmp_path, fit="pad", masks=True).masks
    np.testing.assert_array_equal(mask, np.broadcast_to([0, 0, 1, 1, 1, 1, 0, 0], (SIZE, SIZE)))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (None, r"a\.png has no mask: neither a_mask\.png nor a-masklabel\.png is beside it; draw one"),
        (np.ones((SIZE, 9), np.uint8), r"a\.png is 14 x 8 pixels, but its mask is 9 x 8"),
        (np.eye(1, 14 * SIZE, dtype=np.uint8).reshape(SIZE, 14), r"a\.png: its mask is black where"),
    ],
)
def test_a_mask_that_cannot_serve_is_one_clear_error(tmp_path, mask, message):
    write(tmp_path / "a.png", noise(SIZE, 14))
    if mask is not None:
        write(tmp_path / "a_mask.png", mask)
    with pytest.raises(DataError, match=message):
        concept(tmp_path, masks=True, on_corrupt="skip")


def test_a_caption_is_one_line(tmp_path):
    write(tmp_path / "a.png", noise(SIZE, SIZE))
    (tmp_path / "a.txt").write_bytes("\ufeffa größer\r\n{}  here \n".encode())
    assert concept(tmp_path, captions=True).captions == ("a größer {} here",)
    assert concept(tmp_path).captions is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"a\.png has no caption beside it, a\.txt; write one, or set data\.captions: false"),
        (b" \n", r"a\.txt is empty: write what a\.png shows, with \{\} for the word"),
        (b"\xff", r"a\.txt is no UTF-8 text"),
    ],
)
def test_a_caption_that_is_none_is_one_clear_error(tmp_path, text, message):
    write(tmp_path / "a.png", noise(SIZE, SIZE))
    if text is not None:
        (tmp_path / "a.txt").write_bytes(text)
    with pytest.raises(DataError, match=message):
        concept(tmp_path, captions=True)


def test_an_unreadable_picture_stops_or_is_left_out_with_its_caption_and_mask(tmp_path):
    for name in "abc":
        write(tmp_path / f"{name}.png", noise(SIZE, SIZE, seed=ord(name)))
        write(tmp_path / f"{name}_mask.png", np.full((SIZE, SIZE), ord(name), np.uint8))
        (tmp_path / f"{name}.txt").write_text(f"a {name} {{}}")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    (tmp_path / "b_mask.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.png cannot be read: .*; replace or delete it, or set data\.on_corrupt"):
        concept(tmp_path)
    for ending in (".png", "_mask.png", ".txt"):
        (tmp_path / f"a{ending}").rename(tmp_path / f"d{ending}")
    with pytest.raises(DataError, match=r"b\.png or its mask cannot be read: its 8 bytes"):
        concept(tmp_path, masks=True)
    source = open_source(section(tmp_path, masks=True, captions=True, on_corrupt="skip"))
    (found,) = source.concepts
    assert (found.names, found.captions) == (("c.png",), ("a c {}",))
    assert len(found.pictures) == len(found.masks) == 1
    assert [path[-5:] for path in source.corrupt()] == ["b.png", "d.png"]
    (tmp_path / "c.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"data\.roots\[0\]: none of the 3 pictures in .* can be read: .*"):
        concept(tmp_path, on_corrupt="skip", masks=True)


def test_a_folder_without_pictures_is_one_clear_error(tmp_path):
    write(tmp_path / "cat" / "a.png", noise(SIZE, SIZE))
    with pytest.raises(DataError, match=r"data\.roots\[1\]: .*nowhere is no folder"):
        open_source(section(tmp_path / "cat", tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"data\.roots\[0\]: .*empty has no pictures \(\.jpg .*\)$"):
        concept(tmp_path / "empty")
    with pytest.raises(DataError, match=r"has no pictures .*; set data\.recursive: true$"):
        concept(tmp_path)


def test_the_fingerprint_is_of_all_pixels_masks_and_captions(tmp_path):
    write(tmp_path / "a.png", noise(SIZE, SIZE))
    write(tmp_path / "a_mask.png", np.full((SIZE, SIZE), 255, np.uint8))
    (tmp_path / "a.txt").write_text("a {}")

    def fingerprint():
        return open_source(section(tmp_path, masks=True, captions=True)).fingerprint

    found = [fingerprint(), fingerprint()]
    assert found[0] == found[1]
    (tmp_path / "a.txt").write_text("the {}")
    found.append(fingerprint())
    write(tmp_path / "a_mask.png", np.full((SIZE, SIZE), 254, np.uint8))
    found.append(fingerprint())
    write(tmp_path / "a.png", noise(SIZE, SIZE, seed=2))
    found.append(fingerprint())
    assert len(set(found)) == 4


def test_digits_are_the_first_training_images_of_each():
    source = open_source(DigitConcepts(name="digit_concepts", batch_size=2, digits=(7, 0), pictures=3, repeats=4))
    digits = open_source(Digits(name="digits", batch_size=2, image_size=16, channels=3)).train
    for concept, digit in zip(source.concepts, (7, 0), strict=True):
        np.testing.assert_array_equal(concept.pictures, digits.images[digits.labels == digit][:3])
        assert concept.pictures.dtype == np.uint8
    assert (source.num_classes, source.image_shape, len(source.train), len(source.test)) == (2, (16, 16, 3), 12, 3)
    assert source.concepts[0].names[0] == "7, image 0"
    with pytest.raises(DataError, match=r"data\.pictures: there are \d+ of the digit 7, not 500"):
        open_source(DigitConcepts(name="digit_concepts", batch_size=2, digits=(7,), pictures=500))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"image_size": 20}, "data.image_size: input should be a multiple of 8, got 20"),
        ({"crops": 3}, "data.crops: 3 crops of fit: center would be the same; set fit: random"),
        ({"normalize": "imagenet"}, "data.normalize: input should be 'none', got 'imagenet'"),
        ({"roots": []}, "data.roots: tuple should have at least 1 item"),
        ({"background": "red"}, "data.background: must be a colour, as '#ffffff' in quotes or red, green and blue"),
        ({"background": [0, 0, 2]}, r"data.background: must be a colour.*, got \[0, 0, 2\]"),
    ],
)
def test_what_no_pictures_can_be_is_one_problem_of_the_config(fields, problem):
    raw = {
        "task": {"name": "classify", "model": {"name": "cifar_resnet_tiny"}},
        "data": {"name": "concepts", "roots": ["cat"], "batch_size": 2} | fields,
        "optimizer": {"name": "sgd", "learning_rate": 0.1},
        "train": {"steps": 1},
    }
    with pytest.raises(ConfigError, match=f"1 problem\n  {problem}"):
        parse(raw, "config.yaml")
