"""Locations of virtual chunks: canonical form, containers and authorisation, compared with official where possible."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import icechunk as official
import numpy as np
import pytest
import zarr
from hypothesis import assume, example, given
from hypothesis import strategies as st

import icechunk_engine
from icechunk_engine.columns.chunk_refs import VIRTUAL, ChunkRefs
from icechunk_engine.columns.tables import BytesTable
from icechunk_engine.config import (
    ObjectStoreConfig,
    RepositoryConfig,
    S3Options,
    VirtualChunkContainer,
    azure_store,
    gcs_store,
    http_store,
    local_filesystem_store,
    s3_store,
)
from icechunk_engine.credentials import (
    Credentials,
    HttpAccess,
    LocalFileSystemAccess,
    azure_anonymous_credentials,
    containers_credentials,
    gcs_anonymous_credentials,
    s3_anonymous_credentials,
)
from icechunk_engine.errors import ErrorKind, IcechunkError, InvalidInputError
from icechunk_engine.virtual import vectorized_strings
from icechunk_engine.virtual.authorisation import authorize
from icechunk_engine.virtual.containers import (
    accepted_locations,
    checked_refs,
    expand_names,
    location_to_key,
    location_to_path,
    match_containers,
    normalize_location,
    normalize_locations,
    require_container,
    resolve_location,
)
from icechunk_engine.virtual.vectorized_strings import StringBlock

# --- official as oracle ----------------------------------------------------------------------------------------------

CONTAINERS = [
    ("s3://bucket/", "S3", "nm"),
    ("s3://b/", "S3", None),
    ("s3://b/deep/er/", "S3", None),
    ("gs://b/", "Gcs", None),
    ("gcs://b/", "Gcs", None),
    ("az://c/", "Azure", "blob"),
    ("azure://c/", "Azure", None),
    ("abfs://c/", "Azure", None),
    ("http://h/", "Http", None),
    ("https://h/", "Http", "web"),
    ("https://h.com/", "Http", None),
    ("file:///tmp/", "LocalFileSystem", "fl"),
    ("tigris://b/", "Tigris", None),
]


def container(lib: Any, prefix: str, kind: str, name: str | None) -> Any:
    variant = getattr(lib.ObjectStoreConfig, kind)
    if kind == "LocalFileSystem":
        store = variant("/tmp")
    elif kind == "Http":
        store = variant({}, None)
    elif kind in ("Gcs", "Azure"):
        store = variant({})
    else:
        store = variant(lib.S3Options(region="us-east-1"))
    return lib.VirtualChunkContainer(prefix, store, name)


OURS = {prefix: container(icechunk_engine.config, prefix, kind, name) for prefix, kind, name in CONTAINERS}


class Oracle:
    """An official session that shows how official handles a location."""

    def __init__(self) -> None:
        config = official.RepositoryConfig()
        for prefix, kind, name in CONTAINERS:
            config.set_virtual_chunk_container(container(official, prefix, kind, name))
        self._repo = official.Repository.create(official.in_memory_storage(), config=config)
        self._session = self._repo.writable_session("main")
        zarr.create_array(self._session.store, name="a", shape=(1,), chunks=(1,), dtype="i1")
        self._session.commit("an array")
        self._session = self._repo.writable_session("main")

    def outcome(self, location: str, *, validate: bool) -> str:
        """Return ``"ok"`` or the kind of the error."""
        try:
            self._session.store.set_virtual_ref("a/c/0", location, offset=0, length=1, validate_container=validate)
        except official.IcechunkError as error:
            return error.kind
        return "ok"

    def stored(self, location: str) -> str | None:
        """Return the stored location with ``vcc://`` expanded, or None if official refuses it."""
        if self.outcome(location, validate=False) != "ok":
            return None
        (found,) = self._session.all_virtual_chunk_locations()
        return found


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Oracle()


