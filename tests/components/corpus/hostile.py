"""Files that want to break a reader, made anew by each test: name, content, and what is to become of them.

Either the rows have reasons, or the file is refused in one line.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from components.corpus.arrow_layout import file_blocks

GOOD = b'{"text": "good"}\n'


def zstd(data: bytes) -> bytes:
    """Compressed at once."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


@dataclass(frozen=True, slots=True)
class Hostile:
    """One file."""

    name: str
    make: Callable[[], bytes]
    reasons: dict[str, int] = field(default_factory=dict)
    """How many rows have which reason; "" stands for good rows."""
    error: str | None = None
    """Pattern of the message that refuses the file."""
    document: str = "line"


def _parquet(texts: pa.Array, **options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), sink, **options)
    return sink.getvalue()


def _two_columns() -> bytes:
    """Two columns of one name; the first counts."""
    sink = io.BytesIO()
    pq.write_table(pa.table([pa.array(["good"]), pa.array(["other"])], names=["text", "text"]), sink)
    return sink.getvalue()


def _arrow(texts: pa.Array, compression: str | None = None, *, stream: bool = False) -> bytes:
    sink = io.BytesIO()
    batch = pa.record_batch({"text": texts})
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def _lying_arrow() -> bytes:
    """A compressed buffer that claims to become 2^50 bytes."""
    data = bytearray(_arrow(pa.array(["x" * 5000] * 10), "zstd"))
    block = file_blocks(io.BytesIO(data))[1][0]
    body = block.offset + block.metadata_bytes
    place = next(p for p in range(body, body + block.body_bytes, 8) if struct.unpack_from("<q", data, p)[0] == 50_000)
    struct.pack_into("<q", data, place, 1 << 50)
    return bytes(data)


def _not_utf8() -> pa.Array:
    values = pa.array([b"good", b"\xff\xfe", None], pa.binary())
    return pa.Array.from_buffers(pa.string(), 3, values.buffers())


def _bad_offsets() -> bytes:
    offsets = pa.py_buffer(struct.pack("<3i", 0, 1 << 30, 4))
    return _arrow(pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"good")]))


