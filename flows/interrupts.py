"""Ctrl-C in a flow that a person started: the flow ends in order, and whatever fails on the way out is no error."""

import logging
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.settings import get_current_settings


@contextmanager
def noticed() -> Iterator[threading.Event]:
    """An event that is set once Ctrl-C was pressed.

    The interrupt may come out as another exception: a library that is called back hides it behind one of its own.
    """
    pressed = threading.Event()

    def note(number: int, frame: Any) -> None:
        pressed.set()
        for handler in handlers:
            handler.addFilter(_without_traceback)
        signal.default_int_handler(number, frame)

    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers, and is interrupted
        yield pressed
        return
    handlers = _handlers_of_prefect()
    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
        for handler in handlers:
            handler.removeFilter(_without_traceback)


def _handlers_of_prefect() -> list[logging.Handler]:
    loggers = (logging.getLogger(name) for name in logging.root.manager.loggerDict if name.split(".")[0] == "prefect")
    return list({id(handler): handler for logger in loggers for handler in logger.handlers}.values())


def _without_traceback(record: logging.LogRecord) -> bool:
    """What Prefect says of the interrupt stays; the traceback of whatever it hit says nothing to a person."""
    record.exc_info = record.exc_text = None
    return True


@contextmanager
def server_spared() -> Iterator[None]:
    """Prefect's temporary server, if it is started inside, does not hear Ctrl-C.

    A terminal sends it to every process of the command, and without its server a flow tries for minutes to report that
    it was interrupted. A process inherits which signals are blocked; the server ends with the flow, by another one.
    """
    if get_current_settings().api.url:  # a server is there, and importing the other takes seconds
        yield
        return
    from prefect.server.api.server import SubprocessASGIServer

    start = SubprocessASGIServer._run_uvicorn_command

    def deaf(server: "SubprocessASGIServer") -> "subprocess.Popen[Any]":
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            return start(server)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    SubprocessASGIServer._run_uvicorn_command = deaf  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        SubprocessASGIServer._run_uvicorn_command = start  # type: ignore[method-assign]