def our_outcome(location: str, *, validate: bool) -> str:
    try:
        canonical = normalize_location(location)
        if validate:
            require_container(canonical, OURS)
    except IcechunkError as error:
        return str(error.kind)
    return "ok"


NASTY = [
    "s3://bucket/a",
    "S3://Bucket/A%41 b?q=1#f",
    "S3://bucket/A",
    "s3://bucket",
    "s3://bucket/",
    "s3:///a",
    "s3:bucket/a",
    "s3://bucket/a/../b",
    "s3://bucket/a//b",
    "s3://bucket/./b",
    "s3://bucket/a b",
    "s3://bucket/é",
    "s3://bucket/%2e%2e/b",
    "s3://bucket/a\tb",
    "s3://bucket/a\nb",
    "s3://bucket/a ",
    "s3://bucket\\a",
    "s3://buc ket/a",
    "s3://bucket:80/a",
    "s3://user:pw@bucket/a",
    "s3://BUCKET/a",
    "s3://bucket/a%zz",
    "s3://bucket/\0",
    "s3://bucket?x/a",
    "s3://bucket#x/a",
    "s3://b/deep/er/a",
    "s3://b/deep/erer/a",
    "s3://bucket/" + "x" * 2000,
    "gs://b/a",
    "gs://b/a//b",
    "gs://b/a/./b",
    "gs://b/../b",
    "gs://b/a/",
    "gs://b/",
    "gs://b//",
    "gs://b/.hidden/..x/a.",
    "gs://b/a?x=//..",
    "gs://b/%2F%2F",
    "gs://b/a%2Fb",
    "gs://b/%2e",
    "gcs://b/a",
    "az://c/a",
    "azure://c/a",
    "abfs://c/a",
    "abfs://c@acc.dfs.core.windows.net/a",
    "abfss://c/a",
    "tigris://b/a",
    "tigris://b/a//b",
    "s3a://b/a",
    "http://h/a",
    "HTTPS://H.com/a",
    "HTTPS://h.com/a",
    "https://h.com:443/a",
    "https://h/a?x=1",
    "https://h/a//b",
    "https://h/a/../b",
    "https://h/a/%2e%2e/b",
    "https://h",
    "https://h/",
    "https://h/é ü",
    "https://h/a%2fb",
    "file:///tmp/a",
    "file:/tmp/a",
    "file://localhost/tmp/a",
    "file://LOCALHOST/tmp/a",
    "file:tmp/a",
    "FILE:///tmp/A",
    "file:////tmp/a",
    "file:///tmp/a/../b",
    "file:///tmp/./b",
    "file:///tmp//b",
    "file:///tmp/a b",
    "file:///tmp/é",
    "file:///tmp/a%20b",
    "file:///tmp/%2e%2e/b",
    "file:///tmp/.%2E/b",
    "file:///tmp/%2E/b",
    "file:///tmp/%2eb",
    "file:///../../b",
    "file:///tmp/..",
    "file:///tmp/x/..",
    "file:///tmp/x/.",
    "file:///tmp/a/.../b",
    "file:///tmp/a?q",
    "file:///tmp/a#f",
    "file:///tmp/a\\b",
    "file:///tmp/a\tb",
    "file:///tmp/\x7f\x01b",
    "file:///tmp/a%2fb",
    "file:///tmp/..%2fb",
    "file:///tmp/a%00b",
    "file:///tmp/a%zz",
    "file:///tmp/\"<>`{}|^[]'()*!$&+,;=:@~",
    "file:///C:/x/../../y",
    "file:///tmp/",
    "file:///tmp",
    "file:///",
    "file:",
    "vcc://nm/a",
    "VCC://nm/a",
    "vcc://nm/",
    "vcc://nm",
    "vcc://NM/a",
    "vcc://nm/../x",
    "vcc://nm//a",
    "vcc://nm/é b?q",
    "vcc://other/a",
    "vcc:nm/a",
    "memory://x/a",
    "ftp://h/a",
    "s-3://a/b",
    "s3+x://a/b",
    "a",
    "/tmp/a",
    "tmp/a",
    "c:/x",
    "",
    " ",
    "http://",
    "http:///a",
    "urn:isbn:123",
    "data:,x",
    "mailto:x@y",
]


