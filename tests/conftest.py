"""Makes the project's modules importable from any folder, and runs the program in this process."""

import itertools
import os
import shlex
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
        """The sentence on stderr when the program exits with 2: its only line, or the last after the usage."""
        assert self.code == 2
        assert self.err[0].startswith("usage: main.py ") or len(self.err) == 1
        assert self.err[-1].startswith("main.py: ")
        return self.err[-1]


@pytest.fixture
def program(tmp_path, monkeypatch, capsys) -> Callable[..., Output]:
    """The command line in a folder of its own: `program("--epochs", "12")` or `program("--epochs 12")` -> Output.

    There is a validation after every 5 iterations, so that 12 of them make a whole run, and a checkpoint after every
    one. With `interrupt_at=7` comes Ctrl-C in iteration 7 of the call: the checkpoint is that of 6. It runs on the CPU,
    because a GPU rounds otherwise.
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
