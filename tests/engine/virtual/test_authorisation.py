"""The options of a stored container do not decide where credentials go."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

import icechunk_engine as icechunk
from icechunk_engine import Repository, RepositoryConfig, VirtualChunkContainer, in_memory_storage
from icechunk_engine.config import (
    ObjectStoreConfig,
    S3Options,
    azure_store,
    gcs_store,
    http_store,
    s3_store,
    virtual_urls,
)
from icechunk_engine.config.containers import AnyObjectStoreConfig
from icechunk_engine.credentials import (
    HttpAccess,
    access_at,
    azure_anonymous_credentials,
    azure_credentials,
    containers_credentials,
    gcs_credentials,
    s3_anonymous_credentials,
    s3_credentials,
)
from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.virtual.authorisation import Granted, authorize

KEYS = s3_credentials(access_key_id="key", secret_access_key="secret")
TOKEN = gcs_credentials(bearer_token="token")
SAS = azure_credentials(sas_token="sig")

SCHEMES = {"S3": "s3", "S3Compatible": "s3", "Tigris": "tigris", "Gcs": "gs", "Azure": "az", "Http": "https"}


def stored(store: AnyObjectStoreConfig) -> VirtualChunkContainer:
    """A container from the stored configuration of a repository."""
    scheme = SCHEMES[type(store).variant if not isinstance(store, ObjectStoreConfig.Http) else "Http"]
    config = RepositoryConfig()
    config.set_virtual_chunk_container(VirtualChunkContainer(f"{scheme}://b/", store))
    storage = in_memory_storage()
    Repository.create(storage, config)
    (container,) = (Repository.open(storage).config.virtual_chunk_containers or {}).values()
    return container


def refusal(container: VirtualChunkContainer, credential: Any) -> str:
    with pytest.raises(InvalidInputError) as caught:
        authorize(container, {container.url_prefix: credential})
    assert caught.value.kind is ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER
    return caught.value.message


def s3_at(endpoint: str | None, **options: Any) -> AnyObjectStoreConfig:
    return s3_store(endpoint_url=endpoint, **options)


FOREIGN = [
    (s3_at("https://stranger.example"), KEYS),
    (s3_at("https://stranger.example:9000/x", s3_compatible=True), None),
    (s3_at("http://10.0.0.1:9000", allow_http=True), KEYS),
    (s3_at("https://s3.amazonaws.com.stranger.example"), KEYS),
    (s3_at("https://s3-1234.us-east-1.elb.amazonaws.com"), KEYS),
    (s3_at("https://s3.stranger.us-east-1.amazonaws.com"), KEYS),
    (s3_at("http://s3.us-east-1.amazonaws.com", allow_http=True), KEYS),
    (s3_at("https://s3.us-east-1.amazonaws.com:8443"), KEYS),
    (s3_at("https://s3.us-east-1.amazonaws.com@stranger.example"), KEYS),
    (ObjectStoreConfig.Tigris(S3Options(endpoint_url="https://stranger.example")), KEYS),
    (gcs_store({"google_base_url": "https://stranger.example"}), TOKEN),
    (gcs_store({"BASE_URL": "https://storage.googleapis.com.stranger.example"}), TOKEN),
    (azure_store(account="a", config={"azure_endpoint": "https://stranger.example"}), SAS),
    (azure_store(account="a", config={"azure_storage_endpoint": "https://stranger.example"}), SAS),
    (azure_store(account="a", config={"endpoint": "https://stranger.example"}), None),
]


@pytest.mark.parametrize(("store", "credential"), FOREIGN)
def test_credentials_go_to_a_stored_endpoint_only_when_the_reader_names_it(store: Any, credential: Any) -> None:
    container = stored(store)
    message = refusal(container, credential)
    # The code in the error message is enough.
    call = message.splitlines()[1].strip()
    names = vars(icechunk) | {"credentials": icechunk.credentials}
    granted = eval(call.partition("authorize_virtual_chunk_access=")[2][:-1], names)
    authorize(container, granted)
    (named,) = granted.values()
    if credential is not None:
        assert authorize(container, {"": None, container.url_prefix: access_at(credential, *named.places)}).credential
        refusal(container, access_at(credential, "https://elsewhere.example"))


OWN = [
    (s3_at(None, region="eu-central-1"), KEYS),
    (s3_at("https://s3.amazonaws.com"), KEYS),
    (s3_at("https://s3.us-gov-west-1.amazonaws.com/"), KEYS),
    (s3_at("https://s3-us-west-2.amazonaws.com"), None),
    (s3_at("https://s3.dualstack.eu-west-1.amazonaws.com:443"), KEYS),
    (s3_at("https://s3-fips.us-east-1.amazonaws.com"), KEYS),
    (s3_at("https://S3.cn-north-1.amazonaws.com.cn", s3_compatible=True), KEYS),
    (ObjectStoreConfig.Tigris(S3Options(endpoint_url="https://t3.storage.dev")), KEYS),
    (ObjectStoreConfig.Tigris(S3Options()), KEYS),
    (gcs_store(), TOKEN),
    (gcs_store({"base_url": "https://storage.googleapis.com", "timeout": "30s", "user_agent": "x"}), TOKEN),
    (azure_store(account="a"), SAS),
    (azure_store(account="a", config={"azure_endpoint": "https://a.blob.core.windows.net"}), SAS),
    (http_store({"timeout": "10s"}, {"authorization": "stored"}), HttpAccess),
]


@pytest.mark.parametrize(("store", "credential"), OWN)
def test_endpoints_of_the_clouds_need_no_name(store: Any, credential: Any) -> None:
    container = stored(store)
    assert authorize(container, {container.url_prefix: credential}).places == ()


HIDDEN = [
    (gcs_store({"proxy_url": "http://stranger.example"}), TOKEN, "proxy_url"),
    (gcs_store({"google_service_account_path": "/home/me/key.json"}), TOKEN, "service_account_path"),
    (gcs_store({"google_bucket": "another"}), TOKEN, "bucket"),
    (gcs_store({"service_account_key": '{"gcs_base_url": "https://x"}'}), TOKEN, "service_account_key"),
    (gcs_store({"Allow_Invalid_Certificates": "true"}), TOKEN, "allow_invalid_certificates"),
    (gcs_store({"root_certificate": "PEM"}), gcs_credentials(anonymous=True), "root_certificate"),
    (azure_store(account="a", config={"azure_authority_host": "https://x"}), SAS, "authority_host"),
    (azure_store(account="a", config={"azure_msi_endpoint": "https://x"}), SAS, "msi_endpoint"),
    (azure_store(account="a", config={"use_emulator": "true"}), SAS, "use_emulator"),
    (azure_store(account="a", config={"container_name": "another"}), SAS, "container_name"),
    (azure_store(account="a", config={"azure_federated_token_file": "/etc/shadow"}), None, "federated_token_file"),
    (http_store({"proxy_url": "http://stranger.example"}), HttpAccess, "proxy_url"),
    (http_store({"allow_invalid_certificates": "true"}), None, "allow_invalid_certificates"),
    (http_store({}, {"Host": "internal"}), HttpAccess, "'Host'"),
]


@pytest.mark.parametrize(("store", "credential", "name"), HIDDEN)
def test_other_options_that_decide_about_requests(store: Any, credential: Any, name: str) -> None:
    container = stored(store)
    message = refusal(container, credential)
    assert name in message
    own = VirtualChunkContainer(container.url_prefix, store)
    assert authorize(own, {own.url_prefix: credential}).places == ()


@pytest.mark.parametrize(
    ("endpoint", "allowed"),
    [
        ("https://open.example.org", True),
        ("https://open.example.org:8443/tenant", True),
        ("https://93.184.216.34", True),
        ("http://open.example.org", False),
        ("https://localhost:9000", False),
        ("https://minio", False),
        ("https://minio.local", False),
        ("https://metadata.google.internal", False),
        ("https://127.0.0.1", False),
        ("https://169.254.169.254", False),
        ("https://[::1]:9000", False),
        ("https://[::ffff:127.0.0.1]", False),
        ("https://0x7f.1", False),
        ("https://2130706433", False),
        ("https://127.1", False),
        ("https://10.0.0.1.", False),
        ("https://１２７.0.0.1", False),
    ],
)
def test_without_credentials_a_stored_endpoint_is_used_when_it_can_prove_its_name(
    endpoint: str, allowed: bool
) -> None:
    """No secret is sent, but outsiders must not reach services in the reader's network through the reader."""
    options = {"allow_http": True, "s3_compatible": True}
    granted: list[tuple[Any, Any]] = [
        (s3_at(endpoint, **options), s3_anonymous_credentials()),
        (s3_at(endpoint, anonymous=True, **options), None),
        (gcs_store({"base_url": endpoint}), None),
        (gcs_store({"base_url": endpoint}), gcs_credentials(anonymous=True)),
        (azure_store(account="a", config={"endpoint": endpoint}), azure_anonymous_credentials()),
    ]
    for store, credential in granted:
        container = stored(store)
        if allowed:
            authorize(container, {container.url_prefix: credential})
        else:
            refusal(container, credential)