@pytest.mark.parametrize("location", NASTY)
def test_locations_fare_as_with_official(oracle: Oracle, location: str) -> None:
    for validate in (True, False):
        assert our_outcome(location, validate=validate) == oracle.outcome(location, validate=validate)
    stored = oracle.stored(location) if not location.lower().startswith("vcc:") else None
    if stored is not None:
        assert normalize_location(location) == stored


@pytest.mark.parametrize(
    ("location", "remedy"),
    [
        (" s3://bucket/a", "absolute URL"),
        ("https:h/a", "https://bucket/key"),
        ("https:/h/a", "'//'"),
        ("file://tmp/a", "file:///absolute/path"),
        ("file://server/share/a", "file:///absolute/path"),
        ("file:C://a", "'://' in its path"),
        ("vcc:///a", "bucket or host"),
        ("1s3://a/b", "absolute URL"),
        ("://a", "absolute URL"),
    ],
)
def test_locations_that_only_official_takes(oracle: Oracle, location: str, remedy: str) -> None:
    """Official stores these mistakes, or resolves them to something that nobody meant."""
    with pytest.raises(InvalidInputError, match=remedy) as caught:
        normalize_location(location)
    assert caught.value.kind == ErrorKind.INVALID_VIRTUAL_REF


PIECES = st.sampled_from(
    ["/", "/", "/", "a", "b", ".", "..", "%2e", "%2E", "%", "%41", "%2f", "%ff", "é", "😀", "\\", "?", "#", "C:", "//"]
    + list("'\"<`{^[]~&+=;, \t\n\x7f\0")
    + ["localhost"]
)


@given(st.sampled_from(["file:", "file:/", "file:///", "FILE:///", "file:///tmp/"]), st.lists(PIECES, max_size=7))
@example("file:", ["C:", "//"])
@example("file:", ["C:", "//", "a"])
@example("file:/", ["a", "/", "C:", "//", "b"])
@example("file:", ["C:", "\t", "//"])
@example("file:///", ["C:", "//"])
def test_file_urls_become_what_official_makes_of_them(oracle: Oracle, start: str, pieces: list[str]) -> None:
    location = start + "".join(pieces)
    if "://" in location and not location.lower().startswith("file://"):
        with pytest.raises(InvalidInputError, match="'://' in its path"):
            normalize_location(location)
        # Official refuses it too, or stores it with a scheme such as "file:c".
        assert not (oracle.stored(location) or "").startswith("file://")
        return
    try:
        canonical = normalize_location(location)
    except InvalidInputError as error:
        assume("cannot have a host" not in error.message)  # refused on purpose
        raise
    # Tabs and line breaks vanish, so C: can become a drive later. Nobody writes such URLs.
    assume(not ("C:" in location and any(char in location for char in "\t\n")))
    assert canonical == oracle.stored(location)
    assert normalize_location(canonical) == canonical


LOCATIONS = st.one_of(
    st.sampled_from(NASTY),
    st.builds(
        lambda start, pieces: start + "".join(pieces),
        st.sampled_from([prefix for prefix, _, _ in CONTAINERS] + ["vcc://fl/", "vcc://nm/", "vcc://web/"]),
        st.lists(PIECES, max_size=4),
    ),
)


