"""Where the files for stock ssh lie.

OpenSSH itself reads `~/.ssh/config` in the home folder that the passwd entry names, and ignores $HOME (ssh.c, `pw_dir`). Here
$HOME decides, as for every other command; where the two differ, `unread_home` says what ssh reads instead.
"""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from knot_ssh.errors import KnotError


@dataclass(frozen=True, slots=True)
class Places:
    """The files of one person, below their home folder."""

    home: Path

    @classmethod
    def here(cls) -> Places:
        """Those of whoever runs this; raises KnotError for a home folder that is another user's, as under `sudo -E`."""
        if not os.path.isabs(os.environ.get("HOME", "/")):
            raise KnotError("HOME is not an absolute path: set it to your home folder")
        try:
            home = Path(os.path.abspath(Path.home()))
            owner = home.stat().st_uid
        except RuntimeError:
            raise KnotError("there is no home folder: set HOME") from None
        except OSError as error:
            raise KnotError(f"cannot use the home folder {error.filename}: {error.strerror}") from None
        if owner != os.geteuid():
            raise KnotError(f"the home folder {home} belongs to another user (uid {owner}); run this as that user")
        return cls(home)

    @property
    def ssh_folder(self) -> Path:
        return self.home / ".ssh"

    @property
    def user_config(self) -> Path:
        """What ssh reads first; the only file here that is not ours."""
        return self.ssh_folder / "config"

    @property
    def folder(self) -> Path:
        return self.ssh_folder / "knot"

    @property
    def key(self) -> Path:
        """The private key, unless the person named one of their own."""
        return self.folder / "id_ed25519"

    @property
    def certificate(self) -> Path:
        return self.folder / "id-cert.pub"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    @property
    def ssh_config(self) -> Path:
        return self.folder / "ssh_config"

    @property
    def spaces(self) -> Path:
        """A stanza for each space, included by `ssh_config`."""
        return self.folder / "spaces"

    @property
    def krl(self) -> Path:
        """What is revoked (PROTOCOL.krl), where the server can say it; ssh refuses every host when a named one is missing."""
        return self.folder / "krl"

    @property
    def state(self) -> Path:
        return self.folder / "state.json"

    @property
    def failed(self) -> Path:
        """Empty; its time is that of the last refresh that failed."""
        return self.folder / "failed"

    @property
    def lock(self) -> Path:
        return self.folder / "lock"

    @property
    def pieces(self) -> tuple[Path, ...]:
        """What ssh cannot do without."""
        return self.certificate, self.known_hosts, self.ssh_config, self.spaces

    @property
    def unread_home(self) -> Path | None:
        """The home folder that ssh reads instead of this one; None where they are the same, or nobody knows."""
        try:
            entry = Path(pwd.getpwuid(os.getuid()).pw_dir)
            return None if entry.samefile(self.home) else entry
        except (KeyError, OSError):
            return None


def public_half(key: Path) -> Path:
    """The file of the public key that goes with a private key's."""
    return key.with_name(key.name + ".pub")
