"""The service that forwards lead to. `python -m benchmarks.load.service` prints its port, and runs until it is ended.

Idle and short connections live in one event loop, so that thousands cost nothing. A connection that asks for more
gets a process of its own, which blocks: no thread of another connection delays it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket

from benchmarks.load.requests import ECHO, HEADER, MESSAGE, SEND, TAKE, TALK, discard, payload, send_bulk

BACKLOG = 4096


class Service:
    """Accepts on one port."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._file = payload()
        self._poll = select.epoll()

    def run(self) -> None:
        """Serve for ever."""
        door = self._listener.fileno()
        self._listener.setblocking(False)
        self._poll.register(door, select.EPOLLIN)
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == door:
                    self._accept()
                else:
                    self._answer(descriptor)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                descriptor = self._listener.accept()[0].detach()
                self._poll.register(descriptor, select.EPOLLIN)

    def _answer(self, descriptor: int) -> None:
        try:
            data = os.read(descriptor, MESSAGE)
            if data and data[:1] == ECHO:
                os.write(descriptor, data)
                return
        except (ConnectionResetError, BrokenPipeError):
            data = b""
        if data:
            self._hand_over(descriptor, data)
        os.close(descriptor)  # epoll forgets it, too

    def _hand_over(self, descriptor: int, data: bytes) -> None:
        """Give the connection to a new process."""
        self._poll.unregister(descriptor)  # closing it here would not: the other process keeps it open
        if os.fork() == 0:
            self._serve_alone(descriptor, data)

    def _serve_alone(self, descriptor: int, data: bytes) -> None:
        """In the new process: keep this connection, and nothing else that is open."""
        code = 1
        try:
            os.dup2(descriptor, 0)
            os.dup2(self._file, 1)
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            with socket.socket(fileno=0) as sock, contextlib.suppress(ConnectionError):
                serve(sock, data, 1)
            code = 0
        finally:
            os._exit(code)


def serve(sock: socket.socket, data: bytes, file: int) -> None:
    """Do what the first bytes of a connection ask for, until its client closes."""
    kind = data[:1]
    if kind == TALK:
        talk(sock, data)
        return
    while len(data) < HEADER.size:
        data += sock.recv(HEADER.size - len(data))
    size = int(HEADER.unpack_from(data)[1])
    if kind == SEND:
        send_bulk(sock, size, file)
    elif kind == TAKE:
        discard(sock, size - (len(data) - HEADER.size))
        sock.sendall(TAKE)
    sock.recv(1)


def talk(sock: socket.socket, data: bytes) -> None:
    """Send everything back, in a loop of two system calls."""
    sock.sendall(data)
    while data := sock.recv(MESSAGE):
        sock.sendall(data)


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel then reaps children by itself
    listener = socket.socket()
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited by what is accepted
    listener.bind(("127.0.0.1", 0))
    listener.listen(BACKLOG)
    print("listening", listener.getsockname()[1], flush=True)
    Service(listener).run()


if __name__ == "__main__":
    main()
