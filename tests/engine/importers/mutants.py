"""Reference sets with mistakes, made from good sets with a seed, and the outcome of importing them.

Run it as a script in a separate process: ``mutants.py FIRST COUNT [SET.json …]`` imports COUNT mutants from number
FIRST. It prints each fault as a line of JSON, and then a summary. A mutant must either raise an error of this library
and leave the session unchanged, or be imported with the same values that zarr reads from the set directly.
"""

from __future__ import annotations

import base64
import gzip
import json
import random
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zstandard
from zarr.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from icechunk_engine import Repository, in_memory_storage
from icechunk_engine.columns.chunk_refs import VIRTUAL
from icechunk_engine.errors import IcechunkError
from icechunk_engine.importers.kerchunk import import_kerchunk
from icechunk_engine.session import workspace_of
from tests.bounded import peak_mb

SLOW_S = 20.0
"""Much longer than any mutant takes, even on a busy machine."""
READABLE_BYTES = 2**18


def _zarray(values: np.ndarray[Any, Any], chunks: tuple[int, ...], **more: Any) -> dict[str, Any]:
    return {
        "zarr_format": 2,
        "shape": list(values.shape),
        "chunks": list(chunks),
        "dtype": values.dtype.str if values.dtype.names is None else [list(item) for item in values.dtype.descr],
        "compressor": None,
        "filters": None,
        "fill_value": None,
        "order": "C",
    } | more


def _inline(data: bytes) -> str:
    return "base64:" + base64.b64encode(data).decode()


def _seeds() -> dict[str, Any]:
    """Small valid sets of all forms."""
    grid = np.arange(12, dtype="<i4").reshape(3, 4)
    plain: dict[str, Any] = {".zgroup": {"zarr_format": 2}, ".zattrs": {"title": "x", "levels": [1, 2]}}
    plain["a/.zarray"] = _zarray(grid, (1, 4), fill_value=-1)
    plain["a/.zattrs"] = {"_ARRAY_DIMENSIONS": ["y", "x"], "units": "K", "valid": float("nan")}
    plain |= {f"a/{row}.0": _inline(grid[row].tobytes()) for row in range(3)}
    templates = {
        "version": 1,
        "templates": {"u": "s3://b", "f": "s3://b/{{c}}"},
        "gen": [
            {
                "key": "g/{{i}}.0",
                "url": "{{f(c='x')}}-{{i // 2}}",
                "offset": "{{(i + 1) * 16}}",
                "length": "16",
                "dimensions": {"i": {"start": 0, "stop": 3, "step": 1}, "j": [1]},
            }
        ],
        "refs": plain | {"g/.zarray": _zarray(grid, (1, 4)), "g/0.0": ["{{u}}/y", 0, 16]},
    }
    zoo: dict[str, Any] = {"sub/.zgroup": {"zarr_format": 2}}
    for name, dtype, fill in (
        ("f", ">f8", "NaN"),
        ("c", "<c8", [1.5, "NaN"]),
        ("t", "<M8[25s]", "NaT"),
        ("s", "|S3", "YWI="),
        ("u", "<U2", "x"),
        ("v", "|V4", None),
        ("b", "|b1", False),
        ("r", [("p", "<i2"), ("q", "<f4")], None),
    ):
        values = np.zeros((4,), dtype)
        values.view("u1")[:] = np.arange(values.nbytes) % 2 if name in "ub" else 65
        if name == "u":
            values[:] = "ab"
        zoo[f"sub/{name}/.zarray"] = _zarray(values, (2,), fill_value=fill, dimension_separator="/")
        zoo[f"sub/{name}/0"] = _inline(values[:2].tobytes())
    filtered: dict[str, Any] = {
        "d/.zarray": _zarray(grid.astype("<i2"), (3, 4), order="F", filters=[{"id": "delta", "dtype": "<i2"}]),
        "z/.zarray": _zarray(grid, (3, 4), compressor={"id": "zlib", "level": 1}, filters=[{"id": "shuffle"}]),
        "k/.zarray": _zarray(grid, (2, 2), compressor={"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1}),
        "o/.zarray": _zarray(grid, (3, 4), compressor={"id": "zstd", "level": 1}) | {"dtype": "<f4"},
    }
    filtered["d/0.0"] = _inline(grid.astype("<i2").tobytes())
    third = {
        "zarr.json": {"zarr_format": 3, "node_type": "group", "attributes": {"x": 1}},
        "a/zarr.json": {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [3, 4],
            "data_type": "int32",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 4]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0,
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
            "attributes": {},
            "dimension_names": ["y", None],
        },
        **{f"a/c/{row}/0": _inline(grid[row].tobytes()) for row in range(3)},
    }
    consolidated = {".zmetadata": {"zarr_consolidated_format": 1, "metadata": {"a/.zarray": plain["a/.zarray"]}}}
    return {
        "version 0": plain,
        "version 1": templates,
        "types": zoo,
        "filters": {"version": 1, "refs": filtered},
        "version 3 metadata": third,
        "consolidated": consolidated | {"a/0.0": plain["a/0.0"]},
    }


# --- mutations -------------------------------------------------------------------------------------------------------


def _nested(levels: int, kind: Any) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value} if kind is dict else [value]
    return value


