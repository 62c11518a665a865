"""What several tests need: the program in a folder of its own, in this process or in another."""

import io
import itertools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import pytest
import torch

import main
from meta import Meta
from net import Net

ROOT = Path(main.__file__).parent

os.environ.pop("OMP_NUM_THREADS", None)  # so that the program takes one thread, in any process
torch.set_num_threads(1)

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")


def pytest_configure(config):
    # Of PyTorch's own, at the first use of its compiler.
    warning = "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"
    config.addinivalue_line("filterwarnings", warning)


@pytest.fixture(autouse=True)
def seed():
    """Random weights of a test are the same, whatever ran before it."""
    torch.manual_seed(0)


class Output(NamedTuple):
    code: int
    out: list[str]  # lines
    err: list[str]

    @property
    def refusal(self) -> str:
        """What is said on stderr at exit code 2: one line, or the last after the usage."""
        assert self.code == 2
        assert self.err[0].startswith("usage: main.py ") or len(self.err) == 1
        assert self.err[-1].startswith("main.py: ")
        return self.err[-1]


@pytest.fixture
def program(tmp_path, monkeypatch, capsys) -> Callable[..., Output]:
    """The command line in this process and in a folder of its own: `program("--epochs 12")`.

    There is a validation after every 5 iterations, so that 12 of them make a whole run, and a
    checkpoint after every one. With `interrupt_at=7`, Ctrl-C comes in iteration 7 of the call: the
    checkpoint is that of 6. It runs on the CPU, because a GPU rounds otherwise.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    monkeypatch.setattr(main, "VALIDATE_EVERY", 5)
    monkeypatch.setattr(main, "VALIDATION_TASKS", 20)
    monkeypatch.setattr(main, "TEST_TASKS", 50)
    monkeypatch.setattr(main, "CHECKPOINT_EVERY", -1)

    def call(*words: str, interrupt_at: int | None = None) -> Output:
        count, step = itertools.count(1), Meta.__call__

        def interrupted_step(meta, *batch):
            if next(count) == interrupt_at:
                raise KeyboardInterrupt
            return step(meta, *batch)

        with monkeypatch.context() as patch:
            patch.setattr(Meta, "__call__", interrupted_step)
            try:
                main.main(shlex.split(words[0]) if len(words) == 1 else words)
                code = 0
            except SystemExit as end:
                code = end.code
        captured = capsys.readouterr()
        return Output(code, captured.out.splitlines(), captured.err.splitlines())

    return call


def start(folder: Path, *arguments: str, command: tuple[str, ...] = (), **options):
    """`python3 main.py` with these arguments in a process of its own, left running in `folder`.

    It takes two seconds to start: most tests call the program in their own process.
    """
    command = command or (sys.executable, str(ROOT / "main.py"))
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.Popen([*command, *arguments], cwd=folder, **options)


def run(folder: Path, *arguments: str, **options) -> Output:
    """`python3 main.py` with these arguments in a process of its own, to its end."""
    process = start(folder, *arguments, **options)
    out, err = process.communicate()
    return Output(process.returncode, out.splitlines(), err.splitlines())


def contents(folder: Path | str = ".") -> dict[str, bytes]:
    """All files in a folder: their paths and what is in them."""
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def leave_only(files: dict[str, bytes | None]) -> None:
    """Make these the only files here. One without content is a folder."""
    for path in contents():
        os.remove(path)
    for path, content in files.items():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).mkdir() if content is None else Path(path).write_bytes(content)


def saved(content: object) -> bytes:
    """What `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def make_weights(path: Path | str, scale: float = 1.0) -> None:
    """A file of weights that nobody trained."""
    Path(path).parent.mkdir(exist_ok=True)
    weights = {name: scale * w for name, w in Net().state_dict().items()}
    Path(path).write_bytes(saved(weights))
