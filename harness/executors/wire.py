"""What the process that hands out work and its workers say to each other: messages, and a job as bytes."""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import socket
import threading
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from harness.job import Job
from harness.records.tracking import Tracking
from harness.subject.load import ModelConfig, ResolvedModel, resolve

Message = tuple[Any, ...]
"""A word that says what it is, and what belongs to it. Nobody without the key of the connection can send one."""

_IDLE_SECONDS, _PROBE_SECONDS, _PROBES = 30, 10, 3


class Wire:
    """Messages to and from one other process, which may be sent from any thread.

    Args:
        connection: both sides have proved that they know the key.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection, self._sending = connection, threading.Lock()
        _ask_for_signs_of_life(connection)

    def send(self, *message: Any) -> None:
        """Send a message; OSError if the other side is gone."""
        # Not the connection's own pickling: PyTorch has it hand over tensors through memory that machines do not share.
        content = pickle.dumps(message)
        with self._sending:
            self._connection.send_bytes(content)

    def receive(self) -> Message:
        """Wait for the next message; EOFError or OSError if the other side is gone."""
        return pickle.loads(self._connection.recv_bytes())

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


def _ask_for_signs_of_life(connection: Connection) -> None:
    """Have the system notice within a minute that the other machine is gone: a lost machine does not say good-bye."""
    with socket.socket(fileno=os.dup(connection.fileno())) as shared:
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        limits = {"TCP_KEEPIDLE": _IDLE_SECONDS, "TCP_KEEPINTVL": _PROBE_SECONDS, "TCP_KEEPCNT": _PROBES}
        for option, value in limits.items():
            if hasattr(socket, option):  # not every system has names for all of them
                shared.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def packed(job: Job) -> bytes:
    """A job as bytes for workers, which find its model themselves."""
    stream = io.BytesIO()
    _JobPickler(stream, pickle.HIGHEST_PROTOCOL).dump(_plain(job))
    return stream.getvalue()


def unpacked(content: bytes) -> Job:
    """The job, with its model as this machine knows it.

    Raises:
        RuntimeError: this machine has another model under that name, or a device of another kind.
    """
    return _JobUnpickler(io.BytesIO(content)).load()


def _plain(job: Job) -> Job:
    """The job without what a worker has no use for and what cannot be sent."""
    scoring = dataclasses.replace(job.scoring, find_subject=partial(_itself, job.scoring.find_subject()))
    chosen_by = None if job.chosen_by is None else _plain(job.chosen_by)
    return dataclasses.replace(job, scoring=scoring, chosen_by=chosen_by, tracking=Tracking())


def _itself(model: ResolvedModel) -> ResolvedModel:
    return model


class _JobPickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        """Models travel by name: where their files lie may differ between machines."""
        return (obj.config, obj.identity, obj.device.type) if isinstance(obj, ResolvedModel) else None


class _JobUnpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self._models: dict[str, ResolvedModel] = {}

    def persistent_load(self, pid: tuple[ModelConfig, str, str]) -> ResolvedModel:
        """The model that this machine has under the name, looked for once."""
        if repr(pid) not in self._models:
            self._models[repr(pid)] = self._resolved(*pid)
        return self._models[repr(pid)]

    def _resolved(self, config: ModelConfig, identity: str, kind: str) -> ResolvedModel:
        own = resolve(config)
        if own.identity != identity:
            raise RuntimeError(f"model {config.label} is {own.identity} on {socket.gethostname()}, not {identity}")
        if own.device.type != kind:
            raise RuntimeError(f"the worker on {socket.gethostname()} would use {own.device.type}, not {kind}")
        return own
