"""Log records, OpenTelemetry spans, and notes on errors that say during which operations they happened.

Loggers have the names of the modules (``icechunk_engine.session``, …). They write nothing until the application
configures :mod:`logging` or calls :func:`initialize_logs`. If ``opentelemetry`` is installed, operations become spans,
which go where the application's tracer provider sends them. An error of ours carries a note for each operation that it
passed through, innermost first.
"""

from __future__ import annotations

import contextvars
import functools
import importlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Protocol, TextIO, cast

from icechunk_engine.errors import IcechunkError
from icechunk_engine.errors.redaction import redacted


class _Span(Protocol):
    def is_recording(self) -> bool: ...


class _Tracer(Protocol):
    def start_as_current_span(self, name: str, *, attributes: Mapping[str, str]) -> AbstractContextManager[object]: ...


class _Tracing(Protocol):
    """The part of ``opentelemetry.trace`` that this module calls."""

    def get_current_span(self) -> _Span: ...

    def get_tracer(self, instrumenting_module_name: str) -> _Tracer: ...

    def get_tracer_provider(self) -> object: ...


_trace: _Tracing | None = None
with suppress(Exception):  # an optional dependency, which reads environment variables of its own
    _trace = cast("_Tracing", importlib.import_module("opentelemetry.trace"))

PACKAGE = "icechunk_engine"
TRACE = 5
"""Level below DEBUG: single requests."""

_LEVELS = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "off": logging.CRITICAL + 1,
}
_ALIASES = {"5": "trace", "4": "debug", "3": "info", "2": "warn", "1": "error", "0": "off", "warning": "warn"}
_OFFICIAL_NAME = "icechunk"

logging.addLevelName(TRACE, "TRACE")
logging.getLogger(PACKAGE).addHandler(logging.NullHandler())


class _Decorator(Protocol):
    def __call__[**P, R](self, function: Callable[P, R]) -> Callable[P, R]: ...


def operation(describe: Callable[..., str]) -> _Decorator:
    """Report an operation that users call. A decorator.

    Parameters
    ----------
    describe
        Called with the arguments of the operation. Returns what it does, as in "committing to branch 'main' of
        s3://…". It is called only if somebody listens or the operation fails.
    """

    def decorate[**P, R](function: Callable[P, R]) -> Callable[P, R]:
        log = logging.getLogger(function.__module__)
        name = f"icechunk.{function.__name__}"

        @functools.wraps(function)
        def observed(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                if not log.isEnabledFor(logging.DEBUG) and _trace is None:
                    return function(*args, **kwargs)
                with _reported(log, name, described(*args, **kwargs)):
                    return function(*args, **kwargs)
            except IcechunkError as error:
                add_step(error, described(*args, **kwargs))
                raise

        def described(*args: P.args, **kwargs: P.kwargs) -> str:
            try:
                return describe(*args, **kwargs)
            except Exception:  # wrong arguments: the function itself says what is wrong with them
                return function.__name__

        return observed

    return decorate


def add_step(error: IcechunkError, text: str) -> None:
    """Note on an error during which operation it happened. The same note is added only once."""
    note = f"while {redacted(text)}"
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)


@contextmanager
def _reported(log: logging.Logger, name: str, text: str) -> Iterator[None]:
    started, text = time.perf_counter(), redacted(text)
    with _span(name, text):
        try:
            yield
        except Exception as error:
            log.debug("%s failed after %.1f ms: %s", text, _ms_since(started), type(error).__name__)
            raise
        log.debug("%s took %.1f ms", text, _ms_since(started))


_UNREPORTED = nullcontext()


def request(log: logging.Logger, verb: str, key: str) -> AbstractContextManager[None]:
    """Return a context for one request to a storage. It reports the request if anybody listens."""
    if log.isEnabledFor(TRACE) or (_trace is not None and _trace.get_current_span().is_recording()):
        return _reported_request(log, verb, key)
    return _UNREPORTED


@contextmanager
def _reported_request(log: logging.Logger, verb: str, key: str) -> Iterator[None]:
    started = time.perf_counter()
    with _span(f"icechunk.storage.{verb}", key):
        yield
    log.log(TRACE, "%s %s took %.1f ms", verb, key, _ms_since(started))


def bound[**P, R](function: Callable[P, R]) -> Callable[P, R]:
    """Return the function bound to the context of this thread, so that its spans have their parent."""
    if _trace is None:
        return function
    context = contextvars.copy_context()
    return lambda *args, **kwargs: context.copy().run(function, *args, **kwargs)


def _ms_since(started: float) -> float:
    return 1000 * (time.perf_counter() - started)


@contextmanager
def _span(name: str, text: str) -> Iterator[None]:
    tracer = _tracer()
    if tracer is None:
        yield
        return
    with tracer.start_as_current_span(name, attributes={"icechunk.what": text}):
        yield


