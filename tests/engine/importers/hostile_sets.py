"""Hostile reference sets: small sets that expand to terabytes, and wrong values of every kind.

Run it as a script in a separate process. It imports the sets one by one and prints each outcome as a line of JSON.
"""

from __future__ import annotations

import base64
import gzip
import json
import resource
import struct
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

import zstandard

from tests.bounded import peak_mb

ZARRAY: dict[str, Any] = {
    "zarr_format": 2,
    "shape": [3, 4],
    "chunks": [1, 4],
    "dtype": "<i4",
    "compressor": None,
    "filters": None,
    "fill_value": -1,
    "order": "C",
}


def small_set(**more: Any) -> dict[str, Any]:
    refs = {".zgroup": '{"zarr_format": 2}', "a/.zarray": json.dumps(ZARRAY)}
    return refs | {f"a/{row}.0": ["s3://bucket/x", 16 * row, 16] for row in range(3)} | more


def with_array(**changes: Any) -> dict[str, Any]:
    return small_set(**{"a/.zarray": json.dumps(ZARRAY | changes)})


def with_gen(*items: dict[str, Any], **templates: str) -> dict[str, Any]:
    return {"version": 1, "templates": templates, "gen": list(items), "refs": small_set()}


def gen(key: str, url: str, size: Any = 16, **dimensions: Any) -> dict[str, Any]:
    return {"key": key, "url": url, "offset": size, "length": size, "dimensions": dimensions}


def nested(levels: int, inside: Any = 1) -> Any:
    for _ in range(levels):
        inside = {"a": inside}
    return inside


