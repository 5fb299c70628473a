"""A port forwarder made of paramiko, as a program: another SSH implementation as the source of forwards.

    paramiko_forward.py '{"endpoint": 2022, "key": "id_alice", "cipher": "aes256-ctr", "rekey_bytes": 3000000,
                          "destinations": [["127.0.0.1", 3000], ["::1", 3001]]}'

It prints JSON, one object a line: {"keys": cipher} after each key exchange, and once it is ready {"ports": [...]}, the
local port for each destination. It keeps the rules of how streams end, which takes some care. Ended by a signal.
"""

from __future__ import annotations

import contextlib
import json
import logging
import selectors
import socket
import struct
import sys
import threading
from typing import Any

import paramiko
from paramiko.common import MSG_CHANNEL_CLOSE, MSG_CHANNEL_DATA, MSG_CHANNEL_EOF, MSG_CHANNEL_WINDOW_ADJUST
from paramiko.message import Message

PIECE = 65536
TIMEOUT = 30
LINGER_RESET = struct.pack("ii", 1, 0)
LINGER_OFF = struct.pack("ii", 0, 0)
TCP_CLOSE_WAIT = 8
"""State of a socket whose peer has ended its direction; the first byte of TCP_INFO (Linux, tcp_states.h)."""
LAST_WORDS = {MSG_CHANNEL_EOF, MSG_CHANNEL_CLOSE}
OF_ONE_CHANNEL = {*LAST_WORDS, MSG_CHANNEL_DATA, MSG_CHANNEL_WINDOW_ADJUST}


def tell(**what: Any) -> None:
    """Print one line for whoever has started this."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


class Connection(paramiko.Transport):
    """paramiko's connection without two faults, each of which loses every channel of a connection.

    Its own thread answers CHANNEL_CLOSE, and in the middle of a key exchange would wait there for itself: what it has to
    say then is put off until the new keys are in use. And while one thread is about to send data, another may send
    CHANNEL_EOF and CHANNEL_CLOSE: data behind those is an error of protocol (RFC 4254 section 5.3), and is dropped.
    """

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._put_off: list[Message] = []
        self._last_words: dict[int, int] = {}

    def _send_user_message(self, data: Message) -> None:
        if threading.current_thread() is self and not self.clear_to_send.is_set():
            self._put_off.append(data)
        else:
            super()._send_user_message(data)  # type: ignore[misc]

    def _parse_newkeys(self, m: Message) -> None:
        super()._parse_newkeys(m)  # type: ignore[misc]
        tell(keys=self.local_cipher)
        waiting, self._put_off = self._put_off, []
        for message in waiting:
            super()._send_user_message(message)  # type: ignore[misc]

    def _send_message(self, data: Message) -> None:
        """For messages of channels, called by one thread at a time."""
        kind, channel = struct.unpack(">BI", data.asbytes()[:5].ljust(5, b"\0"))
        if kind in OF_ONE_CHANNEL:
            last = self._last_words.get(channel)
            if last == MSG_CHANNEL_CLOSE or (last == MSG_CHANNEL_EOF and kind == MSG_CHANNEL_DATA):
                return
            if kind in LAST_WORDS:
                self._last_words[channel] = kind
        super()._send_message(data)  # type: ignore[misc]

    def _parse_channel_open_success(self, m: Message) -> None:
        self._last_words.pop(struct.unpack(">I", m.asbytes()[4:8])[0], None)  # numbers are used again
        super()._parse_channel_open_success(m)  # type: ignore[misc]


class Carried:
    """A connection that came in, and its channel. Its socket resets unless both directions come to a proper end."""

    def __init__(self, connection: Connection, sock: socket.socket, destination: tuple[str, int]) -> None:
        self._connection = connection
        self._sock = sock
        self._destination = destination
        self._down_ended = False
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(self) -> None:
        """Open the channel and carry both directions to their ends."""
        with self._sock, contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            origin = self._sock.getpeername()
            channel = self._connection.open_channel("direct-tcpip", self._destination, origin, timeout=TIMEOUT)
            down = threading.Thread(target=self._carry_down, args=(channel,), daemon=True)
            down.start()
            up_ended = self._carry_up(channel)
            if not up_ended:
                channel.eof_sent = True  # it has not, but so close() sends CHANNEL_CLOSE alone
                channel.close()
            down.join()
            if up_ended and self._down_ended:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_OFF)
            channel.close()

    def _carry_up(self, channel: paramiko.Channel) -> bool:
        """From the socket to the channel; tells whether the stream has ended as it should."""
        try:
            while data := self._sock.recv(PIECE):
                channel.sendall(data)
            if self._end_is_real():
                channel.shutdown_write()
                return True
        except (OSError, EOFError, paramiko.SSHException):
            pass
        return False

    def _carry_down(self, channel: paramiko.Channel) -> None:
        """From the channel to the socket. Unless the stream ends as it should, the other thread is made to stop."""
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            while data := channel.recv(PIECE):
                self._sock.sendall(data)
            if channel.eof_received and self._connection.is_active():
                self._down_ended = True
                self._sock.shutdown(socket.SHUT_WR)
                return
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)

    def _end_is_real(self) -> bool:
        """Whether the end that was read is the peer's: the kernel tells of a reset once, maybe to the other thread.

        Once that one has ended its direction, it hears of nothing any more.
        """
        state: bytes = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        return self._down_ended or state[0] == TCP_CLOSE_WAIT


def connected(endpoint: int, key: str, cipher: str, rekey_bytes: int) -> Connection:
    """Log in at an endpoint on this machine, with a key and the certificate beside it."""
    connection = Connection(socket.create_connection(("127.0.0.1", endpoint), timeout=TIMEOUT))
    connection.get_security_options().ciphers = [cipher]
    connection.packetizer.REKEY_BYTES = rekey_bytes
    connection.start_client(timeout=TIMEOUT)
    credential = paramiko.Ed25519Key.from_private_key_file(key)
    credential.load_certificate(key + "-cert.pub")
    connection.auth_publickey("knot", credential)
    return connection


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    wanted = json.loads(sys.argv[1])
    destinations = wanted.pop("destinations")
    connection = connected(**wanted)
    listening = selectors.DefaultSelector()
    listeners = [socket.create_server(("127.0.0.1", 0), backlog=256) for _ in destinations]
    for listener, destination in zip(listeners, destinations, strict=True):
        listening.register(listener, selectors.EVENT_READ, destination)
    tell(ports=[listener.getsockname()[1] for listener in listeners])
    while connection.is_active():
        for key, _ in listening.select():
            sock, _ = key.fileobj.accept()  # type: ignore[union-attr]
            threading.Thread(target=Carried(connection, sock, key.data).run, daemon=True).start()
    sys.exit("the connection was lost")


if __name__ == "__main__":
    main()