@given(st.lists(LOCATIONS, max_size=12), st.sampled_from([1, 3, 4096]))
def test_columns_and_single_locations_agree(locations: list[str], block_rows: int) -> None:
    singles = []
    for location in locations:
        try:
            singles.append(normalize_location(location))
        except InvalidInputError:
            continue
    table = BytesTable.of(locations)
    default, vectorized_strings.BLOCK_ROWS = vectorized_strings.BLOCK_ROWS, block_rows
    try:
        if len(singles) < len(locations):
            with pytest.raises(InvalidInputError):
                normalize_locations(table)
        else:
            assert normalize_locations(table).texts() == singles
        table = BytesTable.of(singles)
        assert normalize_locations(table) is table or normalize_locations(table) == table
        rows = match_containers(table, OURS)
        accepted = accepted_locations(table, OURS)
    finally:
        vectorized_strings.BLOCK_ROWS = default
    assert rows.dtype == np.int32
    assert rows.tolist() == [longest_prefix(location) for location in singles]
    assert accepted.tolist() == [our_outcome(location, validate=True) == "ok" for location in singles]


def longest_prefix(location: str) -> int:
    starts = [
        (len(prefix), row)
        for row, (prefix, _, name) in enumerate(CONTAINERS)
        if location.startswith(prefix) or (name is not None and location.startswith(f"vcc://{name}/"))
    ]
    return max(starts)[1] if starts else -1


@given(st.lists(st.text("ab/.%2eE", max_size=12), max_size=8), st.text("ab/.%2", min_size=1, max_size=11))
def test_string_blocks(texts: list[str], prefix: str) -> None:
    table = BytesTable.of(["x", *texts])
    block = StringBlock(table.data, table.starts[1:])
    assert block.starts_with(prefix.encode()).tolist() == [text.startswith(prefix) for text in texts]
    assert block.byte_at(3).tolist() == [ord(text[3]) if len(text) > 3 else 0 for text in texts]
    dots = block.count(block.data == ord(".")).tolist()
    assert dots == [text.count(".") for text in texts]
    counted = block.count(block.pairs(b"%2") & block.third(b"eE"))
    assert all(n >= text.count("%2e") + text.count("%2E") for n, text in zip(counted.tolist(), texts, strict=True))


def test_canonical_columns_are_not_copied() -> None:
    table = BytesTable.of(["s3://b/a b?#", "file:///tmp/a%20b", "https://h/x", "vcc://n/../x", "gs://b/é"])
    assert normalize_locations(table) is table


# --- resolving -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "url", "prefix"),
    [
        ("s3://bucket/a/../b", "s3://bucket/a/../b", "s3://bucket/"),
        ("s3://b/deep/er/a", "s3://b/deep/er/a", "s3://b/deep/er/"),
        ("s3://b/deep/erer", "s3://b/deep/erer", "s3://b/"),
        ("vcc://nm/a b", "s3://bucket/a b", "s3://bucket/"),
        ("vcc://nm//a?q", "s3://bucket//a?q", "s3://bucket/"),
        ("vcc://fl/x/./y z", "file:///tmp/x/y%20z", "file:///tmp/"),
        ("file:///tmp/x/../y", "file:///tmp/y", "file:///tmp/"),
        ("https://h/a%20b", "https://h/a%20b", "https://h/"),
    ],
)
def test_resolve(location: str, url: str, prefix: str) -> None:
    assert resolve_location(location, OURS) == (url, OURS[prefix])


@pytest.mark.parametrize(
    "location",
    [
        "file:///tmp/../etc/passwd",
        "file:///tmp/%2e%2e/etc/passwd",
        "file:///tmp/.%2E/etc/passwd",
        "file:///tmp/.\t./etc/passwd",
        "file:///tmp\\..\\etc/passwd",
        "file:///tmp/..%2fetc/passwd",
        "file:///tmp/x%2f..%2f..%2fetc/passwd",
        "vcc://fl/../etc/passwd",
        "vcc://fl/%2e%2e/etc/passwd",
        "vcc://fl/..%2Fetc/passwd",
        "https://h/../x",
        "https://h/a/%2E%2e/x",
        "gs://b/%2e%2e/x",
        "vcc://web/../x",
    ],
)
def test_no_way_out_of_a_container(location: str) -> None:
    """Even if a hostile repository has such locations."""
    with pytest.raises(InvalidInputError):
        location_to_path(resolve_location(location, OURS)[0])