ODD: list[Callable[[], Any]] = [
    *[lambda value=value: value for value in (None, True, False, 0, 1, -1, 3, 7, 2**31, 2**32 - 1, 2**32)],
    *[lambda value=value: value for value in (2**63 - 1, 2**63, 2**64, 10**30, -(2**63), 1e3, 0.5, -0.0)],
    *[lambda value=value: value for value in (float("nan"), float("inf"), 1e308, 1e18, 10**18)],
    *[lambda value=value: value for value in ("", "x", "0", "1e3", "NaN", "-1", "\0", "é", "٣", "a/b", "..")],
    *[lambda value=value: value for value in ("\ud800", "9" * 5000, "base64:", "base64:AAAA", "{{", "{{u}}", "}}")],
    *[lambda value=value: value for value in ("{{i * i}}", "{{f(c='{{u}}')}}", "{% x %}", "{{1/0}}", "{{i.x}}")],
    *[lambda value=value: value for value in ("s3://b/\ud800", "file:///etc/passwd", "http://h/?x", "zip://a::b")],
    list,
    dict,
    lambda: [1],
    lambda: [[]],
    lambda: {"id": "x"},
    lambda: [None],
    lambda: [5, 6, 7],
    lambda: ["s3://b/x", 0, 16],
    lambda: ["s3://b/x", 2**63, 1],
    lambda: ["s3://b/x"],
    lambda: [1] * 33,
    lambda: [1] * 70,
    lambda: _nested(70, dict),
    lambda: _nested(400, list),
    lambda: _nested(3000, dict),
    lambda: {"node_type": "array"},
]
POOLS: dict[str, list[Any]] = {
    "dtype": [
        *("<i4", ">i2", "|i1", "|u1", "<f4", "<f8", "<f2", "<c16", "|b1", "<M8[ns]", "<m8[D]", "<M8[0s]", "<M8"),
        *("<M8[generic]", "|S0", "|S5", "<U4", "|V8", "|V1000000000", "<U999999999", "|O", "<f16", "<i3", "i4", "=i4"),
        *(
            ["a", "<i4"],
            [["a", "<i4"]],
            [["a", "<i4"], ["a", "<i4"]],
            [["a", "<i4", [2]]],
            [["a", ">i4"], ["b", "<i4"]],
        ),
        *([["a", [["b", "|S2"], ["c", "<M8[s]"]]]], [["", "<i4"]], [], "<M8[999999999Y]", "|S", "<i٤", "float32"),
    ],
    "data_type": ["int8", "float64", "string", "r16", {"name": "struct"}, {"name": "numpy.datetime64"}, "int32"],
    "fill_value": [
        *(0, -1, 2**40, "NaN", "Infinity", [0, 0], ["NaN", "x"], "AAAA", "AAA=", "\ud800", 1e400, True, "NaT", "12"),
        *({"p": 1}, {"p": 1, "q": 2.5}, [1], "a" * 300, 10**400, 1e39),
    ],
    "compressor": [
        *({"id": "zlib"}, {"id": "gzip", "level": 99}, {"id": "blosc", "shuffle": [1]}, {"id": "zstd", "level": "x"}),
        *({"id": "pcodec"}, {"id": "lz4", "acceleration": -1}, {"id": []}, {"id": "shuffle", "elementsize": 0}),
        *(
            {"id": "blosc", "cname": 1},
            {"id": "blosc", "clevel": "9"},
            {"id": "zlib", "level": "x"},
            {"id": "lzma", "filters": 5},
        ),
        *({"id": "fletcher32", "x": 1}, {"id": "crc32", "location": "middle"}, {"id": "crc32c", "location": 5}),
        *({"id": "bz2", "level": float("nan")}, {"id": "imagecodecs_zlib", "level": {}}, [], "zlib"),
    ],
    "filters": [
        *([{"id": "delta", "dtype": "<f4"}], [{"id": "delta", "dtype": "<i4", "astype": "<i2"}], [{"id": "packbits"}]),
        *([{"id": "fixedscaleoffset", "dtype": "<i4", "scale": 0, "offset": "x"}], [{"id": "vlen-utf8"}], [{}], {}),
        *(
            [{"id": "astype", "encode_dtype": "O", "decode_dtype": [1]}],
            [{"id": "quantize", "digits": 1, "dtype": "<f4"}],
        ),
        *([{"id": "shuffle"}] * 40, [{"id": "delta", "dtype": {"names": 5}}], [{"id": "bitround", "keepbits": -1}]),
    ],
    "shape": [
        [],
        [0],
        [3, 0],
        [2**63, 1],
        [2**64, 1],
        [10**12, 10**12],
        [1] * 33,
        [1] * 65,
        [3.0, 4.0],
        [-1, 4],
        [True, 4],
    ],
    "chunks": [[], [0], [0, 4], [2**63, 1], [2**64, 1], [1] * 33, [1] * 65, [1.0, 4], [4, 5], [1e300, 1]],
    "order": ["F", "K", None],
    "zarr_format": [3, "2", None],
    "dimension_separator": ["/", ".", "-", None],
    "codecs": [[], [{"name": "gzip"}], [{"name": "bytes"}, {"name": "sharding_indexed"}], "bytes"],
    "stop": [0, 10**12, 10**30, -5],
    "key": ["a/{{i}}.0", "g/{{i}}", "{{key}}", "g/{{i + j}}.0"],
    "offset": ["{{i / 2}}", "{{i * 1e3}}", "{{-i}}", "{{2 * 9 * i % 0}}", "1_000", "{{f(c=i)}}"],
    "_FillValue": ["AAAAAAAA+H8=", 1, [1], [1, 2], "NaN", float("inf"), 10**400, None],
    "_ARRAY_DIMENSIONS": [[], ["x"], ["x", "x"], [1, 2], "yx", ["", ""], ["/", "a/b"]],
}
KEYS = [
    *(
        "/",
        "//",
        "..",
        ".",
        "a",
        "a/",
        "a/00",
        "a/-1.0",
        "a/0.0",
        "a/0.0.0",
        "a/9.9",
        "a/b/.zarray",
        "/a/.zarray",
        "\0",
    ),
    *(
        "\ud800",
        "a/0.0/0.0",
        "refs",
        "version",
        "gen",
        ".zarray",
        "0",
        "0.0",
        ".zattrs",
        "zarr.json",
        "g/" * 200 + ".zgroup",
    ),
    *("sub/f/2", "c", "c/0/0", "a/c/0/0", "a/.zattrs", ".zmetadata", "é/.zgroup", "a b/.zgroup", "%41/.zgroup"),
]