def test_a_container_of_the_readers_own_configuration_needs_no_name() -> None:
    prefix, endpoint = "s3://b/", s3_at("https://stranger.example")
    storage, config = in_memory_storage(), RepositoryConfig()
    config.set_virtual_chunk_container(VirtualChunkContainer(prefix, endpoint))
    access = containers_credentials({prefix: KEYS})
    created = Repository.create(storage, config, access)
    own = [
        created,
        pickle.loads(pickle.dumps(Repository.open(storage, config, access))),
        Repository.open(storage, None, access).reopen(config),
    ]
    for repo in own:
        (container,) = repo._resolver.containers.values()
        assert authorize(container, access) == Granted(access[prefix], ())
        assert repo.config.virtual_chunk_containers == config.virtual_chunk_containers

    fetched = Repository.fetch_config(storage)
    assert fetched == config
    plain = Repository.open(storage, None, access)
    edited = copy.deepcopy(plain.config)
    edited.inline_chunk_threshold_bytes = 1
    edited.set_virtual_chunk_container(VirtualChunkContainer("s3://another/", s3_store()))
    others = [
        plain,
        pickle.loads(pickle.dumps(plain)),
        Repository.open(storage, fetched, access),  # the stored configuration, passed on unchanged
        plain.reopen(edited),
    ]
    for repo in others:
        container = repo._resolver.containers[prefix]
        assert "access_at" in refusal(container, KEYS)
    container.store = endpoint
    authorize(container, access)


