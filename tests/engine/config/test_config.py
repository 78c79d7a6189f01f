"""The configuration classes: checks, copies, printing, and effective values."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import icechunk as official
import pytest
from hypothesis import given
from hypothesis import strategies as st

import icechunk_engine
from icechunk_engine import config as cfg
from icechunk_engine import credentials as creds
from icechunk_engine.config import (
    CachingConfig,
    CompressionConfig,
    ManifestConfig,
    ManifestPreloadCondition,
    ManifestPreloadConfig,
    ManifestSplitCondition,
    ManifestSplitDimCondition,
    ManifestSplittingConfig,
    ObjectStoreConfig,
    RepositoryConfig,
    RepoUpdateRetryConfig,
    S3Options,
    StorageRetriesSettings,
    StorageSettings,
    VirtualChunkContainer,
    resolve,
)
from icechunk_engine.errors import ErrorKind, FormatError, InvalidInputError
from icechunk_engine.types import (
    Attribution,
    FeatureFlag,
    RepoAvailability,
    RepoStatus,
    feature_flag_id,
    feature_flags,
)

U16 = st.none() | st.integers(0, 2**16 - 1)
U64 = st.none() | st.integers(0, 2**64 - 1)
TEXT = st.none() | st.text(max_size=8)
OPTIONS = st.dictionaries(st.text(max_size=4).filter(lambda key: key != "headers"), st.text(max_size=4), max_size=2)


def conditions(condition: Any, leaves: list[Any]) -> st.SearchStrategy[Any]:
    regexes = st.text(max_size=5)
    return st.recursive(
        st.sampled_from(leaves) | regexes.map(condition.path_matches) | regexes.map(condition.name_matches),
        lambda inner: (
            st.lists(inner, max_size=3).map(condition.or_conditions)
            | st.lists(inner, max_size=3).map(condition.and_conditions)
        ),
        max_leaves=5,
    )


SPLIT = conditions(ManifestSplitCondition, [ManifestSplitCondition.AnyArray()])
PRELOAD = conditions(
    ManifestPreloadCondition,
    [
        ManifestPreloadCondition.true(),
        ManifestPreloadCondition.false(),
        ManifestPreloadCondition.num_refs(3, None),
        ManifestPreloadCondition.num_refs(None, 4),
    ],
)
AXES = (
    st.integers(0, 4).map(ManifestSplitDimCondition.Axis)
    | st.text(max_size=4).map(ManifestSplitDimCondition.DimensionName)
    | st.just(ManifestSplitDimCondition.Any())
)
S3_OPTIONS = st.builds(
    S3Options,
    region=TEXT,
    anonymous=st.booleans(),
    network_stream_timeout_seconds=U16,
    checksum_algorithm=st.none() | st.sampled_from(list(cfg.ChecksumAlgorithm)),
)
STORES = (
    st.builds(ObjectStoreConfig.S3, S3_OPTIONS)
    | st.builds(ObjectStoreConfig.S3Compatible, S3_OPTIONS)
    | st.builds(ObjectStoreConfig.Tigris, S3_OPTIONS)
    | st.builds(ObjectStoreConfig.Gcs, OPTIONS)
    | st.builds(ObjectStoreConfig.Azure, OPTIONS)
    | st.builds(ObjectStoreConfig.Http, OPTIONS, OPTIONS.map(lambda headers: headers or None))
    | st.builds(ObjectStoreConfig.LocalFileSystem, st.text(max_size=5))
    | st.just(ObjectStoreConfig.InMemory())
)
CONTAINERS = st.builds(VirtualChunkContainer, st.text(max_size=5), STORES, TEXT)
CONFIGS = st.builds(
    RepositoryConfig,
    inline_chunk_threshold_bytes=U16,
    compression=st.none() | st.builds(CompressionConfig, level=st.none() | st.integers(0, 255)),
    caching=st.none() | st.builds(CachingConfig, num_chunk_refs=U64),
    storage=st.none()
    | st.builds(StorageSettings, storage_class=TEXT, retries=st.none() | st.builds(StorageRetriesSettings, U16)),
    virtual_chunk_containers=st.none()
    | st.dictionaries(
        st.text(max_size=5), st.builds(VirtualChunkContainer, st.text(max_size=5), STORES, TEXT), max_size=2
    ),
    manifest=st.none()
    | st.builds(
        ManifestConfig,
        preload=st.none() | st.builds(ManifestPreloadConfig, U16, st.none() | PRELOAD),
        splitting=st.none()
        | st.builds(
            ManifestSplittingConfig,
            st.none()
            | st.lists(st.tuples(SPLIT, st.lists(st.tuples(AXES, st.integers(1, 2**32 - 1)), max_size=2)), max_size=2),
        ),
    ),
    num_updates_per_repo_info_file=U16,
    previous_file=TEXT,
)


@given(CONFIGS)
def test_stored_form_round_trips(config: RepositoryConfig) -> None:
    stored = config.to_dict()
    assert RepositoryConfig.from_dict(stored) == config
    assert RepositoryConfig.from_dict(stored).to_dict() == stored


@given(CONFIGS)
def test_copies_and_prints(config: RepositoryConfig) -> None:
    copy = pickle.loads(pickle.dumps(config))
    assert copy == config
    assert copy is not config
    assert str(config).startswith("<RepositoryConfig>\n")
    assert config._repr_html_().startswith("<table>")
    resolve(config)


@given(CONFIGS, CONFIGS)
def test_merging(first: RepositoryConfig, second: RepositoryConfig) -> None:
    assert first.merge(RepositoryConfig()) == first == RepositoryConfig().merge(first)
    assert first.merge(second).merge(second) == first.merge(second)


def test_repr_can_be_evaluated() -> None:
    config = RepositoryConfig(
        inline_chunk_threshold_bytes=3,
        caching=CachingConfig(num_chunk_refs=5),
        manifest=ManifestConfig(
            preload=ManifestPreloadConfig(
                preload_if=ManifestPreloadCondition.num_refs(1, None) | ManifestPreloadCondition.name_matches("a'b")
            ),
            splitting=ManifestSplittingConfig.from_dict(
                {ManifestSplitCondition.AnyArray(): {ManifestSplitDimCondition.Axis(0): 3}}
            ),
        ),
    )
    config.set_virtual_chunk_container(VirtualChunkContainer("s3://b/", cfg.s3_store(region="x")))
    assert eval(repr(config), vars(cfg)) == config


@pytest.mark.parametrize("stored", [None, {}, {"unknown": 3}, {"manifest": None, "caching": {}, "storage": {"x": 1}}])
def test_partial_stored_forms(stored: Any) -> None:
    assert resolve(RepositoryConfig.from_dict(stored)) == resolve()


@pytest.mark.parametrize(
    "stored",
    [
        [],
        {"inline_chunk_threshold_bytes": -1},
        {"inline_chunk_threshold_bytes": 2**16},
        {"inline_chunk_threshold_bytes": "3"},
        {"inline_chunk_threshold_bytes": True},
        {"caching": 3},
        {"compression": {"algorithm": "lz4"}},
        {"virtual_chunk_containers": []},
        {"virtual_chunk_containers": {"s3://a/": {"store": "in_memory"}}},
        {"virtual_chunk_containers": {"s3://a/": {"url_prefix": "s3://a/", "store": {"floppy": {}}}}},
        {"virtual_chunk_containers": {"s3://a/": {"url_prefix": "s3://a/", "store": {"s3": {"region": 3}}}}},
        {"manifest": {"preload": {"preload_if": {"xor": []}}}},
        {"manifest": {"preload": {"preload_if": {"num_refs": {"from": {"About": 3}, "to": "Unbounded"}}}}},
        {"manifest": {"preload": {"preload_if": "any_array"}}},
        {"manifest": {"splitting": {"split_sizes": [["any_array"]]}}},
        {"manifest": {"splitting": {"split_sizes": [["any_array", [{"condition": "Any"}]]]}}},
        {"manifest": {"splitting": {"split_sizes": [["true", []]]}}},
        {"manifest": {"splitting": {"split_sizes": [["any_array", [{"condition": {"Axis": -1}, "num_chunks": 1}]]]}}},
    ],
)
def test_unreadable_stored_forms(stored: Any) -> None:
    with pytest.raises(FormatError) as caught:
        RepositoryConfig.from_dict(stored)
    assert caught.value.kind == ErrorKind.CONFIG_DESERIALIZATION


def test_a_stored_split_size_of_zero_splits_nothing() -> None:
    stored = {"split_sizes": [["any_array", [{"condition": "Any", "num_chunks": 0}]]]}
    assert ManifestSplittingConfig.from_plain(stored).edges_for("/a", 1) == (cfg.NEVER_SPLIT,)
    with pytest.raises(InvalidInputError, match="at least one chunk"):
        ManifestSplittingConfig.from_dict({ManifestSplitCondition.AnyArray(): {ManifestSplitDimCondition.Any(): 0}})


@pytest.mark.parametrize(
    "make",
    [
        lambda: cfg.http_store(headers={"a b": "c"}),
        lambda: cfg.http_store(headers={"a": "b\r\nc: d"}),
        lambda: cfg.http_store(headers={"": "b"}),
        lambda: cfg.http_store(headers={"a": "é"}),
        lambda: RepositoryConfig().set_virtual_chunk_container(
            VirtualChunkContainer("https://h/", ObjectStoreConfig.Http({}, {"a": "b\n"}))
        ),
    ],
)
def test_bad_values_are_refused_at_once(make: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        make()
    assert caught.value.kind == ErrorKind.INVALID_CONFIG


@pytest.mark.parametrize(
    "make",
    [
        lambda: RepositoryConfig(inline_chunk_threshold_bytes="3"),  # type: ignore[arg-type]
        lambda: RepositoryConfig(inline_chunk_threshold_bytes=True),
        lambda: RepositoryConfig(caching=CompressionConfig()),  # type: ignore[arg-type]
        lambda: setattr(CompressionConfig(), "level", 2.5),
        lambda: CompressionConfig(algorithm=0),  # type: ignore[arg-type]
        lambda: setattr(S3Options(), "anonymous", None),
        lambda: setattr(StorageSettings(), "storage_class", 3),
        lambda: VirtualChunkContainer("s3://b/", S3Options()),  # type: ignore[arg-type]
        lambda: ObjectStoreConfig.S3({}),  # type: ignore[arg-type]
        lambda: ObjectStoreConfig.Gcs({"a": 1}),  # type: ignore[dict-item]
        lambda: ManifestSplittingConfig([("any", [])]),  # type: ignore[list-item]
        lambda: RepositoryConfig(virtual_chunk_containers={"s3://b/": None}),  # type: ignore[dict-item]
        lambda: RepositoryConfig(inline_chunk_threshold_bytes="x"),  # type: ignore[arg-type]
    ],
)
def test_other_types_are_refused_at_once(make: Any) -> None:
    with pytest.raises(TypeError, match=r"must be|must map|needs"):
        make()


@pytest.mark.parametrize("number", [-1, 256, 2**80])
def test_numbers_out_of_range_are_refused_at_once(number: int) -> None:
    with pytest.raises(InvalidInputError, match="must be an integer from 0 to 255") as caught:
        CompressionConfig(level=number)
    assert caught.value.kind == ErrorKind.INVALID_CONFIG
    assert isinstance(caught.value, OverflowError)  # like official's error
    assert pickle.loads(pickle.dumps(caught.value)).message == caught.value.message


WRONG_TYPES = [
    lambda lib: lib.S3Options(region=3),
    lambda lib: lib.s3_store(endpoint_url=3),
    lambda lib: lib.s3_store(allow_http="yes"),
    lambda lib: lib.s3_storage(bucket=3, prefix="x"),
    lambda lib: lib.s3_storage(bucket="b", prefix=3),
    lambda lib: lib.s3_storage(bucket="b", prefix="x", region=3),
    lambda lib: lib.s3_storage(bucket="b", prefix="x", headers={"a": 3}),
    lambda lib: lib.gcs_storage(bucket=3, prefix="x", anonymous=True),
    lambda lib: lib.gcs_storage(bucket="b", prefix="x", anonymous=True, config={"a": 3}),
    lambda lib: lib.azure_storage(account=3, container="c", prefix="x", anonymous=True),
    lambda lib: lib.http_storage(3),
    lambda lib: lib.http_storage("https://h/", {"a": 3}),
    lambda lib: lib.http_storage("https://h/", headers={"a": 3}),
    lambda lib: lib.s3_static_credentials(access_key_id=3, secret_access_key="x"),
    lambda lib: lib.s3_static_credentials(access_key_id="x", secret_access_key="x", expires_after="tomorrow"),
    lambda lib: lib.S3Credentials.Static("x"),
    lambda lib: lib.Credentials.S3("x"),
    lambda lib: lib.gcs_credentials(bearer_token=3),
    lambda lib: lib.azure_credentials(sas_token=3),
    lambda lib: lib.GcsBearerCredential(3),
    lambda lib: lib.VirtualChunkContainer(3, lib.s3_store()),
    lambda lib: lib.VirtualChunkContainer("s3://b/", "x"),
    lambda lib: lib.VirtualChunkContainer("s3://b/", lib.s3_store(), 3),
    lambda lib: lib.http_store({"a": 3}),
    lambda lib: lib.gcs_store([]),
    lambda lib: lib.local_filesystem_store(3),
    lambda lib: lib.RepositoryConfig(inline_chunk_threshold_bytes="x"),
    lambda lib: lib.StorageSettings(storage_class=3),
]


@pytest.mark.parametrize("make", WRONG_TYPES)
@pytest.mark.parametrize("lib", [icechunk_engine, official], ids=["ours", "official"])
def test_wrong_types_are_what_they_are_with_official(lib: Any, make: Any) -> None:
    with pytest.raises(TypeError):
        make(lib)


def test_headers_that_cannot_be_sent_are_refused_where_storages_are_made() -> None:
    makers: list[Callable[[dict[str, str]], object]] = [
        lambda headers: icechunk_engine.http_storage("https://h/x", headers=headers),
        lambda headers: icechunk_engine.s3_storage(bucket="b", prefix="p", anonymous=True, headers=headers),
        lambda headers: icechunk_engine.gcs_storage(bucket="b", prefix="p", anonymous=True, write_headers=headers),
    ]
    for make in makers:
        make({"x-fine": "a b\tc"})
        for headers in ({"a b": "c"}, {"a:": "c"}, {"a": "b\nc"}, {"a": "\0"}):
            with pytest.raises(InvalidInputError) as caught:
                make(headers)
            assert caught.value.kind == ErrorKind.STORAGE_CONFIG


def test_stored_headers_that_cannot_be_sent_keep_nobody_from_opening() -> None:
    container = VirtualChunkContainer("https://h/", ObjectStoreConfig.Http({}, {"a": "b\n"}))
    stored = RepositoryConfig(virtual_chunk_containers={"https://h/": container}).to_dict()
    assert resolve(RepositoryConfig.from_dict(stored)).virtual_chunk_containers == {}


def test_no_attribute_by_mistake() -> None:
    with pytest.raises(AttributeError):
        RepositoryConfig().inline_treshold = 3


def test_resolve() -> None:
    effective = resolve(
        RepositoryConfig(
            compression=CompressionConfig(level=7),
            caching=CachingConfig(num_chunk_refs=5),
            repo_update_retries=RepoUpdateRetryConfig(StorageRetriesSettings(max_tries=3)),
            manifest=ManifestConfig(preload=ManifestPreloadConfig(max_total_refs=9)),
            virtual_chunk_containers={
                "s3://b/": VirtualChunkContainer("s3://b/", cfg.s3_store()),
                "s3://no-slash": VirtualChunkContainer("s3://no-slash", cfg.s3_store()),
            },
        )
    )
    assert effective.compression_level == 7
    assert (effective.caching.num_chunk_refs, effective.caching.num_snapshot_nodes) == (5, 500_000)
    assert (effective.repo_update_max_tries, effective.repo_update_initial_backoff_ms) == (3, 50)
    assert effective.preload.max_total_refs == 9
    assert effective.preload.preload_if == cfg.default_preload_condition()
    assert list(effective.virtual_chunk_containers) == ["s3://b/"]
    assert pickle.loads(pickle.dumps(effective)) == effective


def test_default_preload_condition() -> None:
    condition = cfg.default_preload_condition()
    assert all(condition.matches(f"/g/{name}", 1000) for name in ("time", "lat", "nav_lon", "depth", "x", "level_1"))
    assert not condition.matches("/g/time", 1001)
    assert not condition.matches("/g/temperature", 1)


# --- secrets ---------------------------------------------------------------------------------------------------------

SECRET = "hunter2"


@pytest.mark.parametrize(
    "holder",
    [
        creds.s3_credentials(access_key_id="id", secret_access_key=SECRET, session_token=SECRET),
        creds.gcs_credentials(service_account_key=SECRET),
        creds.gcs_credentials(bearer_token=SECRET),
        creds.GcsBearerCredential(SECRET),
        creds.azure_credentials(access_key=SECRET),
        creds.azure_credentials(sas_token=SECRET),
        creds.azure_credentials(bearer_token=SECRET),
        creds.AzureRefreshableCredential.AccessKey(SECRET),
        creds.AzureRefreshableCredential.SasToken(SECRET),
        creds.AzureRefreshableCredential.BearerToken(SECRET),
        creds.S3Credentials.Refreshable(SECRET.encode()),
        cfg.http_store(headers={"authorization": SECRET}),
        cfg.azure_store(account="a", config={"sas_token": SECRET, "access_key": SECRET}),
        cfg.gcs_store({"service_account_key": SECRET}),
    ],
)
def test_secrets_are_not_printed(holder: Any) -> None:
    container = {"k": holder}
    assert SECRET not in f"{holder} {holder!r} {container}"
    if isinstance(holder, ObjectStoreConfig):
        config = RepositoryConfig(virtual_chunk_containers={"x/": VirtualChunkContainer("x/", holder)})
        assert SECRET not in f"{config} {config!r} {config._repr_html_()} {holder._repr_html_()}"
        assert SECRET in str(config.to_dict())


# --- credentials -----------------------------------------------------------------------------------------------------


def fresh_s3_credentials() -> creds.S3StaticCredentials:
    return creds.S3StaticCredentials("id", "key", expires_after=datetime(2030, 1, 1, tzinfo=UTC))


def test_ways_to_authenticate() -> None:
    assert creds.s3_credentials() == creds.S3Credentials.FromEnv() == creds.s3_credentials(from_env=True)
    assert creds.s3_credentials(anonymous=True) == creds.S3Credentials.Anonymous()
    refreshable = creds.s3_credentials(get_credentials=fresh_s3_credentials, scatter_initial_credentials=True)
    assert isinstance(refreshable, creds.S3Credentials.Refreshable)
    assert refreshable.current == fresh_s3_credentials() == pickle.loads(refreshable.pickled_function)()
    assert pickle.loads(pickle.dumps(refreshable)) == refreshable
    assert creds.gcs_credentials() == creds.GcsCredentials.FromEnv()
    assert creds.gcs_credentials(anonymous=True) == creds.GcsCredentials.Anonymous()
    assert creds.gcs_credentials(bearer_token="t") == creds.GcsCredentials.Static(
        creds.GcsStaticCredentials.BearerToken("t")
    )
    assert creds.azure_credentials() == creds.AzureCredentials.FromEnv()
    assert creds.azure_credentials(access_key="k") == creds.AzureCredentials.Static(
        creds.AzureStaticCredentials.AccessKey("k")
    )
    assert isinstance(creds.s3_anonymous_credentials(), creds.S3Credentials)


@pytest.mark.parametrize(
    "make",
    [
        lambda: creds.s3_credentials(access_key_id="a"),
        lambda: creds.s3_credentials(access_key_id="a", secret_access_key="b", anonymous=True),
        lambda: creds.s3_credentials(anonymous=True, from_env=True),
        lambda: creds.s3_credentials(from_env=False),
        lambda: creds.gcs_credentials(bearer_token="a", service_account_key="b"),
        lambda: creds.gcs_credentials(bearer_token="a", from_env=True),
        lambda: creds.azure_credentials(access_key="a", sas_token="b"),
        lambda: creds.azure_static_credentials(),
        lambda: creds.containers_credentials({"s3://b/": "secret"}),  # type: ignore[dict-item]
    ],
)
def test_conflicting_credentials(make: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        make()
    assert caught.value.kind == ErrorKind.INVALID_CREDENTIALS


def test_containers_credentials() -> None:
    given = {
        "s3://b/": creds.s3_anonymous_credentials(),
        "gs://b/": creds.gcs_anonymous_credentials(),
        "az://b/": creds.azure_anonymous_credentials(),
        "file:///b/": creds.LocalFileSystemAccess,
        "https://b/": creds.HttpAccess,
        "s3://c/": None,
    }
    assert creds.containers_credentials(given) == {
        "s3://b/": creds.Credentials.S3(creds.S3Credentials.Anonymous()),
        "gs://b/": creds.Credentials.Gcs(creds.GcsCredentials.Anonymous()),
        "az://b/": creds.Credentials.Azure(creds.AzureCredentials.Anonymous()),
        "file:///b/": creds.Credentials.LocalFileSystemAccess(),
        "https://b/": creds.Credentials.HttpAccess(),
        "s3://c/": None,
    }


# --- small types -----------------------------------------------------------------------------------------------------


def test_repo_status() -> None:
    status = RepoStatus(RepoAvailability.read_only, limited_availability_reason="moving")
    assert status.set_at.tzinfo is not None
    assert pickle.loads(pickle.dumps(status)) == status
    with pytest.raises(TypeError, match="time zone"):
        RepoStatus(RepoAvailability.online, datetime(2020, 1, 1))


def test_feature_flags() -> None:
    flags = {flag.name: flag for flag in feature_flags([4, 99], [5])}
    assert flags["create_tag"] == FeatureFlag(4, "create_tag", True, True)
    assert not flags["delete_tag"].enabled
    assert flags["move_node"].enabled
    assert feature_flag_id("move_node") == 3
    with pytest.raises(InvalidInputError, match="move_node"):
        feature_flag_id("fly")


def test_attribution_is_hashable_and_empty_by_default() -> None:
    assert hash(Attribution()) == hash(Attribution(client=None))


PRINTED = [
    creds.s3_credentials(anonymous=True),
    creds.s3_credentials(from_env=True),
    creds.gcs_credentials(service_account_file="/key.json"),
    creds.azure_credentials(from_env=True),
    creds.HttpAccess,
    creds.LocalFileSystemAccess,
    creds.access_at(creds.HttpAccess, "https://cdn.example"),
    creds.containers_credentials({"gs://b/": creds.gcs_credentials(anonymous=True)}),
    S3Options(region="x", checksum_algorithm=cfg.ChecksumAlgorithm.Sha256),
    cfg.s3_store(region="x", s3_compatible=True),
    ObjectStoreConfig.Tigris(S3Options()),
    cfg.gcs_store({"timeout": "1s"}),
    cfg.azure_store(account="a"),
    cfg.http_store({"timeout": "1s"}),
    cfg.local_filesystem_store("/x"),
    ObjectStoreConfig.InMemory(),
    VirtualChunkContainer("s3://b/", cfg.s3_store(), "name"),
    cfg.VirtualChunkSpec([0, 1], "s3://b/x", 2, 3, "etag"),
    RepositoryConfig(
        compression=CompressionConfig(level=3),
        manifest=ManifestConfig(
            preload=ManifestPreloadConfig(1, ManifestPreloadCondition.num_refs(1, 2)),
            splitting=ManifestSplittingConfig.from_dict(
                {ManifestSplitCondition.AnyArray(): {ManifestSplitDimCondition.Axis(0): 3}}
            ),
        ),
        storage=StorageSettings(retries=StorageRetriesSettings(1, 2, 3)),
        virtual_chunk_containers={"s3://b/": VirtualChunkContainer("s3://b/", cfg.s3_store())},
    ),
]


@pytest.mark.parametrize("value", PRINTED)
def test_reprs_can_be_evaluated(value: Any) -> None:
    names: dict[str, Any] = {}
    exec("from icechunk_engine import *", names)
    assert eval(repr(value), names) == value


@pytest.mark.parametrize(
    "value",
    [
        creds.s3_credentials(access_key_id="a" * 20, secret_access_key="b", session_token="c"),
        creds.s3_refreshable_credentials(print),  # type: ignore[arg-type]
        creds.gcs_credentials(bearer_token="a"),
        creds.azure_credentials(sas_token="a"),
        creds.GcsBearerCredential("a"),
        cfg.http_store({"proxy_url": "http://me:secret@proxy"}, {"authorization": "secret"}),
    ],
)
def test_reprs_with_secrets_can_be_evaluated_to_something_alike(value: Any) -> None:
    names: dict[str, Any] = {}
    exec("from icechunk_engine import *", names)
    shown = eval(repr(value), names)
    assert type(shown) is type(value)
    assert repr(shown) == repr(value).replace("aaaa****", "****")
