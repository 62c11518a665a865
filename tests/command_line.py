"""Runs main.py as its user does: a process of its own, in a folder of its own."""

import subprocess
import sys
from pathlib import Path

MAIN = Path(__file__).parent.parent / "main.py"


def start(folder: Path, *arguments: str, **options) -> subprocess.Popen:
    """`python3 main.py` with these arguments, left running in `folder`."""
    return subprocess.Popen(
        [sys.executable, str(MAIN), *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        **options,
    )


def run(folder: Path, *arguments: str, **options) -> subprocess.CompletedProcess:
    """`python3 main.py` with these arguments, to its end."""
    process = start(folder, *arguments, **options)
    stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
