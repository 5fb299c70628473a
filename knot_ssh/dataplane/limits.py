"""Every bound of the data path, with its unit and its reason. The ones in `Limits` can be set."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB

PACKET = 256 * KIB
"""Bytes of data that one packet may hold towards us, where we decrypt in place: the larger, the fewer calls a byte."""
PLAIN_PACKET = 32 * KIB
"""The same where asyncssh decrypts, which gets slower with size. Everybody must take this much (RFC 4253 section 6.1)."""
PACKET_MIN = 256
"""Bytes a peer must be willing to take in one packet; less would have us do more framing than forwarding."""

BUFFER = 512 * KIB
"""Bytes of a pooled buffer: holds a packet of the largest size, and still fits a processor's second-level cache."""
SPARE_BUFFERS = 8
"""Buffers that are kept for reuse; more are given back to the system."""
PLENTY = 32
"""Buffers in use; beyond, peers that read slowly or send half a packet are given less."""
SMALL_BUFFER = 64 * KIB
"""Bytes of what a connection then sends from."""
FRAGMENT = 4 * KIB
"""Bytes; the beginning of a packet of up to this size never holds a buffer."""

SMALL = 4 * KIB
"""Bytes; a read of less counts as one step of a conversation, which goes before bulk data."""
POLITE_CHUNK = 32 * KIB
"""Bytes of bulk data that are passed on at a time while there is such conversation on the same connection."""
POLITE_TURN = 64 * KIB
"""Bytes of bulk data that leave together then: a reply waits for no more than this."""
POLITE_SECONDS = 0.01
"""How long a connection stays polite after the last small read."""

TINY = 128
"""Bytes; a packet with less data counts against `small_packets`: it costs as much to handle as a large one."""
TINY_A_LOOK = 64
"""Such packets between two looks at how many there are: to look costs a tenth of what a round trip does."""
COSTLY = 50
"""Small packets that a request counts as, or a message for debugging: what asyncssh handles takes up to 50 times as long."""
OPEN_BURST_SECONDS = 5
"""How many seconds' worth of channels may be asked for at once: 5,000 connections through one forward, and as many again."""
TURN = 0.001
"""Seconds of work for one connection before others get their turn."""
ANSWER_TIMEOUT = 20
"""Seconds for a peer to open a channel or refuse it: twice what it may take to dial a service."""
PACKETS_A_LOOK = 8
"""Packets between two looks at the clock."""
PACKETS_A_CHUNK = 32
"""Packets that one chunk may be cut into for a peer that takes small ones."""
CHANNELS_A_TURN = 100
"""Channels of a lost connection that are ended before others get their turn."""

BACKLOG = 4 * MIB
"""Bytes of answers that wait for a peer that does not read them; beyond, it is given up."""
BACKLOG_ALL = 32 * MIB
"""The same of all peers together; beyond, the one that is furthest behind is given up."""

WINDOW = 2 * MIB
"""Bytes that a peer may send on a new channel before we have passed them on (RFC 4254 section 5.2)."""
WINDOW_FLOOR = 32 * KIB
"""The same where memory is short: one packet of the size that everybody takes."""
WINDOW_MAX = 64 * MIB
"""What a window may grow to where the distance to the peer is what limits."""
WINDOW_MAX_OPENSSH = 15 * MIB
"""The same towards OpenSSH, whose sender does badly beyond 16 MiB."""
SEND_WINDOW_MAX = 2**32 - 1
"""RFC 4254 section 5.2."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds that may be set."""

    in_flight: int = 64 * MIB
    """Bytes that all peers together may make this process hold: the sum of the windows they have been granted."""
    channels: int = 10_000
    """Open channels of one connection."""
    small_packets: int = 100_000
    """Packets a second with hardly any data in them that one connection may send; beyond, it is read more slowly."""
    opens: int = 2_000
    """Channels a second that one peer may ask for, OPEN_BURST_SECONDS' worth at once; beyond, it is read more slowly. One
    takes a fifth of a millisecond."""
    peer_channels: int = 20_000
    """Open channels of one peer, on all its connections: while one is drained the next one has taken over."""
    peer_connections: int = 256
    """Connections of one peer that has logged in: as many as one owner may have relayed."""