def test_stored_markers_are_no_part_of_a_container() -> None:
    container = stored(s3_at("https://stranger.example"))
    own = VirtualChunkContainer(container.url_prefix, container.store)
    assert container == own
    assert repr(container) == repr(own)
    assert container.to_plain() == own.to_plain()
    assert (container.is_stored, own.is_stored) == (True, False)
    for one in (container, own):
        for copied in (pickle.loads(pickle.dumps(one)), copy.copy(one)):
            assert (copied, copied.is_stored) == (one, one.is_stored)


@pytest.mark.parametrize(
    "endpoint",
    [
        "https:/stranger.example/://s3.amazonaws.com",
        "https://stranger.example\\@s3.amazonaws.com",
        "https://stranger.example\t@s3.amazonaws.com",
        "https:stranger.example//s3.amazonaws.com",
        "https:\\\\stranger.example://s3.amazonaws.com",
        "https:///stranger.example://s3.amazonaws.com",
        "https://s3.amazonaws.com:443:80",
        "https://s3.amazon\u212aws.com",
        "stranger://s3.amazonaws.com",
        " https://s3.amazonaws.com",
    ],
)
def test_addresses_that_parsers_read_in_two_ways_are_refused(endpoint: str) -> None:
    for store, credential in (
        (s3_at(endpoint), KEYS),
        (s3_at(endpoint.replace("s3.amazonaws.com", "t3.storage.dev")), s3_anonymous_credentials()),
        (gcs_store({"base_url": endpoint.replace("s3.amazonaws", "storage.googleapis")}), TOKEN),
    ):
        refusal(stored(store), credential)
    with pytest.raises(InvalidInputError, match="not a valid place"):
        access_at(KEYS, endpoint)


@pytest.mark.parametrize("places", [(), ("minio:9000",), ("s3://b/",), ("https://h x",), ("file://host/x",), ("",)])
def test_places_that_are_none(places: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInputError, match="access_at"):
        access_at(KEYS, *places)


def test_places_are_kept_in_canonical_form() -> None:
    access = access_at(KEYS, "HTTPS://Minio.Example:443/tenant", "http://h:80", "file:///a/../data")
    assert access.places == ("https://minio.example", "http://h", "file:///data/")
    assert access_at(access, "https://h").places == (*access.places, "https://h")
    assert virtual_urls.host_of("https://[::1]:9000") == "[::1]"
    with pytest.raises(InvalidInputError, match="needs a credential"):
        access_at(None, "https://h")  # type: ignore[arg-type]


def test_regions_and_accounts_cannot_hide_a_host() -> None:
    """They become part of the host name."""
    from icechunk_engine.virtual.remote import bucket_of

    stored_with: list[tuple[VirtualChunkContainer, Any]] = [
        (stored(s3_store(region="x.stranger.example/")), KEYS),
        (stored(azure_store(account="stranger.example:443")), SAS),
    ]
    for container, credential in stored_with:
        granted = authorize(container, {container.url_prefix: credential})
        with pytest.raises(
            InvalidInputError,
            match=r"is not a valid (region|account) name",
        ):
            bucket_of(f"{container.url_prefix}x", container, granted.credential)


def test_options_do_not_contradict_the_account_in_the_prefix() -> None:
    from icechunk_engine.virtual.remote import bucket_of

    prefix = "abfs://data@mine.dfs.core.windows.net/"
    access = icechunk.Credentials.Azure(SAS)
    assert bucket_of(f"{prefix}x", VirtualChunkContainer(prefix, azure_store(account="mine")), access).name == "data"
    with pytest.raises(InvalidInputError, match="another account"):
        bucket_of(f"{prefix}x", VirtualChunkContainer(prefix, azure_store(account="theirs")), access)