@given(st.sampled_from(["file:///tmp/", "vcc://fl/", "file:/tmp/"]), st.lists(PIECES, max_size=8))
def test_files_never_lie_outside_their_container(start: str, pieces: list[str]) -> None:
    try:
        url, _ = resolve_location(start + "".join(pieces), OURS)
        path = location_to_path(url)
    except InvalidInputError:
        return
    assert os.path.normpath(path) == "/tmp" or os.path.normpath(path).startswith("/tmp/")


def test_file_names_of_any_kind(tmp_path: Path) -> None:
    names = ["plain", "a b", "ü#?%41", "x%2Fy".replace("%2F", "%25"), "new\nline", "\\", "'\"<>|*"]
    names.append(os.fsdecode(b"latin-\xe9"))
    for name in names:
        path = tmp_path / name
        path.write_bytes(b"data")
        assert location_to_path(normalize_location(path.as_uri())) == str(path)


def test_keys_are_decoded_paths() -> None:
    assert location_to_key("s3://b/a%20b/é%C3%A9?q#f") == "a b/éé"
    assert location_to_key("s3://b//a/../%2541") == "/a/../%41"
    with pytest.raises(InvalidInputError, match="UTF-8"):
        location_to_key("s3://b/%ff")
    assert location_to_path("file:///a%2fb", windows=False) == "/a/b"
    with pytest.raises(InvalidInputError, match="NUL"):
        location_to_path("file:///a%00b")


def test_memory_containers() -> None:
    """Our addition: named memory storages of this process."""
    containers = {"memory://x/": VirtualChunkContainer("memory://x/", ObjectStoreConfig.InMemory(), "mem")}
    config = RepositoryConfig()
    config.set_virtual_chunk_container(containers["memory://x/"])
    assert resolve_location("vcc://mem/a", containers)[0] == "memory://x/a"
    assert authorize(containers["memory://x/"], {"memory://x/": LocalFileSystemAccess}).credential


def test_prefixes_are_compared_in_canonical_form() -> None:
    local = local_filesystem_store("/")
    containers = {
        prefix: VirtualChunkContainer(prefix, local)
        for prefix in ("file://localhost/data/", "file:///with blank/", "FILE:/up/../down/", "file:///no-slash")
    }
    found = [
        resolve_location(url, containers)[1].url_prefix
        for url in ("file:///data/x", "file:///with%20blank/x", "file:///down/x")
    ]
    assert found == list(containers)[:3]
    for url in ("file:///up/x", "file:///no-slash/x", "file:///no-slash"):
        with pytest.raises(InvalidInputError) as caught:
            resolve_location(url, containers)
        assert caught.value.kind == ErrorKind.NO_CONTAINER_FOR_VIRTUAL_CHUNK


# --- bulk references -------------------------------------------------------------------------------------------------


def refs_to(locations: list[str], codes: list[int]) -> ChunkRefs:
    return ChunkRefs.build(
        np.arange(len(codes), dtype=np.uint32)[:, None],
        VIRTUAL,
        lengths=1,
        location_codes=np.array(codes),
        locations=BytesTable.of(locations),
    )


def test_refused_references_are_left_out() -> None:
    refs = refs_to(["s3://bucket/a", "s3://elsewhere/a", "FILE:///tmp/a b", "gs://b//a"], [0, 1, 2, 3, 1, 0])
    kept, refused = checked_refs(refs, OURS)
    assert refused is not None
    assert refused.tolist() == [False, True, False, True, True, False]
    assert kept.indices.ravel().tolist() == [0, 2, 5]
    assert [kept.row(i).location for i in range(3)] == ["s3://bucket/a", "file:///tmp/a%20b", "s3://bucket/a"]


