"""Runs main.py as its user does: a process of its own, in a folder of its own.

That takes two seconds a time: most tests call the program in their own process (see `program` in conftest.py).
"""

import subprocess
import sys
from pathlib import Path

MAIN = Path(__file__).parent.parent / "main.py"


def start(folder: Path, *arguments: str, command: tuple[str, ...] = (sys.executable, str(MAIN)), **options):
    """`python3 main.py` with these arguments, left running in `folder`."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    return subprocess.Popen([*command, *arguments], cwd=folder, **pipes, **options)


def run(folder: Path, *arguments: str, **options) -> subprocess.CompletedProcess:
    """`python3 main.py` with these arguments, to its end."""
    process = start(folder, *arguments, **options)
    stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
