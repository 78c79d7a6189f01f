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
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Protocol

from icechunk_engine.errors import IcechunkError, InvalidInputError

_trace: Any = None
with suppress(ImportError):  # an optional dependency
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
                with _told(log, name, describe(*args, **kwargs)):
                    return function(*args, **kwargs)
            except IcechunkError as error:
                add_step(error, describe(*args, **kwargs))
                raise

        return observed

    return decorate


def add_step(error: IcechunkError, text: str) -> None:
    """Note on an error during which operation it happened, once."""
    note = f"while {text}"
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)


@contextmanager
def _told(log: logging.Logger, name: str, text: str) -> Iterator[None]:
    started = time.perf_counter()
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
    if _trace is None:
        yield
        return
    with _trace.get_tracer(PACKAGE).start_as_current_span(name, attributes={"icechunk.what": text}):
        yield


# --- switches, with official's names -------------------------------------------------------------------------------


def initialize_logs() -> None:
    """Write log records to standard error, filtered as the environment variable ``ICECHUNK_LOG`` says.

    They go to standard output when ``ICECHUNK_LOG_TO_STDOUT`` is set. Called on import when ``ICECHUNK_LOG`` is set.
    Applications that configure :mod:`logging` themselves need none of this.

    Raises
    ------
    InvalidInputError
        The variable holds no directive, see :func:`set_logs_filter`.
    """
    logger = logging.getLogger(PACKAGE)
    if not any(isinstance(handler, _Handler) for handler in logger.handlers):
        handler = _Handler(sys.stdout if "ICECHUNK_LOG_TO_STDOUT" in os.environ else sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
    set_logs_filter(None)


class _Handler(logging.StreamHandler[Any]):
    """Ours, to be found again."""


def set_logs_filter(log_filter_directive: str | None) -> None:
    """Set which records are made.

    Parameters
    ----------
    log_filter_directive
        A level (``"trace"``, ``"debug"``, ``"info"``, ``"warn"``, ``"error"``, ``"off"``), levels of modules
        (``"icechunk_engine.storage=trace"``), or several with commas: ``"icechunk.session=debug,warn"``. ``icechunk``
        stands for this package. None: what ``ICECHUNK_LOG`` says, else ``"warn"``.

    Raises
    ------
    InvalidInputError
        No such directive; nothing was changed.
    """
    text = log_filter_directive if log_filter_directive is not None else os.environ.get("ICECHUNK_LOG", "")
    levels = _parse_directive(text or "warn")
    for name in [PACKAGE, *logging.root.manager.loggerDict]:
        if name == PACKAGE or name.startswith(PACKAGE + "."):
            logging.getLogger(name).setLevel(levels.get(name, levels[PACKAGE] if name == PACKAGE else logging.NOTSET))
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def _parse_directive(text: str) -> dict[str, int]:
    """Levels by logger name; that of the package is always there."""
    found = {PACKAGE: logging.WARNING}
    for part in text.split(","):
        target, equals, level = (piece.strip() for piece in part.rpartition("="))
        if level.lower() not in _LEVELS or (equals and not target):
            raise InvalidInputError(
                f"{text!r} is no filter for log records: write a level ({', '.join(_LEVELS)}), module=level, or "
                f"several of these with commas"
            )
        name = target.replace("::", ".")
        if name in ("", _OFFICIAL_NAME):
            name = PACKAGE
        elif name.startswith(_OFFICIAL_NAME + "."):
            name = PACKAGE + name[len(_OFFICIAL_NAME) :]
        if name == PACKAGE or name.startswith(PACKAGE + "."):  # other libraries' records are for them to filter
            found[name] = _LEVELS[level.lower()]
    return found


def shutdown_telemetry() -> None:
    """Send the spans that wait to be exported. The application's tracer provider stays its own to shut down."""
    if _trace is not None:
        flush = getattr(_trace.get_tracer_provider(), "force_flush", None)
        if flush is not None:
            flush()