def test_nothing_is_left_out_without_validation() -> None:
    refs = refs_to(["s3://elsewhere/a", "FILE:///x"], [0, 1])
    kept, refused = checked_refs(refs, OURS, validate=False)
    assert refused is None
    assert kept.locations.texts() == ["s3://elsewhere/a", "file:///x"]
    with pytest.raises(InvalidInputError, match="relative/path"):
        checked_refs(refs_to(["relative/path"], [0]), OURS, validate=False)


def test_locations_that_no_row_uses_refuse_nothing() -> None:
    refs = refs_to(["s3://bucket/a", "s3://elsewhere/a"], [0, 0])
    kept, refused = checked_refs(refs, OURS)
    assert refused is None
    assert len(kept) == 2


# --- authorisation ---------------------------------------------------------------------------------------------------

CREDENTIALS: dict[str, Any] = {
    "s3://bucket/": Credentials.S3(s3_anonymous_credentials()),
    "gs://b/": Credentials.Gcs(gcs_anonymous_credentials()),
    "az://c/": Credentials.Azure(azure_anonymous_credentials()),
    "https://h/": HttpAccess,
    "file:///tmp/": LocalFileSystemAccess,
}


@pytest.mark.parametrize("prefix", CREDENTIALS)
def test_only_what_was_authorised(prefix: str) -> None:
    others = {other: credential for other, credential in CREDENTIALS.items() if other != prefix}
    assert authorize(OURS[prefix], CREDENTIALS).credential == CREDENTIALS[prefix]
    assert authorize(OURS[prefix], {prefix: None}).credential is None
    without_slash = {prefix.removesuffix("/"): CREDENTIALS[prefix]}
    assert authorize(OURS[prefix], without_slash).credential == CREDENTIALS[prefix]
    with pytest.raises(InvalidInputError) as caught:
        authorize(OURS[prefix], others)
    assert caught.value.kind == ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER
    for other in others.values():
        with pytest.raises(InvalidInputError) as caught:
            authorize(OURS[prefix], {prefix: other})
        assert caught.value.kind == ErrorKind.INVALID_CREDENTIALS


def test_a_parent_directory_authorises_nothing() -> None:
    inner = VirtualChunkContainer("file:///tmp/inner/", local_filesystem_store("/"))
    with pytest.raises(InvalidInputError):
        authorize(inner, {"file:///tmp/": LocalFileSystemAccess, "file:///tmp/inner/deeper/": LocalFileSystemAccess})
    assert authorize(inner, {"file://localhost/tmp/x/../inner": LocalFileSystemAccess}).credential


STORES = {
    "s3://new/": s3_store(region="…"),
    "gs://new/": gcs_store(),
    "az://new/": azure_store(account="…"),
    "https://new:8080/": http_store(),
    "file:///new/dir/": local_filesystem_store("/new/dir/"),
    "memory://new/": ObjectStoreConfig.InMemory(),
    "tigris://new/": ObjectStoreConfig.Tigris(S3Options()),
}


@pytest.mark.parametrize("prefix", STORES)
def test_the_advice_can_be_run(prefix: str) -> None:
    """The code in the error messages adds the container and authorises it."""
    with pytest.raises(InvalidInputError) as caught:
        require_container(prefix + "object", {})
    assert caught.value.kind == ErrorKind.NO_CONTAINER_FOR_VIRTUAL_CHUNK
    lines = [line.strip() for line in caught.value.message.splitlines()[1:]]

    class Recorder:
        config = RepositoryConfig()
        saved = False

        def reopen(self, config: RepositoryConfig, *, authorize_virtual_chunk_access: Any) -> Recorder:
            self.config, self.authorized = config, authorize_virtual_chunk_access
            return self

        def save_config(self) -> None:
            self.saved = True

    names = vars(icechunk_engine.config) | vars(icechunk_engine.credentials) | {"repo": Recorder()}
    exec("\n".join(lines), names | {"credentials": icechunk_engine.credentials}, names)
    recorder = names["repo"]
    added = VirtualChunkContainer(prefix, STORES[prefix])
    assert recorder.saved
    assert recorder.config.virtual_chunk_containers == {prefix: added}
    authorize(added, recorder.authorized)

    with pytest.raises(InvalidInputError) as caught:
        authorize(added, {})
    call = caught.value.message.splitlines()[1].strip()
    assert call.startswith("Repository.open(storage, authorize_virtual_chunk_access=containers_credentials({")
    granted = eval(call.partition("access=")[2][:-1], names | {"credentials": icechunk_engine.credentials})
    authorize(added, granted)


