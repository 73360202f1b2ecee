"""The command `mmref`: one module per command, each loaded only when it is needed.

A command module has two functions, add_arguments(parser) and run(args) -> exit status. Errors of use and input
(MmrefError, a file that cannot be opened) become one line on stderr and status 2; Ctrl-C gives 130; a closed pipe
ends quietly.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module

# name of the command and its module: help line, which stands here so that `mmref --help` loads no command
COMMANDS = {
    "classify": "what is in a picture",
    "detect": "objects in pictures: boxes, labels and, of some networks, masks",
    "segment": "what every pixel of a picture shows",
    "models": "the networks and their weights",
    "info": "a network's layers, shapes, parameters and multiply-adds",
    "convert": "a PyTorch checkpoint to safetensors, without PyTorch",
    "weights": "list, fetch and verify published weights",
    "eval": "accuracy over a folder of pictures",
    "bench": "our backends beside other runtimes, in turn",
    "export": "write the network as an ONNX graph",
    "trace": "every activation of a run, to a file",
    "compare": "two traces: the first layer that differs, and why",
    "check": "a Python callable against the network, on inputs that break things",
    "selftest": "the published figures on this machine",
    "show": "pictures of what happens inside",
    "explain": "a run as a page that one can walk through",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status (and never raises for what a user can cause)."""
    from mmref.cli.output import Nowhere, drop, prepare_streams
    from mmref.errors import MmrefError
    prepare_streams()
    argv = sys.argv[1:] if argv is None else argv
    try:
        args = _parser(argv).parse_args(argv)
        status = args.run(args)
        sys.stdout.flush()
        if isinstance(sys.stdout, Nowhere) and sys.stdout.used:
            return _fail("standard output is closed: what was to be printed is lost")
        return status or 0
    except MmrefError as error:
        return _fail(error)
    except BrokenPipeError:  # the reader went away (| head); Python would complain again at exit
        drop(sys.stdout)
        return 0
    except OSError as error:
        name = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        return _fail(f"{name}{error.strerror or error}")
    except MemoryError:
        return _fail("not enough memory for this")
    except KeyboardInterrupt:
        return 130


def _fail(error) -> int:
    from mmref.cli.output import say
    say(f"mmref: error: {error}", sys.stderr)
    return 2


class _Parser(argparse.ArgumentParser):
    def error(self, message):  # one line, as for any other error; it repeats what was typed
        from mmref.text import printable
        self.exit(2, f"mmref: error: {printable(message)} ({self.prog} --help says what can be given)\n")


def _parser(argv):
    from mmref import __version__
    parser = _Parser("mmref", description="MobileMamba without a deep-learning framework.")
    parser.add_argument("--version", action="version", version=f"mmref {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    wanted = argv[0] if argv else None
    for name, help_line in COMMANDS.items():
        command = commands.add_parser(name, help=help_line, description=f"mmref {name}: {help_line}.")
        if name == wanted:
            module = import_module(f"mmref.cli.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser
