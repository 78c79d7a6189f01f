"""``config.yaml`` of spec version 1."""

from __future__ import annotations

import pytest
from hypothesis import given

from icechunk_engine import RepositoryConfig
from icechunk_engine.config.yaml_form import from_yaml, to_yaml
from icechunk_engine.errors import ErrorKind, FormatError
from tests.engine.config.test_config import CONFIGS


@given(CONFIGS)
def test_round_trip(config: RepositoryConfig) -> None:
    plain = config.to_dict()
    assert from_yaml(to_yaml(plain)) == plain


@pytest.mark.parametrize(
    "text", ["null", "~", "", "true", "no", "12", "-1", "1e3", "0o7", "12:30", "<<", "=", "2001-01-01"]
)
def test_text_stays_text(text: str) -> None:
    plain = {
        "previous_file": text,
        "virtual_chunk_containers": {
            "http": {"url_prefix": text, "store": {"gcs": {"http": text}}, "name": None},
            "local_file_system": {"url_prefix": "a", "store": {"local_file_system": text}, "name": text},
        },
    }
    assert from_yaml(to_yaml(plain)) == plain
    assert from_yaml(to_yaml({"virtual_chunk_containers": {"http": {"name": text}}}))["virtual_chunk_containers"] == {
        "http": {"name": text}
    }


def test_as_official_writes_it() -> None:
    written = b"""
manifest:
  preload:
    preload_if: !and
    - 'true'
    - !num_refs
      from: !Included 1
      to: !Excluded 5
  splitting:
    split_sizes:
    - - !or
        - !name_matches
          regex: no
        - any_array
      - - condition: !Axis 0
          num_chunks: 3
        - condition: Any
          num_chunks: 4
virtual_chunk_containers:
  gs://b/:
    url_prefix: gs://b/
    store: !gcs {}
  file:///x/:
    url_prefix: file:///x/
    store: !local_file_system /x/
"""
    plain = {
        "manifest": {
            "preload": {
                "preload_if": {"and": ["true", {"num_refs": {"from": {"Included": 1}, "to": {"Excluded": 5}}}]}
            },
            "splitting": {
                "split_sizes": [
                    [
                        {"or": [{"name_matches": {"regex": "no"}}, "any_array"]},
                        [{"condition": {"Axis": 0}, "num_chunks": 3}, {"condition": "Any", "num_chunks": 4}],
                    ]
                ]
            },
        },
        "virtual_chunk_containers": {
            "gs://b/": {"url_prefix": "gs://b/", "store": {"gcs": {}}},
            "file:///x/": {"url_prefix": "file:///x/", "store": {"local_file_system": "/x/"}},
        },
    }
    assert from_yaml(written) == plain
    assert from_yaml(to_yaml(plain)) == plain
    RepositoryConfig.from_dict(plain)


@pytest.mark.parametrize(
    "data", [b"[1]", b"a: [", b"\xff\xfe\x00", b"a: &x [*x]\nb: !!python/name:os.system", b"text", b"{" * 5000]
)
def test_damaged(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"config\.yaml") as caught:
        RepositoryConfig.from_dict(from_yaml(data))
    assert caught.value.kind == ErrorKind.CONFIG_DESERIALIZATION


def test_empty_is_default() -> None:
    assert RepositoryConfig.from_dict(from_yaml(b"")) == RepositoryConfig()


@pytest.mark.parametrize("line_break", ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_line_breaks_in_values(line_break: str) -> None:
    for value in (line_break, f"a{line_break}b", f"{line_break}a", f"a{line_break}", f" {line_break} "):
        plain = {"previous_file": value}
        assert from_yaml(to_yaml(plain)) == plain