def test_missing_names_are_told() -> None:
    with pytest.raises(InvalidInputError, match=r"named 'nowhere' \(known names: nm, blob, web, fl\)"):
        resolve_location("vcc://nowhere/a", OURS)
    with pytest.raises(InvalidInputError, match="containers do not support ftp://"):
        resolve_location("ftp://h/a", OURS)


def test_containers_credentials_fit_their_containers() -> None:
    granted = containers_credentials(
        {"s3://bucket": s3_anonymous_credentials(), "file:///tmp/": LocalFileSystemAccess}
    )
    assert authorize(OURS["s3://bucket/"], granted).credential == Credentials.S3(s3_anonymous_credentials())
    with pytest.raises(InvalidInputError, match="is not a credential"):
        authorize(OURS["s3://bucket/"], {"s3://bucket/": "key"})  # type: ignore[dict-item]


# --- reading what official reads -------------------------------------------------------------------------------------

LOCAL_LOCATIONS = [
    "{prefix}a/b",
    "{prefix}a//b",
    "{prefix}a/./b",
    "{prefix}a/../b",
    "{prefix}/b",
    "{prefix}./b",
    "{prefix}%2e/b",
    "{prefix}a%2Fb",
    "{prefix}a%2F%2Fb",
    "vcc://nm/b",
    "vcc://nm/a//b",
    "vcc://nm/a/./b",
    "vcc://nm/./b",
    "vcc://nm/a/../b",
    "vcc://nm/a%2Fb",
]


def value_of(lib: Any, folder: Path, location: str) -> object:
    """Return the value read at a location in a local container, or "refused" if it cannot be set."""
    prefix = f"{folder.as_uri()}/"
    config = lib.RepositoryConfig()
    config.set_virtual_chunk_container(
        lib.VirtualChunkContainer(prefix, lib.local_filesystem_store(str(folder)), "nm")
    )
    access = {prefix: lib.credentials.LocalFileSystemAccess}
    repo = lib.Repository.create(lib.in_memory_storage(), config, authorize_virtual_chunk_access=access)
    session = repo.writable_session("main")
    array = zarr.create_array(session.store, name="x", shape=(1,), chunks=(1,), dtype="u1", compressors=None)
    try:
        session.store.set_virtual_ref("x/c/0", location.format(prefix=prefix), offset=0, length=1)
    except lib.IcechunkError:
        return "refused"
    (found,) = session.all_virtual_chunk_locations()
    assert found.startswith(prefix)
    return int(np.asarray(array[0]).item())


@pytest.mark.parametrize("location", LOCAL_LOCATIONS)
def test_locations_in_local_containers_are_read_as_with_official(tmp_path: Path, location: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"\7")
    (tmp_path / "b").write_bytes(b"\10")
    assert value_of(icechunk_engine, tmp_path, location) == value_of(official, tmp_path, location)


def test_names_of_containers_become_urls() -> None:
    containers = {prefix: OURS[prefix] for prefix in ("s3://bucket/", "file:///tmp/")}
    locations = ["vcc://nm/a b?q", "s3://bucket/a", "vcc://unknown/x", "vcc://fl/a/../b", "vcc://nm//x"]
    assert expand_names(BytesTable.of(locations), containers) == [
        "s3://bucket/a b?q",
        "s3://bucket/a",
        "vcc://unknown/x",
        "file:///tmp/b",
        "s3://bucket//x",
    ]
