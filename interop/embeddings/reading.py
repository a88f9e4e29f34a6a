"""Reads files of textual inversion, of every program that writes them, and checkpoints of training."""

from pathlib import Path

from interop.embeddings.dialects import CLIP_WORDS, embeddings
from interop.embeddings.embedding import Embedding, counts_problem
from interop.embeddings.pickles import content
from interop.files import FileError, archive, open_weights, safetensors
from interop.files.errors import listed, missing
from jaxkit.errors import ConfigError
from jaxkit.spelling import nearest

# what is none of the kinds of file that are read, with what to do instead
_FOREIGN = {
    b"\x93NUMPY": (
        "it is of numpy.save, whose pickled dict could run code",
        "where it comes from: numpy.savez('word.npz', **numpy.load(file, allow_pickle=True).item())",
    ),
    b"\x89PNG": ("it is a picture, which AUTOMATIC1111 may have hidden vectors in", "take the .pt it saved beside it"),
}
# what diffusers calls its last embeddings, and accelerate the networks it trains; of XL there are two
_IN_FOLDERS = (
    ("learned_embeds.safetensors", "learned_embeds_2.safetensors"),
    ("learned_embeds.bin", "learned_embeds_2.bin"),
    ("model.safetensors", "model_1.safetensors"),
    ("pytorch_model.bin", "pytorch_model_1.bin"),
)


def read(path: str | Path, token: str | None = None, words: int = CLIP_WORDS) -> list[Embedding]:
    """Reads the learned words of a file or folder.

    Files: diffusers (.safetensors, .bin), AUTOMATIC1111 and the paper's code (.pt), kohya, OneTrainer, SDXL's
    ``clip_l`` with ``clip_g``, a bare tensor, several words. Folders: those of diffusers' training scripts, with a
    ``learned_embeds_2`` for the second text encoder of XL, of accelerate's checkpoints, of a text encoder.

    Args:
        path: what to read. A word that it does not name is named after it.
        token: what to call the word; of a file of several, the one to take.
        words: rows of a checkpoint's table that are no learned ones.

    Raises:
        FileError: if it is damaged, unsafe, or of no dialect that is known.
        ConfigError: if it does not exist, or has several words and none is ``token``.
    """
    path = Path(path)
    if not path.exists():
        raise missing(path)
    try:
        found = _of_folder(path, words) if path.is_dir() else _of_file(path, path.stem, words)
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror or error}") from error
    if len(found) == 1:
        return [found[0]._replace(token=token or found[0].token)]
    names = [one.token for one in found]
    if token is None:
        return found
    if token not in names:
        raise ConfigError(f"{path} has the words {listed(names)}, not {token!r}{nearest(token, names)}")
    return [found[names.index(token)]]


def _of_folder(folder: Path, words: int) -> list[Embedding]:
    pair = next((pair for pair in _IN_FOLDERS if (folder / pair[0]).is_file()), None)
    if pair is None:
        held = listed(sorted(path.name for path in folder.iterdir()))
        raise FileError(folder, f"no embeddings are in this folder, but {held or 'nothing'}", remedy="name a file")
    name = folder.resolve().name
    first, *second = [_of_file(folder / file, name, words) for file in pair if (folder / file).is_file()]
    if not second:
        return first
    others = {one.token: one for one in second[0]}
    if [one.token for one in first] != list(others):
        problem = f"{' and '.join(pair)} have different words: {listed(one.token for one in first)}; {listed(others)}"
        raise FileError(folder, problem, remedy="name one of the files")
    return [_joined(one, others[one.token], folder) for one in first]


def _joined(first: Embedding, second: Embedding, folder: Path) -> Embedding:
    """The word of two files, one for each text encoder."""
    rows = (*first.rows, *second.rows)
    if problem := counts_problem(rows):
        raise FileError(folder, problem, first.token, "name one of the files")
    return first._replace(rows=rows)


def _of_file(path: Path, name: str, words: int) -> list[Embedding]:
    with path.open("rb") as file:
        head = file.read(512)
        torch = archive.begins(head) and not archive.is_npz(file, path)
    if torch or (head[:1] == b"\x80" and not safetensors.looks_like(head)):
        return embeddings(content(path), path, {}, name, words)
    for start, (problem, remedy) in _FOREIGN.items():
        if head.startswith(start):
            raise FileError(path, problem, remedy=remedy)
    with open_weights(path) as weights:
        return embeddings(weights.entries(), path, weights.metadata, name, words)
