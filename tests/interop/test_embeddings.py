import errno
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, script
from diffusion_samples import VOCABULARY, pipeline
from safetensors.torch import load_file, save_file

from interop.embeddings.commands import inspect
from interop.embeddings.embedding import Embedding
from interop.embeddings.reading import read
from interop.embeddings.writing import write
from interop.files import FileError
from jaxkit.errors import ConfigError, UserError

SUFFIXES = {"diffusers": ".safetensors", "bin": ".bin", "a1111": ".pt", "sdxl": ".safetensors"}


def rows(count, width, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


ONE, TWO, WIDE = rows(1, 16), rows(2, 16), rows(2, 24, seed=1)
XL = Embedding("<cat>", (TWO, WIDE))
T1, T2, TW = (torch.from_numpy(array) for array in (ONE, TWO, WIDE))


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def pipe(request, tmp_path_factory):
    return pipeline(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def pipe_xl(tmp_path_factory):
    return pipeline("sdxl", tmp_path_factory.mktemp("sdxl"))


def in_torch(tokenizer, encoder, word, count):
    """The rows that torch's text encoder has of a word, by the tokenizer's ids."""
    ids = tokenizer.convert_tokens_to_ids([word, *(f"{word}_{i}" for i in range(1, count))])
    assert min(ids) >= VOCABULARY
    return encoder.get_input_embeddings().weight.detach().numpy()[ids]


def same(found, expected):
    """Whether two words have the same vectors, bit for bit."""
    assert [array.dtype for array in found.rows] == [np.float32] * len(expected.rows)
    assert [array.tobytes() for array in found.rows] == [np.float32(array).tobytes() for array in expected.rows]
    assert [array.shape for array in found.rows] == [np.shape(array) for array in expected.rows]


# ---------------------------------------------------------------- other programs read what is written here


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("format", ["diffusers", "bin", "a1111"])
def test_diffusers_loads_the_rows_bit_for_bit(tmp_path, pipe, format, count):
    word, learned = f"<{format}-{count}>", rows(count, pipe.text_encoder.config.hidden_size)
    (path,) = write(Embedding(word, (learned,)), tmp_path / f"any{SUFFIXES[format]}", format)
    pipe.load_textual_inversion(str(path))
    assert in_torch(pipe.tokenizer, pipe.text_encoder, word, count).tobytes() == learned.tobytes()


@pytest.mark.parametrize("count", [1, 2])
def test_diffusers_loads_both_rows_of_xl_from_either_format(tmp_path, pipe_xl, count):
    parts = [(pipe_xl.tokenizer, pipe_xl.text_encoder), (pipe_xl.tokenizer_2, pipe_xl.text_encoder_2)]
    learned = Embedding(f"<two-{count}>", (TWO[:count], WIDE[:count]))
    paths = write(learned, tmp_path / "learned_embeds.safetensors")
    for path, (tokenizer, encoder), expected in zip(paths, parts, learned.rows, strict=True):
        pipe_xl.load_textual_inversion(str(path), tokenizer=tokenizer, text_encoder=encoder)
        assert in_torch(tokenizer, encoder, learned.token, count).tobytes() == expected.tobytes()
    (path,) = write(learned, tmp_path / "xl.safetensors", "sdxl")
    state = load_file(path)
    for key, (tokenizer, encoder), expected in zip(("clip_l", "clip_g"), parts, learned.rows, strict=True):
        word = f"<xl-{count}>"
        pipe_xl.load_textual_inversion(state[key], token=word, tokenizer=tokenizer, text_encoder=encoder)
        assert in_torch(tokenizer, encoder, word, count).tobytes() == expected.tobytes()


def test_what_automatic1111_needs_is_in_its_file(tmp_path):
    about = {"step": "500", "sd_checkpoint": "81761151", "sd_checkpoint_name": "v1-5"}
    write(Embedding("<cat>", (TWO,), about), tmp_path / "cat.pt", "a1111")
    state = torch.load(tmp_path / "cat.pt", weights_only=True)
    assert torch.equal(state.pop("string_to_param")["*"], T2)
    assert state == {"string_to_token": {"*": 265}, "name": "<cat>", **about, "step": 500}


# ---------------------------------------------------------------- every dialect reads


def parameter_dict(**tensors):
    """What the paper's code pickles, a module of torch."""
    return torch.nn.ParameterDict(tensors)


STAR = {"*": T2}
LOOSE = {"<a>": T1[0], "<a>_1": T2[1], "<b>": T1}
DIALECTS = {
    "diffusers of one dimension": ("f.safetensors", {"<cat>": T1[0]}, [Embedding("<cat>", (ONE,))]),
    "diffusers of two": ("f.bin", {"<cat>": T2}, [Embedding("<cat>", (TWO,))]),
    "numbered words": (
        "f.safetensors",
        {"<cat>_1": T2[1], "<cat>": T2[0]},
        [Embedding("<cat>", (TWO,))],
    ),
    "several words": (
        "f.bin",
        LOOSE,
        [Embedding("<a>", (np.stack([ONE[0], TWO[1]]),)), Embedding("<b>", (ONE,))],
    ),
    "words numbered, not continued": (
        "f.bin",
        {"<a>_2": T1, "<a>": T2},
        [Embedding("<a>_2", (ONE,)), Embedding("<a>", (TWO,))],
    ),
    "automatic1111": (
        "f.pt",
        {"string_to_token": {"*": 265}, "string_to_param": STAR, "name": "cat", "step": 7, "sd_checkpoint": None},
        [Embedding("cat", (TWO,), {"step": "7"})],
    ),
    "automatic1111 at its least": ("mine.pt", {"string_to_param": STAR}, [Embedding("mine", (TWO,))]),
    "the paper's": (
        "mine.pt",
        {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": parameter_dict(**STAR)},
        [Embedding("mine", (TWO,))],
    ),
    "the paper's, of several words": (
        "mine.pt",
        {"string_to_param": parameter_dict(a=T1, b=T2)},
        [Embedding("a", (ONE,)), Embedding("b", (TWO,))],
    ),
    "kohya": ("mine.safetensors", {"emb_params": T2}, [Embedding("mine", (TWO,))]),
    "kohya's pickle": ("mine.pt", {"emb_params": T2}, [Embedding("mine", (TWO,))]),
    "onetrainer": (
        "mine.safetensors",
        {"emp_params": T2, "emp_params_out": T1},
        [Embedding("mine", (TWO,), {"left_out": "emp_params_out"})],
    ),
    "xl": ("mine.safetensors", {"clip_l": T2, "clip_g": TW}, [Embedding("mine", (TWO, WIDE))]),
    "xl of onetrainer": (
        "mine.pt",
        {"clip_g": TW, "clip_l": T2, "clip_g_out": TW, "clip_l_out": T2},
        [Embedding("mine", (TWO, WIDE), {"left_out": "clip_g_out, clip_l_out"})],
    ),
    "the first encoder alone": ("mine.safetensors", {"clip_l": T2}, [Embedding("mine", (TWO,))]),
    "a bare tensor": ("mine.pt", T2, [Embedding("mine", (TWO,))]),
    "a bare vector": ("mine.bin", torch.nn.Parameter(T1[0]), [Embedding("mine", (ONE,))]),
}


def stored(path, content):
    """Writes a file as the other programs do."""
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in content.items()}, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_is_read_bit_for_bit(tmp_path, dialect):
    name, content, expected = DIALECTS[dialect]
    found = read(stored(tmp_path / name, content))
    assert [(one.token, dict(one.about)) for one in found] == [(one.token, dict(one.about)) for one in expected]
    for one, other in zip(found, expected, strict=True):
        same(one, other)


def test_files_from_before_torch_1_6_are_read(tmp_path):
    content = {"string_to_param": STAR, "name": "old"}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    (found,) = read(tmp_path / "x.pt")
    assert found.token == "old"
    same(found, Embedding("old", (TWO,)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_other_types_become_float32_without_a_bit_lost(tmp_path, dtype, suffix):
    narrow = T2.to(dtype)
    (found,) = read(stored(tmp_path / f"x{suffix}", {"<cat>": narrow}))
    same(found, Embedding("<cat>", (narrow.float().numpy(),)))


def test_learned_rows_are_taken_out_of_a_checkpoint_of_accelerate(tmp_path, pipe_xl):
    key = "text_model.embeddings.token_embedding.weight"
    folder = tmp_path / "checkpoint-500"
    folder.mkdir()
    encoders = (("model", pipe_xl.text_encoder, TWO), ("model_1", pipe_xl.text_encoder_2, WIDE))
    for name, encoder, learned in encoders:
        state = {k: v.detach().clone() for k, v in encoder.state_dict().items()}
        state[key] = torch.cat([state[key][:VOCABULARY], torch.from_numpy(learned)])
        save_file(state, folder / f"{name}.safetensors")
    (found,) = read(folder, "<cat>", words=VOCABULARY)
    same(found, XL)
    assert read(folder, words=VOCABULARY)[0].token == "checkpoint-500"
    with pytest.raises(FileError, match=r"token_embedding.weight: .* no table with rows beyond the 49,408"):
        read(folder)


def test_the_two_files_of_xl_in_a_folder_are_one_word(tmp_path):
    write(XL, tmp_path / "learned_embeds.safetensors")
    (found,) = read(tmp_path)
    assert found.token == "<cat>"
    same(found, XL)
    write(Embedding("<dog>", (WIDE,)), tmp_path / "learned_embeds_2.safetensors", force=True)
    with pytest.raises(FileError, match="different words: <cat>; <dog>"):
        read(tmp_path)
    write(Embedding("<cat>", (WIDE[:1],)), tmp_path / "learned_embeds_2.safetensors", force=True)
    with pytest.raises(FileError, match="2 and 1 vectors"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("format", "word"), [*((f, Embedding("<c>", (TWO,))) for f in SUFFIXES if f != "sdxl"), ("sdxl", XL)]
)
def test_what_is_written_reads_back_with_its_name(tmp_path, format, word):
    about = {"step": "9"} if format != "bin" else {}
    (path,) = write(word._replace(about=about), tmp_path / f"x{SUFFIXES[format]}", format)
    (found,) = read(path)
    assert (found.token, dict(found.about)) == (word.token, about)
    same(found, word)


# ---------------------------------------------------------------- what is refused


class Payload:
    """Runs a command when it is unpickled without restraint."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


REFUSED = {
    "vectors behind the encoder alone": ("x.safetensors", {"emp_params_out": T1}, "only vectors behind the text enc"),
    "no bytes": ("x.pt", {"<cat>": torch.empty(2, 4, device="meta")}, "<cat>: it is no plain dense tensor"),
    "a map": ("x.safetensors", {"<cat>": T2[None]}, r"<cat>: its shape \[1, 2, 16\] is neither"),
    "a number": ("x.pt", torch.tensor(1.0), r"its shape \[\] is neither"),
    "no numbers": ("x.safetensors", {"<cat>": T2[:0]}, r"<cat>: its shape \[0, 16\] has no numbers"),
    "too many": ("x.safetensors", {"<cat>": torch.ones(76, 4)}, "76 vectors, and a prompt has room for 75"),
    "nan": ("x.safetensors", {"<cat>": T2 * torch.tensor([[1.0], [np.nan]])}, "<cat>: not-a-numbers.* in vector 1"),
    "infinity": ("x.pt", {"string_to_param": {"*": T2 / 0}}, "infinities are in vector 0"),
    "too large for float32": ("x.pt", {"<cat>": torch.full((1, 4), 1e300, dtype=torch.float64)}, "infinities"),
    "whole numbers": ("x.safetensors", {"<cat>": torch.ones(2, 4, dtype=torch.int64)}, "<cat>: its type is int64"),
    "two widths of a word": ("x.bin", {"<cat>": T1, "<cat>_1": TW[:1]}, "<cat>_1: it has 24 numbers, and <cat> 16"),
    "two counts of xl": ("x.safetensors", {"clip_l": T1, "clip_g": TW}, "encoders have 1 and 2 vectors"),
    "the second encoder alone": ("x.safetensors", {"clip_g": TW}, "clip_g and none clip_l"),
    "xl with more": ("x.pt", {"clip_l": T1, "lora": T1}, "lora: stands beside clip_l"),
    "no dict": ("x.pt", [T1], "it holds a list, no vectors"),
    "no tensors": ("x.pt", {"name": "cat", 3: 4}, "no vectors are in it, but name"),
    "no dict of words": ("x.pt", {"string_to_param": T1}, "string_to_param: it must map words to tensors"),
    "no words": ("x.pt", {"string_to_param": {}}, "string_to_param: it must map words to tensors"),
    "a number for a name": ("x.pt", {7: T1}, "the name of a tensor is a int, no text"),
    "repeated numbers": ("x.pt", {"<cat>": torch.ones(1).expand(2, 4096)}, "<cat>: it repeats its numbers"),
    "a sparse tensor": ("x.pt", {"string_to_param": {"*": T1.to_sparse()}}, r"\*: it is no plain dense tensor"),
    "a whole table": ("x.safetensors", {"embeddings.token_embedding.weight": T2}, r"no table with rows beyond"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_vectors_that_cannot_be_used_are_refused_in_one_message(tmp_path, kind):
    name, content, said = REFUSED[kind]
    path = stored(tmp_path / name, content)
    with pytest.raises(FileError, match=said) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("beside", [False, True])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, beside):
    payload = Payload(tmp_path / "ran")
    content = {"string_to_param": STAR, "name": payload} if beside else payload
    with pytest.raises(FileError, match=r"its pickle names .*system, which could run code"):
        read(stored(tmp_path / "x.pt", content))
    assert not (tmp_path / "ran").exists()


def test_a_parameter_dict_is_not_one_of_torch_and_other_modules_stay_refused(tmp_path):
    with pytest.raises(FileError, match="names torch.nn.modules.linear.Linear"):
        read(stored(tmp_path / "x.pt", {"string_to_param": torch.nn.Linear(2, 2)}))
    state = parameter_dict(**STAR)
    vars(state).pop("_parameters")
    with pytest.raises(FileError, match="torch does not read it"):
        read(stored(tmp_path / "y.pt", {"string_to_param": state}))


DAMAGED = {
    "x.safetensors": {
        "nothing": (b"", "it is empty|it is cut"),
        "a header larger than the file": ((10**7).to_bytes(8, "little") + b'{"a":1}', "it is cut"),
        "a header larger than any": ((2**40).to_bytes(8, "little") + b"{}", "it is cut"),
        "a header without end": ((2).to_bytes(8, "little") + b"{{", "no valid JSON"),
    },
    "x.pt": {
        "nothing": (b"", "it is empty"),
        "half a zip": (b"PK\3\4" + bytes(40), "the zip archive is damaged"),
        "half a pickle": (b"\x80\x02}q\x00", "torch does not read it"),
        "a web page": (b"<html>", "it is a web page"),
        "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(20), "it is a picture"),
        "numpy's pickle": (b"\x93NUMPY\1\0" + bytes(20), "numpy.save, whose pickled dict could run code"),
    },
}


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kinds in DAMAGED.items() for kind in kinds])
def test_damaged_files_are_refused_in_one_message(tmp_path, name, kind):
    content, said = DAMAGED[name][kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=said) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_file_or_a_word_that_is_not_there_is_told_with_the_nearest(tmp_path):
    stored(tmp_path / "words.bin", LOOSE)
    with pytest.raises(ConfigError, match=r"nearest name there is words\.bin"):
        read(tmp_path / "word.bin")
    with pytest.raises(ConfigError, match=r"has the words <a>, <b>, not '<bb>', did you mean '<b>'\?"):
        read(tmp_path / "words.bin", "<bb>")
    same(read(tmp_path / "words.bin", "<b>")[0], Embedding("<b>", (ONE,)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="no embeddings are in this folder, but nothing"):
        read(tmp_path / "empty")


def full(*_):
    raise OSError(errno.ENOSPC, "no room")


def test_what_is_there_is_replaced_by_force_alone_and_a_failure_leaves_it(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    write(Embedding("<a>", (ONE,)), path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="exists already; --force"):
        write(Embedding("<b>", (TWO,)), path)
    (tmp_path / "y_2.safetensors").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"y_2\.safetensors exists already"):
        write(XL, tmp_path / "y.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(UserError, match="cannot be written: no room"):
            write(Embedding("<b>", (TWO,)), path, force=True)
    assert path.read_bytes() == before
    write(Embedding("<b>", (TWO,)), path, force=True)
    assert read(path)[0].token == "<b>"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.safetensors", "y_2.safetensors"]


@pytest.mark.parametrize(
    ("word", "name", "format", "error", "said"),
    [
        (XL, "x.pt", "a1111", ConfigError, "vectors of one text encoder, not 2; choose sdxl"),
        (
            Embedding("<c>", (TWO,) * 3),
            "x.bin",
            "bin",
            ConfigError,
            "vectors of 3 text encoders; models have one or two",
        ),
        (Embedding("<c>", (TWO,)), "x.safetensors", "sdxl", ConfigError, "two text encoders, not 1"),
        (Embedding("<c>", (TWO,)), "x.pt", "diffusers", ConfigError, r"ends with \.safetensors"),
        (Embedding("<c>", (TWO,)), "x.pt", "webui", ConfigError, "no format 'webui'; choose one of diffusers, bin"),
        (Embedding("a cat", (TWO,)), "x.bin", "bin", ConfigError, "'a cat' is no token"),
        (Embedding("<c>", (TWO,)), "none/x.bin", "bin", ConfigError, "does not exist; make it first"),
        (Embedding("<c>", (TWO * np.nan,)), "x.bin", "bin", UserError, "of <c> cannot be saved: not-a-numbers"),
        (Embedding("<c>", (TWO[0],)), "x.bin", "bin", UserError, r"\(16,\) is not \[n d\]"),
        (Embedding("<c>", (ONE, WIDE)), "x.safetensors", "sdxl", UserError, "have 1 and 2 vectors"),
    ],
)
def test_what_a_format_has_not_is_not_written(tmp_path, word, name, format, error, said):
    with pytest.raises(error, match=said):
        write(word, tmp_path / name, format)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- commands


def test_the_words_of_the_tokenizer_nearest_to_a_vector_are_listed_with_norms(tmp_path, pipe_xl):
    pipe_xl.load_textual_inversion({"<seen>": T1})
    pipe_xl.load_textual_inversion(
        {"<seen>": TW[:1]}, tokenizer=pipe_xl.tokenizer_2, text_encoder=pipe_xl.text_encoder_2
    )
    pipe_xl.tokenizer.save_pretrained(tmp_path / "tokenizer")
    pipe_xl.text_encoder.save_pretrained(tmp_path / "one")
    pipe_xl.text_encoder_2.save_pretrained(tmp_path / "two")
    ids = pipe_xl.tokenizer.convert_tokens_to_ids(["k</w>", "q"])
    tables = [
        encoder.get_input_embeddings().weight.detach().numpy()
        for encoder in (pipe_xl.text_encoder, pipe_xl.text_encoder_2)
    ]
    # a positive multiple of a word has a cosine of 1 with it
    write(Embedding("<cat>", tuple(3 * table[ids] for table in tables)), tmp_path / "x.safetensors", "sdxl")
    arguments = ("--text-encoder", tmp_path / "one", tmp_path / "two", "--tokenizer", tmp_path / "tokenizer")
    lines = script("convert.py", "inspect-embedding", tmp_path / "x.safetensors", *arguments).stdout.splitlines()
    assert "<cat>, 2 vectors of 16 and 24 numbers, for no Stable Diffusion that is known" in lines[0]
    for table, said in zip(tables, (lines[1:4], lines[4:7]), strict=True):
        norms = np.linalg.norm(table, axis=1)
        found = [re.search(r"norm (\S+), (\S+) of the median; nearest: (\S+) 1\.00, ", line) for line in said[1:]]
        assert [match[3] for match in found] == ["k", "q-"]
        for match, i in zip(found, ids, strict=True):
            # printed with four figures, and two decimals
            np.testing.assert_allclose(float(match[1]), 3 * norms[i], rtol=6e-4)
            np.testing.assert_allclose(float(match[2]), 3 * norms[i] / np.median(norms), atol=6e-3)
    # a word that was added has no end of a word to lose
    added = json.loads((tmp_path / "tokenizer" / "added_tokens.json").read_text())
    write(
        Embedding("<dog>", tuple(table[[min(added.values())]] for table in tables)), tmp_path / "y.safetensors", "sdxl"
    )
    lines = list(inspect(tmp_path / "y.safetensors", [tmp_path / "one", tmp_path / "two"], tmp_path / "tokenizer"))
    assert f"nearest: {min(added, key=added.get)} 1.00" in lines[-1]
    with pytest.raises(ConfigError, match="vectors of 16 and 24 numbers, --text-encoder of 16"):
        list(inspect(tmp_path / "x.safetensors", [tmp_path / "one"], None))
    with pytest.raises(ConfigError, match="give --text-encoder too"):
        list(inspect(tmp_path / "x.safetensors", [], tmp_path / "tokenizer"))
    with pytest.raises(ConfigError, match="does not exist"):
        list(inspect(tmp_path / "x.safetensors", [tmp_path / "on"], None))
    with pytest.raises(FileError, match="no weights are in this folder"):
        list(inspect(tmp_path / "x.safetensors", [tmp_path / "tokenizer"], None))


@pytest.mark.parametrize(
    ("widths", "base"),
    [((768,), "Stable Diffusion 1"), ((1024,), "Stable Diffusion 2"), ((768, 1280), "Stable Diffusion XL")],
)
def test_the_base_model_is_told_by_the_widths(tmp_path, widths, base):
    path = tmp_path / "x.safetensors"
    write(
        Embedding("<c>", tuple(rows(1, width) for width in widths)), path, "sdxl" if len(widths) == 2 else "diffusers"
    )
    assert f"for {base}" in next(inspect(path, [], None))


def test_the_command_converts_and_names_what_is_wrong(tmp_path):
    source = stored(tmp_path / "cat.pt", {"string_to_param": STAR, "name": "cat", "step": 7})
    made = script("convert.py", "embedding", source, tmp_path / "cat.safetensors", "--token", "<cat>")
    assert "<cat>, 2 vectors of 16 numbers" in made.stdout
    assert torch.equal(load_file(tmp_path / "cat.safetensors")["<cat>"], T2)
    header = (tmp_path / "cat.safetensors").read_bytes()[8:]
    metadata = json.JSONDecoder().raw_decode(header.decode("latin1"))[0]["__metadata__"]
    assert metadata == {"step": "7", "token": "<cat>", "format": "pt"}
    again = script("convert.py", "embedding", source, tmp_path / "cat.safetensors", check=False)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "--force" in again.stderr
    stored(tmp_path / "words.bin", LOOSE)
    several = script(
        "convert.py", "embedding", tmp_path / "words.bin", tmp_path / "x.pt", "--format", "a1111", check=False
    )
    assert (several.returncode, several.stderr.count("\n")) == (2, 1)
    assert "has the words <a>, <b>; choose one with --token" in several.stderr
    hostile = script(
        "convert.py", "inspect-embedding", stored(tmp_path / "x.pt", Payload(tmp_path / "ran")), check=False
    )
    assert (hostile.returncode, hostile.stderr.count("\n")) == (4, 1)
    assert not (tmp_path / "ran").exists()


def test_help_imports_nothing_heavy():
    program = (
        "import runpy, sys\n"
        "sys.argv = ['convert.py', 'embedding', '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'scripts' / 'convert.py')!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "heavy = {'jax', 'flax', 'numpy', 'torch', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "a1111" in finished.stdout


def test_the_examples_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "embeddings.md").read_text(), re.S)
    exec(compile(block, "docs/embeddings.md", "exec"), {})
    assert (tmp_path / "cat.pt").is_file()
