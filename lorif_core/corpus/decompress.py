"""Decompresses a file block by block: memory is bounded, whatever a few bytes unpack to."""

from collections.abc import Iterable, Iterator
from typing import BinaryIO

import pyarrow as pa
import zstandard

from lorif_core.errors import DamagedFileError
from lorif_core.storage.filesystem import SourceFile

WIDEST_WINDOW = 2**31
"""Window of `zstd --long=31`, the widest one that zstd makes. A reader of such a frame needs this memory."""

_USUAL_WINDOW = 2**27  # of `zstd --long`, and the widest one that other readers allow
_HEADER_BYTES = 18
_READ_BYTES = 2**20
_PIECE_BYTES = 512  # a piece becomes at most 16 MiB: 4 bytes are the smallest block, of at most 128 KiB


def is_compressed(name: str) -> bool:
    """Whether a file of this name can only be read from its start."""
    return name.lower().endswith((".gz", ".zst"))


def is_wide(file: SourceFile) -> bool:
    """Whether a reader of the file needs more than 128 MiB, judging by its first zstd frame."""
    if not file.name.lower().endswith(".zst"):
        return False
    with file.open() as raw:
        head = raw.read(_HEADER_BYTES)
    try:
        return zstandard.get_frame_parameters(head).window_size > _USUAL_WINDOW
    except zstandard.ZstdError:
        return False


def read_blocks(file: SourceFile, size: int, offset: int = 0) -> Iterator[bytes]:
    """Blocks of the decompressed content, of `size` bytes except the last.

    Members of gzip and frames of zstd are read one after another.

    Args:
        file: its name says how it is compressed, if it is.
        size: bytes of a block, and of a request to a remote store.
        offset: first byte to read; 0 for a compressed file.

    Raises:
        DamagedFileError: a zstd stream is cut off, or needs a window of more than 2 GiB.
        OSError, zstandard.ZstdError: the stream is damaged.
    """
    name = file.name.lower()
    with file.open(size) as raw:
        raw.seek(offset)
        if name.endswith(".zst"):
            yield from _of_size(_zstd_pieces(raw, file.uri), size)
            return
        stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "gzip") if name.endswith(".gz") else raw
        while block := stream.read(size):
            yield block


def _of_size(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    block = bytearray()
    for piece in pieces:
        block += piece
        while len(block) >= size:
            yield bytes(memoryview(block)[:size])
            del block[:size]
    if block:
        yield bytes(block)


def _zstd_pieces(raw: BinaryIO, uri: str) -> Iterator[bytes]:
    """Arrow refuses windows above 128 MiB; the streaming reader of zstandard does not report a truncated frame."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=WIDEST_WINDOW)
    frame = decompressor.decompressobj()
    while block := raw.read(_READ_BYTES):
        for start in range(0, len(block), _PIECE_BYTES):
            piece = block[start : start + _PIECE_BYTES]
            while piece:
                if frame.eof:
                    frame = decompressor.decompressobj()
                try:
                    yield frame.decompress(piece)
                except zstandard.ZstdError as error:
                    if "too much memory" not in str(error):
                        raise
                    raise DamagedFileError(
                        f"{uri} needs a window of more than {WIDEST_WINDOW >> 30} GiB to be decompressed; "
                        f"compress it again with zstd --long=31 or less"
                    ) from None
                piece = frame.unused_data if frame.eof else b""
    if not frame.eof:
        raise DamagedFileError(f"{uri} is damaged or cut off (it ends in the middle of a zstd frame); restore it")