def _tracer() -> _Tracer | None:
    """Return OpenTelemetry's tracer for this package, None if there is none."""
    global _trace
    if _trace is None:
        return None
    try:
        return _trace.get_tracer(PACKAGE)
    except Exception:  # the environment may name a provider that is not installed; data matter more than spans
        logging.getLogger(PACKAGE).warning("no spans are recorded: OpenTelemetry cannot be used", exc_info=True)
        _trace = None
        return None


# --- switches, with official's names -------------------------------------------------------------------------------


def initialize_logs() -> None:
    """Write log records to standard error, filtered by the environment variable ``ICECHUNK_LOG``.

    If ``ICECHUNK_LOG_TO_STDOUT`` is set, they go to standard output. The import of the package calls this function if
    ``ICECHUNK_LOG`` is set, so it never fails: invalid parts of the variable are ignored, and a log record says so.
    You do not need it if your application configures :mod:`logging`.
    """
    logger = logging.getLogger(PACKAGE)
    if not any(isinstance(handler, _Handler) for handler in logger.handlers):
        handler = _Handler(sys.stdout if "ICECHUNK_LOG_TO_STDOUT" in os.environ else sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
    # A record, not a Python warning: under -W error the import would fail.
    refused = _set_levels(os.environ.get("ICECHUNK_LOG", ""))
    if refused:
        logger.log(max(logging.WARNING, logger.getEffectiveLevel()), "in ICECHUNK_LOG: %s", _complaint(refused))


class _Handler(logging.StreamHandler[TextIO]):
    """A type of our own, so that we find our handler again."""


def set_logs_filter(log_filter_directive: str | None) -> None:
    """Set which log records are written.

    Parameters
    ----------
    log_filter_directive
        A level (``"trace"``, ``"debug"``, ``"info"``, ``"warn"``, ``"error"``, ``"off"``, or 5 to 0), levels of
        modules (``"icechunk_engine.storage=trace"``), or several, separated by commas:
        ``"icechunk.session=debug,warn"``. ``icechunk`` stands for this package. A module without a level writes
        everything. None: the value of ``ICECHUNK_LOG``, else ``"warn"``.

    Warns
    -----
    UserWarning
        Part of the text is not a valid directive. It is ignored; the rest applies.
    """
    if log_filter_directive is not None and not isinstance(log_filter_directive, str):
        raise TypeError(
            f"a filter for log records must be a string such as 'debug', or None, not {log_filter_directive!r}"
        )
    refused = _set_levels(os.environ.get("ICECHUNK_LOG", "") if log_filter_directive is None else log_filter_directive)
    if refused:
        warnings.warn(_complaint(refused), stacklevel=2)


def _complaint(refused: list[str]) -> str:
    parts = ", ".join(repr(part) for part in refused)
    return (
        f"ignoring {parts}: a filter for log records is a level ({', '.join(_LEVELS)}), module=level, or several of "
        f"these, separated by commas"
    )


def _set_levels(text: str) -> list[str]:
    """Set the levels of all our loggers. Returns the parts that are not valid directives."""
    levels, refused = _parse_directives(text)
    for name in [PACKAGE, *logging.root.manager.loggerDict]:
        if name == PACKAGE or name.startswith(PACKAGE + "."):
            logging.getLogger(name).setLevel(levels.get(name, levels[PACKAGE] if name == PACKAGE else logging.NOTSET))
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    return refused


def _parse_directives(text: str) -> tuple[dict[str, int], list[str]]:
    """Return levels by logger name, including that of the package, and the parts that are not valid."""
    found = {PACKAGE: logging.WARNING}
    refused = []
    for part in filter(None, map(str.strip, text.split(","))):
        target, equals, level = (piece.strip() for piece in part.rpartition("="))
        level = _ALIASES.get(level.lower(), level.lower())
        if not equals and level not in _LEVELS and _logger_name(part) is not None:
            target, level = part, "trace"
        if level not in _LEVELS or (equals and not target):
            refused.append(part)
            continue
        name = _logger_name(target) if target else PACKAGE
        if name is not None:  # we do not filter the records of other libraries
            found[name] = _LEVELS[level]
    return found, refused


def _logger_name(target: str) -> str | None:
    """Return our logger for a target, which may use official's name; None for targets of other libraries."""
    head, *rest = target.replace("::", ".").split(".")
    return ".".join([PACKAGE, *rest]) if head in (_OFFICIAL_NAME, PACKAGE) else None


def shutdown_telemetry() -> None:
    """Export the spans that are waiting. Shutting down the tracer provider is up to the application."""
    if _trace is not None and _tracer() is not None:
        flush = getattr(_trace.get_tracer_provider(), "force_flush", None)
        if flush is not None:
            flush()