def deep_text(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


def gzip_bomb(nbytes: int) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return b"".join([packer.compress(b" " * 2**20) for _ in range(nbytes // 2**20)]) + packer.flush()


def zstd_bomb(nbytes: int) -> bytes:
    return zstandard.compress(b" " * 2**24) * (nbytes // 2**24)


def announced(nbytes: int) -> bytes:
    """Return a zstd frame that claims to contain this many bytes, followed by a block of eight bytes."""
    return b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", nbytes) + (8 << 3 | 1).to_bytes(3, "little") + b'{"a":12}'


FUNCTION = "{{c}}" * 20
CALLS = "{{" + "f(c=" * 20 + "'xxxxxxxxxx'" + ")" * 20 + "}}"
GROUP_5000 = "/".join("g" for _ in range(5000))
RECORD_500: Any = "<i4"
for _ in range(500):
    RECORD_500 = [["a", RECORD_500]]

HOSTILE: dict[str, tuple[Callable[[], Any], str]] = {
    # Small sets that expand a lot.
    "templates that call each other": (
        lambda: {"version": 1, "templates": {"f": FUNCTION}, "refs": small_set(**{"a/0.0": [CALLS, 0, 16]})},
        "expanded_bytes=",
    ),
    "generated calls": (lambda: with_gen(gen("a/{{i}}.0", CALLS, i={"stop": 3}), f=FUNCTION), "expanded_bytes="),
    "a long URL generated often": (
        lambda: with_gen(gen("a/{{i}}.0", "s3://b/" + "x" * 10_000 + "{{i}}", i={"stop": 900_000})),
        "expanded_bytes=",
    ),
    "many items of gen": (
        lambda: with_gen(*[gen(f"a/{n}.{{{{i}}}}", "s3://b/x", i={"stop": 900_000}) for n in range(50)]),
        "items=",
    ),
    "dimensions that are long, of no product": (
        lambda: with_gen(gen("a/{{i}}.0", "s3://b/x", i={"stop": 0}, **{f"d{n}": {"stop": 10**8} for n in range(9)})),
        "items=",
    ),
    "a generated product": (
        lambda: with_gen(gen("a/{{i}}", "s3://b/x", **{name: {"stop": 1000} for name in "ijklmn"})),
        "items=",
    ),
    "a thousand dimensions": (
        lambda: with_gen(
            gen("a/{{i}}.0", "s3://b/x", i={"stop": 900_000}, **{f"d{n}": {"stop": 1} for n in range(999)})
        ),
        "at most 32",
    ),
    "many expressions of one text": (
        lambda: with_gen(gen("a/{{i}}.0", "{{i}}" * 20_000, i={"stop": 900_000})),
        "expressions",
    ),
    "braces that never close": (lambda: small_set(**{"a/0.0": ["{{" * 200_000, 0, 16]}), "relative"),
    "braces that never close, with templates": (
        lambda: {"version": 1, "templates": {"u": "x"}, "refs": small_set(**{"a/0.0": ["{{" * 200_000, 0, 16]})},
        "braces",
    ),
    "an element of a gigabyte": (lambda: with_array(dtype="|V1000000000", fill_value=None), "expanded_bytes="),
    "a record of gigabytes": (
        lambda: with_array(dtype=[["a", "|S2000000000"], ["b", "<U500000000"]], fill_value=None),
        "2 GiB",
    ),
    "many elements of a megabyte": (
        lambda: small_set(
            **{f"v{n}/.zarray": json.dumps(ZARRAY | {"dtype": "|V1000000", "fill_value": None}) for n in range(2000)}
        ),
        "expanded_bytes=",
    ),
    "a record 500 levels deep": (lambda: with_array(dtype=RECORD_500), "levels deep"),
    "keys 5 000 levels deep": (
        lambda: small_set(**{f"{GROUP_5000}{n}/.zgroup": "{}" for n in range(20)}),
        "depth=",
    ),
    "many groups that keys imply": (
        lambda: small_set(**{f"g{n}/{'g/' * 60}.zgroup": "{}" for n in range(20_000)}),
        "items=",
    ),
    "chunk keys 5 000 levels deep": (lambda: small_set(**{f"a/{'0/' * 5000}{n}": "x" for n in range(500)}), "chunk"),
    "attributes 10 000 deep, text": (lambda: small_set(**{"a/.zattrs": deep_text(10_000)}), "a/.zattrs"),
    "attributes 10 000 deep, object": (lambda: small_set(**{"a/.zattrs": nested(10_000)}), "depth="),
    "attributes 300 deep, in JSON": (lambda: json.dumps(small_set(**{"a/.zattrs": nested(300)})), "depth="),
    "attributes 10 000 deep, of the group": (lambda: small_set(**{".zattrs": nested(10_000)}), "depth="),
    "the set 100 000 deep": (lambda: '{"a":' + "[" * 100_000, "deeply"),
    "an inline value 10 000 deep": (lambda: small_set(**{"a/0.0": nested(10_000)}), "a/0.0"),
    "a list 10 000 deep": (lambda: small_set(**{"a/0.0": json.loads("[" * 900 + "]" * 900)}), "a/0.0"),
    "5 000 dimensions": (lambda: with_array(shape=[1] * 5000, chunks=[1] * 5000), "5000 dimensions"),
    # Compressed sets.
    "gzip that expands to 256 MiB": (lambda: gzip_bomb(2**28), "expanded_bytes="),
    "zstd that expands to 4 GiB": (lambda: zstd_bomb(2**32), "expanded_bytes="),
    "zstd that announces 16 EiB": (lambda: announced(2**63), "expanded_bytes="),
    "zstd that announces a GiB": (lambda: announced(2**30), "expanded_bytes="),
    "gzip cut off": (lambda: gzip.compress(json.dumps(small_set()).encode())[:-9], "damaged"),
    "zstd cut off": (lambda: zstandard.compress(json.dumps(small_set()).encode())[:-9], "damaged"),
    # Numbers.
    "an integer of 5 000 digits": (lambda: '{"a/0.0": ["s3://b/x", ' + "9" * 5000 + ", 16]}", "thousands of digits"),
    "the same in metadata": (
        lambda: small_set(**{"a/.zattrs": '{"x": ' + "9" * 5000 + "}"}),
        "a/.zattrs.*thousands of digits",
    ),
    "an offset of 5 000 digits": (lambda: small_set(**{"a/0.0": ["s3://b/x", 10**5000, 16]}), "a/0.0"),
    "a generated integer of 12 000 digits": (
        lambda: with_gen(gen("a/0.0", "s3://b/x", "{{i * i * i}}", i=[10**4000])),
        "larger than any offset",
    ),
    "a product of 990 digits": (
        lambda: with_gen(gen("a/0.0", "s3://b/x", "{{" + "9" * 490 + "*" + "9" * 490 + "}}", i=[0])),
        "larger than any offset",
    ),
    "a generated text of 5 000 digits": (
        lambda: with_gen(gen("a/0.0", "s3://b/x", "9" * 5000, i=[0])),
        "not an integer",
    ),
    "a sum of 400 terms": (lambda: with_gen(gen("a/0.0", "s3://b/x", "{{" + "1+" * 400 + "1}}", i=[0])), "understood"),
    "an offset of 2**63": (lambda: small_set(**{"a/0.0": ["s3://b/x", 2**63, 16]}), "a/0.0.*below 2"),
    "an offset of 1e400": (
        lambda: json.dumps(small_set(**{"a/0.0": ["s3://b/x", 7, 7]})).replace("7", "1e400"),
        "a/0.0",
    ),
    "an offset that is NaN": (lambda: small_set(**{"a/0.0": ["s3://b/x", float("nan"), 16]}), "a/0.0.*integers"),
    "an offset that is true": (lambda: small_set(**{"a/0.0": ["s3://b/x", True, 16]}), "a/0.0.*integers"),
    "a negative length": (lambda: small_set(**{"a/0.0": ["s3://b/x", 0, -16]}), "a/0.0.*negative"),
    "a length of 1e18": (
        lambda: small_set(**{"a/0.0": ["s3://b/x", 0, 10**18]}),
        "every chunk of this array has 16 bytes",
    ),
    "a dtype of 5 000 digits": (lambda: with_array(dtype="|V" + "1" * 5000), "array /a "),
    "a dtype beyond numpy": (lambda: with_array(dtype="<U9999999999"), "array /a "),
    "a time of 5 000 digits": (lambda: with_array(dtype="<M8[" + "1" * 5000 + "s]"), "array /a "),
    "a time of 9999999999 units": (lambda: with_array(dtype="<M8[9999999999s]"), "array /a "),
    "a chunk of 2**70": (lambda: with_array(chunks=[2**70, 4]), "of /a was refused"),
    "a chunk of 2**63 by 2**63": (
        lambda: with_array(shape=[2**63] * 2, chunks=[2**63] * 2),
        "chunk grid is 1 × 1",
    ),
    "chunks of 0": (lambda: with_array(chunks=[0, 4]), "array /a .*0"),
    "a fill value of 5 000 digits": (
        lambda: small_set(**{"a/.zarray": ZARRAY | {"fill_value": 10**5000}}),
        "array /a .*fill value",
    ),
    # Values of the wrong kind.
    "bytes that promise base64": (lambda: small_set(**{"a/0.0": b"base64:\xff"}), "a/0.0.*base64"),
    "a URL that is a number": (lambda: small_set(**{"a/0.0": [5, 0, 16]}), "a/0.0.*URL"),
    "a null": (lambda: small_set(**{"a/0.0": None}), "a/0.0"),
    "a key that is a number": (lambda: small_set() | {5: "x"}, "keys.*5"),
    "half a surrogate pair in a key": (lambda: small_set(**{"a\ud800/.zarray": json.dumps(ZARRAY)}), "Unicode"),
    "half a surrogate pair in a URL": (lambda: small_set(**{"a/0.0": ["s3://b/\ud800", 0, 16]}), "Unicode"),
    "half a surrogate pair in a web address": (lambda: small_set(**{"a/0.0": ["http://b/\ud800", 0, 16]}), "Unicode"),
    "half a surrogate pair in attributes": (
        lambda: small_set(**{"a/.zattrs": r'{"x": "\ud800"}'}),
        "array /a .*Unicode",
    ),
    "half a surrogate pair in a group": (lambda: small_set(**{".zattrs": r'{"x": "\ud800"}'}), "group / .*Unicode"),
    "half a surrogate pair in text": (lambda: '{"a": "\ud800"}', "Unicode"),
    "attributes that no JSON holds": (lambda: small_set(**{"a/.zattrs": {"x": {1, 2}}}), "array /a .*JSON"),
    "a codec with NaN": (
        lambda: with_array(filters=[{"id": "fixedscaleoffset", "scale": float("nan"), "offset": 0, "dtype": "<i4"}]),
        "array /a .*JSON",
    ),
    "a codec whose setting is a list": (lambda: with_array(compressor={"id": "blosc", "shuffle": [1]}), "shuffle"),
    "blosc of no known kind": (lambda: with_array(compressor={"id": "blosc", "cname": 1}), "array /a .*cname"),
    "blosc with a level of text": (lambda: with_array(compressor={"id": "blosc", "clevel": "9"}), "array /a .*clevel"),
    "zstd with a level of 1e18": (lambda: with_array(compressor={"id": "zstd", "level": 10**18}), "array /a .*level"),
    "a codec of a strange type": (
        lambda: with_array(filters=[{"id": "delta", "dtype": {"names": 5}}]),
        "array /a .*delta",
    ),
    "metadata that is a number": (lambda: small_set(**{"a/.zarray": "5"}), "a/.zarray"),
    "metadata in bytes that are no UTF-8": (lambda: small_set(**{"a/.zarray": b'{"x": "\xff"}'}), "a/.zarray.*UTF-8"),
    "consolidated metadata that is a list": (lambda: {".zmetadata": '{"metadata": [1]}'}, ".zmetadata"),
    "attributes of a v3 group that are a list": (
        lambda: {"zarr.json": {"zarr_format": 3, "node_type": "group", "attributes": [1]}},
        "attributes",
    ),
    "chunks of 0 in a v3 array": (
        lambda: {
            "a/zarr.json": {
                "zarr_format": 3,
                "node_type": "array",
                "shape": [3],
                "data_type": "int8",
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0]}},
                "codecs": [{"name": "bytes"}],
                "fill_value": 0,
            }
        },
        "chunk edge is 0",
    ),
    "an array and a group at once": (
        lambda: with_array() | {"a/zarr.json": '{"zarr_format": 3, "node_type": "group"}'},
        "remove one of them",
    ),
    "a v3 node of no type": (lambda: {"zarr.json": {"zarr_format": 3}}, "node_type"),
    "a .zarray of another format": (lambda: with_array(zarr_format=3), "array /a .*zarr_format"),
    "refs twice": (lambda: '{"version": 1, "refs": {"a/0": "x"}, "refs": {"b/0": "y"}}', "twice"),
    "refs that are a list": (lambda: {"version": 1, "refs": []}, "'refs'"),
    "templates that are a list": (lambda: {"version": 1, "templates": [], "refs": {}}, "'templates'"),
    "gen that is an object": (lambda: {"version": 1, "gen": {}, "refs": {}}, "'gen'"),
    "an item of gen that is a text": (lambda: {"version": 1, "gen": ["x"], "refs": {}}, "'gen'"),
    # Keys below an array that are not chunks.
    "a chunk 00": (lambda: small_set(**{"a/00.0": "0123456789abcdef"}), "'a/00.0'.*array '/a'"),
    "a chunk -1": (lambda: small_set(**{"a/-1.0": "0123456789abcdef"}), "'a/-1.0'.*array '/a'"),
    "a chunk of another rank": (lambda: small_set(**{"a/0.0.0": "0123456789abcdef"}), "'a/0.0.0'.*array '/a'"),
    "a chunk outside the grid": (lambda: small_set(**{"a/3.0": "0123456789abcdef"}), "'a/3.0'.*array '/a'"),
    "a chunk of 11 digits": (lambda: small_set(**{"a/00000000001.0": "0123456789abcdef"}), "array '/a'"),
    "a chunk with a suffix": (lambda: small_set(**{"a/0.0.json": "0123456789abcdef"}), "'a/0.0.json'.*array '/a'"),
    "a chunk of Zarr v3": (lambda: small_set(**{"a/c/0/0": "0123456789abcdef"}), "'a/c/0/0'.*array '/a'"),
    "a chunk below a chunk": (lambda: small_set(**{"a/0/0/0": "0123456789abcdef"}), "'a/0/0/0'.*array '/a'"),
    "a chunk in foreign digits": (lambda: small_set(**{"a/٠.٠": "0123456789abcdef"}), "array '/a'"),
    "keys with a slash in front": (lambda: {f"/{key}": value for key, value in small_set().items()}, "begin with '/'"),
    "base64 of no bytes": (lambda: small_set(**{"a/0.0": "base64:" + base64.b64encode(b"").decode()}), "no bytes"),
}


def main(names: list[str]) -> None:
    from icechunk_engine import Repository, in_memory_storage
    from icechunk_engine.importers.kerchunk import import_kerchunk

    if sys.platform == "linux":  # so that a fault ends this process, not the machine
        resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
    session = Repository.create(in_memory_storage()).writable_session("main")
    for name in names or HOSTILE:
        make, _ = HOSTILE[name]
        refs = make()
        started = time.monotonic()
        try:
            import_kerchunk(refs, session, validate_containers=False)
            found, message = "imported", ""
        except Exception as error:  # of which type is what the test looks at
            found, message = type(error).__name__, str(error)
        outcome = {
            "name": name,
            "found": found,
            "message": message,
            "seconds": time.monotonic() - started,
            "changed": session.has_uncommitted_changes,
            "peak_mb": peak_mb(),
        }
        print(json.dumps(outcome), flush=True)
        session.discard_changes()


if __name__ == "__main__":
    main(sys.argv[1:])
