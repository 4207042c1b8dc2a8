"""`tinykron lesson`: open a copy in the browser, check copies in the terminal, write pages."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from tinykron.backend import current_device
from tinykron.errors import TinykronError
from tinykron.learn.copies import Lesson, begin, find, lessons, reset, state, workplace
from tinykron.support.numbers import option, whole

ACTIONS = "list, check, next, reset, update, export"


def options(parser: argparse.ArgumentParser) -> None:
    """Add what `lesson` takes."""
    parser.add_argument(
        "what", nargs="?", default="0", metavar="N", help=f"a lesson's number (default 0), or {ACTIONS}"
    )
    parser.add_argument(
        "which", nargs="?", help="of check, reset, update: a lesson's number; of export: the folder to make"
    )
    parser.add_argument("--folder", metavar="DIR", help="of your copies (default: my_lessons in your home folder)")
    parser.add_argument("--headless", action="store_true", help="open no browser; print the address")
    parser.add_argument(
        "-p",
        "--port",
        type=option(whole, least=1, most=65535),
        metavar="P",
        help="of the page (default: a free one from 2718 on)",
    )


def run(options: argparse.Namespace) -> int:
    """Run `lesson`: exit code 1 where `check` found something that is not done."""
    if importlib.util.find_spec("marimo") is None:
        raise TinykronError('the lessons need marimo, which is not installed: pip install "tinykron[lessons]"')
    what, which = options.what, options.which
    if what == "export":
        return _export(which, options.json)
    folder = workplace(options.folder)
    if what == "list":
        return _list(folder, options.json)
    if what == "check":
        return _check(folder, which, options.json)
    if what == "next":
        left = next((lesson for lesson in lessons() if not state(lesson, folder).done), None)
        if left is None:
            print("all lessons are done")
            return 0
        return _open(left, folder, options)
    if what in ("reset", "update"):
        if which is None:
            raise TinykronError(f"lesson {what}: expected a lesson's number")
        print("\n".join(reset(_numbered(which), folder, keep_answers=what == "update")))
        return 0
    if which is not None:
        raise TinykronError(f"lesson: found {what!r}, expected one of {ACTIONS} before {which!r}")
    return _open(_numbered(what), folder, options)


def _numbered(text: str) -> Lesson:
    if not text.isdigit():
        raise TinykronError(f"lesson: found {text!r}, expected a number or one of {ACTIONS}")
    return find(int(text))


def _export(folder: str | None, as_json: bool) -> int:
    from tinykron.learn import pages

    if folder is None:
        raise TinykronError("lesson export: expected the folder to make")
    written = [str(path) for path in pages.export(folder)]
    print(json.dumps(written) if as_json else f"{len(written) - 1} lessons: {written[0]}")
    return 0


def _open(lesson: Lesson, folder: Path, options: argparse.Namespace) -> int:
    copy, said = begin(lesson, folder)
    print("\n".join(said), flush=True)
    command = [sys.executable, "-m", "marimo", "edit", copy.name, "--watch", "--skip-update-check"]
    command += ["--headless"] if options.headless else []
    command += ["--port", str(options.port)] if options.port else []
    server = subprocess.Popen(command, cwd=folder, env={**os.environ, "TINYKRON_DEVICE": current_device()})
    while True:
        try:
            return server.wait()
        except KeyboardInterrupt:  # it has heard it too, and asks whether to stop
            continue


def _list(folder: Path, as_json: bool) -> int:
    states = [state(lesson, folder) for lesson in lessons()]
    if as_json:
        print(json.dumps([asdict(found) for found in states], indent=2))
        return 0
    for found in states:
        print(f"{found.number:3}  {found.state:12} {found.title}")
    print(f"your copies: {folder}")
    return 0


def _check(folder: Path, number: str | None, as_json: bool) -> int:
    if number is None:
        states = [state(lesson, folder) for lesson in lessons() if lesson.copy_in(folder).exists()]
    else:
        states = [state(_numbered(number), folder)]
    if as_json:
        print(json.dumps([asdict(found) for found in states], indent=2))
    elif not states:
        print(f"no lesson has been started in {folder}: `tinykron lesson` opens the first")
    else:
        for found in states:
            print(f"{found.number:3}  {found.state:12} {found.title}")
            for one in found.checks:
                print(f"     {one['state']:6} {one['name']}: {one['message']}")
    return 0 if states and all(found.done for found in states) else 1
