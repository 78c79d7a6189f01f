"""The types of obstore that the engine uses. They exist for type checkers only; obstore need not be installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obstore import GetResult, ObjectMeta, PutMode, PutResult
    from obstore.store import (
        AzureConfig,
        AzureCredential,
        AzureStore,
        ClientConfig,
        GCSConfig,
        GCSCredential,
        GCSStore,
        HTTPStore,
        RetryConfig,
        S3Config,
        S3Credential,
        S3Store,
    )

__all__ = [
    "AzureConfig",
    "AzureCredential",
    "AzureStore",
    "ClientConfig",
    "GCSConfig",
    "GCSCredential",
    "GCSStore",
    "GetResult",
    "HTTPStore",
    "ObjectMeta",
    "PutMode",
    "PutResult",
    "RetryConfig",
    "S3Config",
    "S3Credential",
    "S3Store",
]