def _places(node: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Yield every container in a tree with each of its keys or positions."""
    if depth > 12:
        return
    members = list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
    for name, value in members:
        yield node, name
        yield from _places(value, depth + 1)


def _mutate(rng: random.Random, tree: dict[str, Any]) -> None:
    places = list(_places(tree))
    if not places:
        return
    holder, name = rng.choice(places)
    pool = POOLS.get(name.rpartition("/")[2] if isinstance(name, str) else "")
    action = rng.random()
    if pool is not None and action < 0.7:
        holder[name] = rng.choice(pool)
    elif action < 0.45:
        holder[name] = rng.choice(ODD)()
    elif action < 0.6:
        del holder[name]
    elif isinstance(holder, dict):
        value = holder.pop(name) if action < 0.75 else holder[name]
        known = list(tree.get("refs") or tree) if isinstance(tree.get("refs", {}), dict) else []
        new = rng.choice([*KEYS, *[key for key in known if isinstance(key, str)], f"{name}/", f"/{name}", f"{name}0"])
        holder[new] = value
    elif action < 0.8:
        holder.append(holder[name])
    else:
        holder.reverse()


def _packed(rng: random.Random, key: Any, value: Any) -> Any:
    """Metadata as kerchunk writes it, JSON in a string, and sometimes as an object."""
    if isinstance(value, dict) and str(key).rpartition("/")[2].startswith((".z", "zarr.json")) and rng.random() < 0.8:
        try:
            return json.dumps(value)
        except (ValueError, RecursionError):
            return value
    return value


def _with_double_key(rng: random.Random, text: str) -> str:
    """Repeat one member of the set. Its first occurrence has another value."""
    cut = text.find('"a/')
    return (
        text
        if cut < 0
        else text[:cut] + f'"a/{rng.randrange(3)}.0": {json.dumps(rng.choice(["x", 5, [None]]))}, ' + text[cut:]
    )


def _noise(rng: random.Random, data: bytes) -> bytes:
    noisy = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(noisy) + 1)
        match rng.randrange(4):
            case 0:
                noisy[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del noisy[at : at + rng.randrange(1, 40)]
            case 2:
                noisy[at:at] = rng.choice(
                    [b"[" * 2000, b'{"a":' * 2000, b"9" * 5000, b"\\ud800", b"\xff", b",", b'"', b"\\"]
                )
            case _:
                noisy[at:at] = noisy[at : at + 60]
    return bytes(noisy)


def mutant(number: int, seeds: dict[str, Any]) -> tuple[Any, dict[Any, Any]]:
    """Return a source for the importer, and its references as a mapping if they are known."""
    rng = random.Random(number)
    tree = json.loads(json.dumps(seeds[rng.choice(sorted(seeds))]))
    for _ in range(rng.choice([1, 1, 2, 3, 6])):
        _mutate(rng, tree)
    refs = tree.get("refs") if "version" in tree or isinstance(tree.get("refs"), dict) else tree
    if isinstance(refs, dict):
        for key in list(refs):
            refs[key] = _packed(rng, key, refs[key])
    form = rng.random()
    known = refs if isinstance(refs, dict) else {}
    if form < 0.5:
        return tree, known
    try:
        text = json.dumps(tree)
    except (ValueError, RecursionError):
        return tree, known
    if form < 0.75:
        return text, known
    if form < 0.8:
        return _with_double_key(rng, text), {}
    if form < 0.92:
        return _noise(rng, text.encode()), {}
    packers: list[Callable[[bytes], bytes]] = [gzip.compress, zstandard.compress]
    pack = rng.choice(packers)
    return _noise(rng, pack(text.encode())), {}


# --- judging ---------------------------------------------------------------------------------------------------------


def _set_as_store(refs: dict[Any, Any]) -> MemoryStore:
    """The set as zarr sees it through a reference file system, without chunks in files."""
    contents = {}
    for key, value in refs.items():
        if not isinstance(key, str) or isinstance(value, list):
            continue
        if isinstance(value, str) and value.startswith("base64:"):
            try:
                data = base64.b64decode(value[7:])
            except ValueError:
                continue
        elif isinstance(value, str):
            data = value.encode(errors="replace")
        else:
            data = json.dumps(value).encode()
        contents[key] = default_buffer_prototype().buffer.from_bytes(data)
    return MemoryStore(contents)


def _read(store: Any, path: str, zarr_format: Any) -> Any:
    """Return the values of an array, or None if it cannot be read, is large, or is in files."""
    array = zarr.open_array(store, path=path, mode="r", zarr_format=zarr_format)
    item = array.dtype.itemsize if array.dtype.kind != "O" else 8
    sizes = [int(np.prod(shape, dtype=object)) * item for shape in (array.shape, array.chunks)]
    return array[...] if max(sizes) <= READABLE_BYTES else None


def _differences(session: Any, arrays: tuple[str, ...], refs: dict[Any, Any]) -> Iterator[str]:
    """Return the arrays whose values differ from the set."""
    store = _set_as_store(refs)
    for path in arrays:
        name = path.strip("/")
        if bool((workspace_of(session).chunk_refs(path).kinds == VIRTUAL).any()):
            continue
        zarr_format = 3 if f"{name}/zarr.json".lstrip("/") in refs else 2
        try:
            expected = _read(store, name, zarr_format)
        except Exception:  # zarr cannot read the set itself
            continue
        if expected is None:
            continue
        try:
            found = _read(session.store, name, 3)
            np.testing.assert_array_equal(found, expected)
            if found.dtype != expected.dtype and found.dtype != expected.dtype.newbyteorder("="):
                yield f"{path}: {found.dtype} instead of {expected.dtype}"
        except Exception as error:  # any failure to read an array that zarr can read
            yield f"{path}: {type(error).__name__} {str(error)[:300]}"


def judge(number: int, seeds: dict[str, Any]) -> tuple[str, str]:
    """Return the outcome of a mutant, ``refused``, ``imported`` or ``fault``, and its kind."""
    source, refs = mutant(number, seeds)
    session = Repository.create(in_memory_storage()).writable_session("main")
    started = time.monotonic()
    try:
        report = import_kerchunk(source, session, validate_containers=False, check_files=False)
    except IcechunkError as error:
        if session.has_uncommitted_changes:
            return "fault", f"the session was changed: {error}"
        if len(str(error)) > 3000:
            return "fault", f"a message of {len(str(error))} characters: {str(error)[:200]}"
        outcome = "refused", error.kind.value
    except Exception:  # any other error is a fault
        return "fault", traceback.format_exc()[-1500:]
    else:
        found = list(_differences(session, report.arrays, refs))
        if found:
            return "fault", "; ".join(found)
        try:
            session.commit("mutant", allow_empty=True)
        except Exception:
            return "fault", traceback.format_exc()[-1500:]
        outcome = "imported", f"{len(report.arrays)} arrays"
    if time.monotonic() - started > SLOW_S:
        return "fault", f"it took {time.monotonic() - started:.1f} s"
    return outcome


def main(first: int, count: int, paths: list[str]) -> None:
    import resource

    if sys.platform == "linux":  # so that a fault ends this process, not the machine
        resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
    warnings.simplefilter("ignore")
    seeds = _seeds() | {path: json.loads(Path(path).read_text()) for path in paths}
    outcomes: Counter[str] = Counter()
    for number in range(first, first + count):
        outcome, detail = judge(number, seeds)
        outcomes[outcome if outcome != "refused" else f"refused: {detail}"] += 1
        if outcome == "fault":
            print(json.dumps({"number": number, "fault": detail}), flush=True)
    print(json.dumps({"outcomes": outcomes, "peak_mb": peak_mb()}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
