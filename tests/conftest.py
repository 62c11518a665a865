"""Makes the project's modules importable from any folder, and runs the program in this process."""

import itertools
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import pytest
import torch

import main
from meta import Meta

os.environ.pop("OMP_NUM_THREADS", None)  # so that the program takes one thread, in this process and in others
torch.set_num_threads(1)


def pytest_configure(config):
    # Of PyTorch's own, at the first use of its compiler.
    config.addinivalue_line("filterwarnings", "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")


class Output(NamedTuple):
    code: int
    out: list[str]  # lines
    err: list[str]

    @property
    def refusal(self) -> str:
        """The one line that is all there is on stderr when the program exits with 2."""
        assert self.code == 2
        (line,) = self.err
        assert line.startswith("main.py: ")
        return line


@pytest.fixture
def program(tmp_path, monkeypatch, capsys) -> Callable[..., Output]:
    """The command line in a folder of its own: `program("--epochs", "12")` or `program("--epochs 12")` -> Output.

    Validation comes every 5 iterations, so that 12 of them make a whole run. With `interrupt_at=7` the signal
    `number` arrives during iteration 7 of the call; with 0, before the first one.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "VALIDATE_EVERY", 5)
    monkeypatch.setattr(main, "VALIDATION_TASKS", 20)
    monkeypatch.setattr(main, "TEST_TASKS", 50)

    def call(*words: str, interrupt_at: int | None = None, number: int = signal.SIGINT) -> Output:
        count, step, tqdm = itertools.count(1), Meta.__call__, main.tqdm

        def counted_step(meta, *batch):
            if next(count) == interrupt_at:
                signal.raise_signal(number)
            return step(meta, *batch)

        def signalled_tqdm(*args, **kwargs):
            signal.raise_signal(number)
            return tqdm(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(Meta, "__call__", counted_step)
            if interrupt_at == 0:
                patch.setattr(main, "tqdm", signalled_tqdm)
            try:
                main.main(shlex.split(words[0]) if len(words) == 1 else words)
                code = 0
            except SystemExit as end:
                code = end.code
        captured = capsys.readouterr()
        return Output(code, captured.out.splitlines(), captured.err.splitlines())

    return call


@pytest.fixture
def follow(program) -> Callable[..., Output]:
    """Runs a command that the program printed: `follow("python3 main.py --test")` -> Output."""

    def call(command: str, **options) -> Output:
        python, script, *words = shlex.split(command)
        assert python == sys.orig_argv[0]
        assert os.path.samefile(script, main.__file__)
        return program(shlex.join(words), **options)

    return call