def _dictionary_bomb() -> pa.Array:
    """100,000 texts of 4 MB each: 400 GB in 4 MB."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array(["x" * 4_000_000]))


_NUMBERS = b"".join(b"line %d of many\n" % number for number in range(5000))
_DEEP = b'{"text": "x", "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
_SURROGATE = b'{"text": "\\ud800"}\n{"text": "\\ud83c\\udf39"}\n'

HOSTILE = [
    Hostile("cut.txt.gz", lambda: gzip.compress(_NUMBERS)[:-20], error="the gzip data end too early; .* truncated"),
    Hostile("cut.jsonl.zst", lambda: zstd(_NUMBERS)[:-20], error=r"damaged zstd data \(truncated\)"),
    Hostile("cut.parquet", lambda: _parquet(pa.array(["x"]))[:-5], error="damaged parquet data"),
    Hostile("cut.arrow", lambda: _arrow(pa.array(["x"]))[:-5], error="damaged arrow data .*truncated"),
    Hostile("cut_stream.arrow", lambda: _arrow(pa.array(["x" * 99]), stream=True)[:-60], error="damaged arrow data"),
    Hostile("cut.csv.gz", lambda: gzip.compress(b"text\n" + _NUMBERS)[:-20], error="the gzip data end too early"),
    Hostile("tail.txt.gz", lambda: gzip.compress(b"a\n") + b"rubbish", error="not valid gzip data"),
    Hostile("mixed.txt", lambda: b"good\n" * 30 + b"caf\xe9\n" * 5 + b"\xd6\xd0\n", {"": 30, "text_not_unicode": 6}),
    Hostile("mixed.jsonl", lambda: GOOD * 3 + b'{"text": "\xd6\xd0"}\n', {"": 3, "text_not_unicode": 1}),
    Hostile("mixed.csv", lambda: b'text,b\ngood,1\ncaf\xe9,2\n"\xe9\n",3\n', {"": 1, "text_not_unicode": 2}),
    Hostile(
        "mixed_paragraphs.txt", lambda: b"a\nb\n\nc\n\xe9\nd\n\n\n", {"": 1, "text_not_unicode": 1}, None, "paragraph"
    ),
    Hostile("mixed_file.txt", lambda: b"good\n" * 20 + b"caf\xe9\n", {"text_not_unicode": 1}, None, "file"),
    Hostile(
        "gb18030.txt", lambda: "春眠不觉晓\n".encode("gb18030") * 20, error="not UTF-8 at byte 0 .*iconv -f GB18030"
    ),
    Hostile(
        "latin.txt", lambda: b"good\n" * 20 + b"caf\xe9\n" * 20, error="not UTF-8 at byte 103 .*iconv -f WINDOWS-1252"
    ),
    Hostile("gb18030.csv", lambda: "春,b\n".encode("gb18030") * 20, error="not UTF-8 at byte 0 .*iconv -f GB18030"),
    Hostile("file.txt", lambda: "春眠\n".encode("gb18030") * 20, error="not UTF-8 at byte 0 ", document="file"),
    Hostile("utf16.txt", lambda: "good\n".encode("utf-16"), error="not UTF-8 at byte 0 .*iconv -f UTF-16 -t UTF-8"),
    Hostile("utf16.jsonl", lambda: b"\xfe\xff" + '{"text": "x"}'.encode("utf-16-be"), error="iconv -f UTF-16"),
    Hostile("utf32.csv", lambda: "text\nx\n".encode("utf-32"), error="iconv -f UTF-32 -t UTF-8"),
    Hostile("mark.jsonl.gz", lambda: gzip.compress("\ufeff".encode() + GOOD), {"": 1}),
    Hostile("nul.txt", lambda: b"a\0b\n\0\0\0\ngood\n", {"": 3}),
    Hostile("nul.jsonl", lambda: b'{"text": "a\0b"}\n\0\0\n{"text": "a\\u0000b"}\n', {"not_json": 2, "": 1}),
    Hostile("surrogates.jsonl", lambda: _SURROGATE, {"text_not_unicode": 1, "": 1}),
    Hostile(
        "deep_text.jsonl",
        lambda: b'{"text": ' + b"[" * 1015 + b"]" * 1015 + b"}\n" + GOOD,
        {"text_not_a_string": 1, "": 1},
    ),
    Hostile("two_columns.parquet", _two_columns, {"": 1}),
    Hostile("deep.jsonl", lambda: _DEEP + b"[" * 100_000 + b"\n" + GOOD, {"not_json": 2, "": 1}),
    Hostile(
        "kinds.jsonl", lambda: b'[1]\n"x"\n3\nnull\nnope\n{}\n', {"not_an_object": 4, "not_json": 1, "text_missing": 1}
    ),
    Hostile("array.json", lambda: b'[{"text": "x"}]', error="one JSON array"),
    Hostile("page.jsonl", lambda: b"<!DOCTYPE html>\n<p>404\n", {"not_json": 2}),
    Hostile("empty_lines.txt", lambda: b"\n" * 1_000_000, {"": 1_000_000}),
    Hostile("empty_lines.jsonl", lambda: b"\n" * 1_000_000, {"empty_text": 1_000_000}),
    Hostile("empty_lines.csv", lambda: b"text\n" + b"\n" * 1_000_000, {"empty_text": 1_000_000}),
    Hostile("empty_paragraphs.txt", lambda: b"\n" * 1_000_000, {}, None, "paragraph"),
    Hostile("open.csv", lambda: b'text\n"open\n' + b"x\n" * 100, error="in the record at line 2 does not close"),
    Hostile("quotes.csv", lambda: b'text\n"a"b\nc"d\n"e""f"\n', {"not_csv": 1, "": 2}),
    Hostile("number.parquet", lambda: _parquet(pa.array([3])), error="column text is int64, not a string"),
    Hostile("bytes.parquet", lambda: _parquet(pa.array([b"x"])), error="column text is binary, not a string"),
    Hostile("list.arrow", lambda: _arrow(pa.array([["x"]])), error="column text is list.*, not a string"),
    Hostile("page.parquet", lambda: b"<!DOCTYPE html>\n<p>404\n" * 9, error="damaged parquet data"),
    Hostile("page.arrow", lambda: b"<!DOCTYPE html>\n<p>404\n" * 9, error="damaged arrow data"),
    Hostile("page.txt.gz", lambda: b"<!DOCTYPE html>\n<p>404\n", error="not valid gzip data"),
    Hostile("page.txt.zst", lambda: b"<!DOCTYPE html>\n<p>404\n", error="damaged zstd data"),
    Hostile("bytes.arrow", lambda: _arrow(_not_utf8()), {"": 1, "text_not_unicode": 1, "text_missing": 1}),
    Hostile("not_utf8.parquet", lambda: _parquet(_not_utf8()), {"": 1, "text_not_unicode": 1, "text_missing": 1}),
    Hostile("offsets.arrow", _bad_offsets, error="damaged arrow data"),
    Hostile("lie.arrow", _lying_arrow, error="a record batch of 11258.* bytes, more than"),
    Hostile("bomb.arrow", lambda: _arrow(_dictionary_bomb()), error="more than corpus.max_decompressed_bytes"),
    Hostile(
        "bomb.parquet",
        lambda: _parquet(_dictionary_bomb(), dictionary_pagesize_limit=1 << 30),
        error="more than corpus.max_decompressed_bytes",
    ),
    Hostile(
        "bomb.txt.gz", lambda: gzip.compress(bytes(20_000_000), 1), error="more than corpus.max_decompressed_bytes"
    ),
    Hostile("bomb.jsonl.zst", lambda: zstd(b" " * 20_000_000), error="more than corpus.max_decompressed_bytes"),
    Hostile("bomb.parquet.gz", lambda: gzip.compress(bytes(20_000_000), 1), error="more than corpus.max_decomp"),
    Hostile("empty.txt", bytes),
    Hostile("empty.jsonl", bytes),
    Hostile("empty.csv", bytes),
    Hostile("empty.parquet", bytes, error="damaged parquet data"),
    Hostile("empty.arrow", bytes, error="damaged arrow data"),
    Hostile("empty.txt.gz", bytes, error="no gzip data at all"),
    Hostile("name with spaces,\nline ends and 🌹.jsonl", lambda: GOOD, {"": 1}),
    Hostile("bad\nname.parquet", lambda: b"x", error=r"bad\\nname\.parquet: damaged parquet data"),
    Hostile("ids.jsonl", lambda: json.dumps({"text": "x", "id": {"a": [1]}}).encode(), {"": 1}),
]
