"""Entry of the `knot` command: finds command groups by entry point, and turns errors into one line and an exit code."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

import click

from knot_ssh import __version__
from knot_ssh.cli.connection import server_options
from knot_ssh.errors import EXIT_FAILED, KnotError

GROUP = "knot.commands"
EXIT_INTERRUPTED = 130


class Commands(click.Group):
    """Command groups of the installed components, each loaded only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(point.name for point in entry_points(group=GROUP))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for point in entry_points(group=GROUP, name=cmd_name):
            command: click.Command = point.load()
            return command
        return None


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="knot %(version)s")
@server_options
def knot() -> None:
    """Private port forwarding between development spaces."""


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 `--dry-run` would change something."""
    try:
        knot.main(prog_name="knot", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "knot"
        _fail(f"{error.format_message().rstrip('.')} (see `{where} --help`)", error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except KnotError as error:
        _fail(str(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    except OSError as error:
        _fail(str(error), EXIT_FAILED)


def _fail(message: str, code: int) -> None:
    click.echo(f"knot: {' '.join(message.split())}", err=True)
    sys.exit(code)
