"""Zip archives whose members lie in them uncompressed, as torch and NumPy write them: read in place, or written."""

import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from interop.files.errors import FileError, shown

_LOCAL = struct.Struct("<4s5H3I2H")
_ALIGNMENT = 64
_PADDING = 0x4246


class Member(NamedTuple):
    """Where the bytes of a member lie, and their checksum."""

    offset: int
    size: int
    crc: int


def members(file: BinaryIO, path: Path) -> dict[str, Member]:
    """Finds every member by name.

    Raises:
        FileError: if one is compressed, encrypted, there twice, outside the file, or in the bytes of another; if the
            archive is a TorchScript program.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            infos, end = archive.infolist(), archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error) as error:
        raise FileError(path, f"the zip archive is damaged ({error})") from None
    # before its compressed members are: it has some
    if any(info.filename.endswith("/constants.pkl") for info in infos):
        remedy = "save torch.jit.load(file).state_dict() by torch.save, where the file comes from"
        raise FileError(path, "it is a TorchScript program, which is code", remedy=remedy)
    found: dict[str, Member] = {}
    for info in infos:
        if info.filename in found:
            raise FileError(path, "is in the zip archive twice", info.filename)
        found[info.filename] = _member(file, info, path)
    position = 0
    for name, member in sorted(found.items(), key=lambda item: item[1].offset):
        if member.offset < position or member.offset + member.size > end:
            raise FileError(path, "its bytes are also another member's, or outside the file", name)
        position = member.offset + member.size
    return found


def _member(file: BinaryIO, info: zipfile.ZipInfo, path: Path) -> Member:
    name = info.filename
    if info.flag_bits & 1:
        raise FileError(path, "is encrypted in the zip archive", name, "save the weights again without a password")
    if info.compress_type != zipfile.ZIP_STORED:
        raise FileError(
            path,
            "is compressed in the zip archive, which can hide any size",
            name,
            "save it again by numpy.savez or torch.save",
        )
    if info.file_size != info.compress_size:
        raise FileError(path, f"its sizes differ: {info.file_size:,} and {info.compress_size:,}", name)
    file.seek(max(0, info.header_offset))
    head = file.read(_LOCAL.size)
    if len(head) < _LOCAL.size or not head.startswith(b"PK\3\4"):
        raise FileError(path, "is not where the zip archive's list has it", name)
    *_, name_length, extra_length = _LOCAL.unpack(head)
    if file.read(name_length) != _encoded(info):
        raise FileError(path, "has another name where its bytes are", name)
    return Member(info.header_offset + _LOCAL.size + name_length + extra_length, info.file_size, info.CRC)


def _encoded(info: zipfile.ZipInfo) -> bytes:
    return info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")


def read(file: BinaryIO, member: Member, limit: int, path: Path, name: str) -> bytes:
    """Reads a small member whole.

    Raises:
        FileError: if it is larger than ``limit``.
    """
    if member.size > limit:
        raise FileError(path, f"has {member.size:,} bytes, more than the {limit:,} it may", name)
    file.seek(member.offset)
    return file.read(member.size)


class Writer:
    """Writes members one after the other, the bytes of each at a multiple of 64, with the same dates always.

    A context manager; the list of members is written at its end.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED)

    def add(self, name: str, parts: Iterable[bytes | memoryview], size: int) -> None:
        """Writes a member of ``size`` bytes, given in parts."""
        info = zipfile.ZipInfo(name)
        info.file_size = size
        large = size > 1 << 30
        begin = self._file.tell() + _LOCAL.size + len(name.encode()) + (20 if large else 0) + 4
        padding = -begin % _ALIGNMENT
        info.extra = struct.pack("<2H", _PADDING, padding) + bytes(padding)
        with self._zip.open(info, "w", force_zip64=large) as member:
            for part in parts:
                member.write(part)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exception: object) -> None:
        self._zip.close()


def begins(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is a zip archive."""
    return head.startswith(b"PK\3\4")


def is_npz(file: BinaryIO, path: Path) -> bool:
    """Whether an archive is NumPy's rather than torch's.

    Raises:
        FileError: if it is neither's.
    """
    names = list(members(file, path))
    if any(name.endswith("data.pkl") for name in names):
        return False
    if names and all(name.endswith(".npy") for name in names):
        return True
    listing = ", ".join(shown(name) for name in names[:5])
    raise FileError(
        path,
        f"the zip archive is neither torch's nor NumPy's; it holds {listing or 'nothing'}",
        remedy="name a weight file",
    )
