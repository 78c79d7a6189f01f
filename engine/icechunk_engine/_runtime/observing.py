"""What happens, told to whoever listens: log records, OpenTelemetry spans, and the trail of an error.

Loggers are named as the modules (``icechunk_engine.session``, …) and say nothing until the application configures
:mod:`logging`, or calls :func:`initialize_logs`. Operations become spans when ``opentelemetry`` is installed; where
spans go is for the application's tracer provider to say. An error of ours carries a note for each operation that it
came through, innermost first.
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
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Protocol

from icechunk_engine.errors import IcechunkError
from icechunk_engine.errors.redaction import redacted

_trace: Any = None
with suppress(Exception):  # an optional dependency, which reads variables of its own from the environment
    _trace = importlib.import_module("opentelemetry.trace")

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
    """Decorator of an operation that users ask for.

    Parameters
    ----------
    describe
        Called with the operation's arguments: what it does, as in "committing to branch 'main' of s3://…". Only called
        when somebody listens or something fails.
    """

    def decorate[**P, R](function: Callable[P, R]) -> Callable[P, R]:
        log = logging.getLogger(function.__module__)
        name = f"icechunk.{function.__name__}"

        @functools.wraps(function)
        def observed(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                if not log.isEnabledFor(logging.DEBUG) and _trace is None:
                    return function(*args, **kwargs)
                with _told(log, name, told(*args, **kwargs)):
                    return function(*args, **kwargs)
            except IcechunkError as error:
                add_step(error, told(*args, **kwargs))
                raise

        def told(*args: P.args, **kwargs: P.kwargs) -> str:
            try:
                return describe(*args, **kwargs)
            except Exception:  # of wrong arguments: the function itself says what is wrong with them
                return function.__name__

        return observed

    return decorate


def add_step(error: IcechunkError, text: str) -> None:
    """Note on an error during which operation it happened, once."""
    note = f"while {redacted(text)}"
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)


@contextmanager
def _told(log: logging.Logger, name: str, text: str) -> Iterator[None]:
    started, text = time.perf_counter(), redacted(text)
    with _span(name, text):
        try:
            yield
        except Exception as error:
            log.debug("%s failed after %.1f ms: %s", text, _ms_since(started), type(error).__name__)
            raise
        log.debug("%s took %.1f ms", text, _ms_since(started))


_SILENCE = nullcontext()


def request(log: logging.Logger, verb: str, key: str) -> AbstractContextManager[None]:
    """Around one request to a storage: tell of it, if anybody listens to single requests."""
    if log.isEnabledFor(TRACE) or (_trace is not None and _trace.get_current_span().is_recording()):
        return _told_request(log, verb, key)
    return _SILENCE


@contextmanager
def _told_request(log: logging.Logger, verb: str, key: str) -> Iterator[None]:
    started = time.perf_counter()
    with _span(f"icechunk.storage.{verb}", key):
        yield
    log.log(TRACE, "%s %s took %.1f ms", verb, key, _ms_since(started))


def bound[**P, R](function: Callable[P, R]) -> Callable[P, R]:
    """The function, run in this thread's context wherever it is called, so that its spans have their parent."""
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


def _tracer() -> Any:
    """OpenTelemetry's tracer for this package; None when there is none."""
    global _trace
    if _trace is None:
        return None
    try:
        return _trace.get_tracer(PACKAGE)
    except Exception:  # a provider that the environment names and nobody installed: data matter more than spans
        logging.getLogger(PACKAGE).warning("no spans are made: OpenTelemetry cannot be used", exc_info=True)
        _trace = None
        return None


# --- switches, with official's names -------------------------------------------------------------------------------


def initialize_logs() -> None:
    """Write log records to standard error, filtered as the environment variable ``ICECHUNK_LOG`` says.

    They go to standard output when ``ICECHUNK_LOG_TO_STDOUT`` is set. Called on import when ``ICECHUNK_LOG`` is set,
    so it never fails: what the variable says and nobody understands is left out, with a record that says so.
    Applications that configure :mod:`logging` themselves need none of this.
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


class _Handler(logging.StreamHandler[Any]):
    """Ours, to be found again."""


def set_logs_filter(log_filter_directive: str | None) -> None:
    """Set which records are made.

    Parameters
    ----------
    log_filter_directive
        A level (``"trace"``, ``"debug"``, ``"info"``, ``"warn"``, ``"error"``, ``"off"``, or 5 to 0), levels of
        modules (``"icechunk_engine.storage=trace"``), or several with commas: ``"icechunk.session=debug,warn"``.
        ``icechunk`` stands for this package; a module without a level tells everything. None: what ``ICECHUNK_LOG``
        says, else ``"warn"``.

    Warns
    -----
    UserWarning
        Part of the text is no such directive. It is left out; the rest holds.
    """
    if log_filter_directive is not None and not isinstance(log_filter_directive, str):
        raise TypeError(f"a filter for log records is a string such as 'debug', or None, not {log_filter_directive!r}")
    refused = _set_levels(os.environ.get("ICECHUNK_LOG", "") if log_filter_directive is None else log_filter_directive)
    if refused:
        warnings.warn(_complaint(refused), stacklevel=2)


def _complaint(refused: list[str]) -> str:
    parts = ", ".join(repr(part) for part in refused)
    return (
        f"ignoring {parts}: a filter for log records is a level ({', '.join(_LEVELS)}), module=level, or several of "
        f"these with commas"
    )


def _set_levels(text: str) -> list[str]:
    """Set the levels of all loggers of ours; returns the parts that are no directives."""
    levels, refused = _parse_directives(text)
    for name in [PACKAGE, *logging.root.manager.loggerDict]:
        if name == PACKAGE or name.startswith(PACKAGE + "."):
            logging.getLogger(name).setLevel(levels.get(name, levels[PACKAGE] if name == PACKAGE else logging.NOTSET))
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    return refused


def _parse_directives(text: str) -> tuple[dict[str, int], list[str]]:
    """Levels by logger name, that of the package always among them, and the parts that were not understood."""
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
        if name is not None:  # other libraries' records are for them to filter
            found[name] = _LEVELS[level]
    return found, refused


def _logger_name(target: str) -> str | None:
    """Logger of ours that a target names, by our module or official's; None for other libraries'."""
    head, *rest = target.replace("::", ".").split(".")
    return ".".join([PACKAGE, *rest]) if head in (_OFFICIAL_NAME, PACKAGE) else None


def shutdown_telemetry() -> None:
    """Send the spans that wait to be exported. The application's tracer provider stays its own to shut down."""
    if _tracer() is not None:
        flush = getattr(_trace.get_tracer_provider(), "force_flush", None)
        if flush is not None:
            flush()
