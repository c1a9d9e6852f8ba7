"""The command ``hivefs``: finds the command's file, runs it, and turns every ending into a sentence and an exit code.

Commands are loaded when they are called, so that ``hivefs --help`` and commands that need no network stay quick. Exit
codes are those of errors.py (docs/exit-codes.md); 2 is a mistake in the command line, as click has it.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

import click

from hivefs.cli.lazy import LazyGroup
from hivefs.errors import HivefsError, Interrupted, first_of

CLOSED_PIPE = 141
"""As a shell tells of a process that SIGPIPE ended."""

COMMANDS = {
    "init": "Make a vault: recovery phrase, password, a place in a hive.",
    "join": "Make a vault by an invitation to a hive.",
    "invite": "Invite clients or nodes to a hive of yours.",
    "recover": "Bring a vault back on a machine that has nothing.",
    "mount": "Mount the drive.",
    "umount": "Unmount the drive.",
    "status": "Show the drive, the engine, the nodes and what is safe.",
    "wait": "Wait until everything below some paths is safe.",
    "check": "Check the whole vault against the hive.",
    "policy": "Say who may hold your data, see it proved, and try what if.",
    "placement": "Show which nodes hold what is at a path.",
    "ledger": "Show what nodes hold by their receipts, and what the vault contributes.",
    "up": "Start the embedded hive (and mount a drive in it).",
    "down": "Stop the embedded hive.",
    "hive": "Make a hive of your own.",
    "node": "Make and run a storage node.",
    "nodes": "Show the nodes, and what is known of each with what evidence.",
    "trust": "Say who may vouch for nodes.",
    "attest": "Vouch for what a node is.",
    "dht": "Experimental: find nodes that changed their address.",
    "relay": "Experimental: reach a node that nobody can dial.",
    "version": "Show the version.",
}


@click.command(
    cls=LazyGroup, summaries=COMMANDS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
def hivefs() -> None:
    """HiveFS: an encrypted, erasure-coded drive over many nodes that no single authority controls.

    Where things are: HIVEFS_HOME holds a vault's state on this machine, HIVEFS_HIVE the embedded hive.
    """


def main() -> None:
    """Run the command of sys.argv and exit."""
    sys.excepthook = _unexpected
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # while it ended
        code = _say(Interrupted())
    sys.exit(code if _flushed() else CLOSED_PIPE)


def run(arguments: list[str]) -> int:
    """The exit code of the command. Mistakes of the user and errors of the catalogue end here, and so does that nobody
    reads what is said any more, as with "| head".
    """
    before = sys.stdout
    try:
        return _run(arguments)
    except BrokenPipeError:
        return CLOSED_PIPE
    except SystemExit as end:  # so answers rich a closed pipe, and click, which replaces both streams then
        if sys.stdout is not before or isinstance(end.__context__, BrokenPipeError):
            return CLOSED_PIPE
        raise


def _flushed() -> bool:
    """Write what is still to be written; False when nobody reads it. Python would complain of that at its end."""
    whole = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            whole = False
            nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
    return whole


def _run(arguments: list[str]) -> int:
    try:
        result = hivefs.main(arguments, prog_name="hivefs", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.Abort:
        return _say(Interrupted())
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except HivefsError as error:
        return _say(error)
    except KeyboardInterrupt:
        return _say(Interrupted())
    except BaseExceptionGroup as group:
        if group.split(BrokenPipeError)[1] is None:
            raise BrokenPipeError from group
        found = first_of(group, HivefsError, KeyboardInterrupt)
        if found is None:
            raise
        return _say(found if isinstance(found, HivefsError) else Interrupted())


def _say(error: HivefsError) -> int:
    from hivefs.cli.output import plain

    click.echo(f"hivefs: {plain(str(error))}", err=True)  # it may repeat what others said
    return error.exit_code


def _unexpected(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> Any:
    """One sentence for the user; the traceback goes to a log. Python exits with 1 afterwards, or as by Ctrl-C."""
    if issubclass(kind, KeyboardInterrupt):
        _say(Interrupted())
        return
    from hivefs.daemon.home import default_home

    run_dir = default_home() / "run"
    log = (run_dir if run_dir.is_dir() else Path.home()) / ("cli.log" if run_dir.is_dir() else ".hivefs-cli.log")
    text = "".join(traceback.format_exception(kind, error, where))
    try:
        with log.open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} unexpected {kind.__name__}\n{text}\n")
        log.chmod(0o600)
    except OSError:
        click.echo(f"hivefs: unexpected {kind.__name__}; no log could be written to {log}.", err=True)
        return
    click.echo(f"hivefs: this is a mistake in HiveFS ({kind.__name__}); details are in {log}.", err=True)
