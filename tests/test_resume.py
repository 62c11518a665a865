"""A stopped run is not lost: it resumes from its checkpoint and ends as if it had not stopped."""

import itertools
import os
import re
import signal
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from conftest import ROOT, contents, dropout, leave_only, needs_compiler, run

import main

SHORT, RESUME = "--epochs 12", "--epochs 12 --resume"
WEIGHTS = "weights/w(k=10,epochs=12).pt"
CHECKPOINT = "weights/checkpoint(k=10,epochs=12).pt"
GRAPH, TABLE = (f"res/loss_final(k=10,epochs=12).{kind}" for kind in ("png", "csv"))

# In a process of its own, with the settings of `program`. It dies within the eighth checkpoint.
KILLED = """
import data, itertools, main, os, signal
data.BLOCK = 4
main.VALIDATE_EVERY, main.VALIDATION_TASKS, main.CHECKPOINT_EVERY = 5, 20, -1
number = itertools.count(1)
os.fsync = lambda file: next(number) == 8 and os.kill(os.getpid(), signal.SIGKILL)
main.main()
"""


@pytest.fixture
def whole(program):
    """What the short run leaves if nothing stops it. The folder is empty again."""
    assert program(SHORT).code == 0
    files = contents()
    assert files.keys() == {WEIGHTS, GRAPH, TABLE}
    leave_only({})
    return files


def test_a_killed_run_resumes_bit_for_bit(program, whole, tmp_path):
    """A run that is killed, even while it writes a checkpoint, ends as a whole run when resumed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = (sys.executable, "-c", KILLED, *SHORT.split())
    assert run(tmp_path, command=command, env=environment).code == -signal.SIGKILL
    assert len(torch.load(CHECKPOINT)["losses"]) == 7
    (rest,) = contents().keys() - {CHECKPOINT}
    assert re.search(r"\.\d+\.tmp$", rest)  # two processes may write the same file
    os.remove(rest)
    assert program(RESUME).code == 0
    assert contents() == whole


@pytest.mark.parametrize("done", [4, 11])  # the next iteration is followed by a validation
@pytest.mark.parametrize("place", ["meta.Meta.query_loss", "main.validate", "os.replace"])
def test_an_interrupted_run_resumes_bit_for_bit(program, monkeypatch, whole, place, done):
    """A run that is interrupted anywhere, and again, and again, ends as a whole run."""
    leave_only({WEIGHTS: b"weights of an earlier run", GRAPH: b"a graph of an earlier run"})
    assert program(SHORT, interrupt_at=done + 1).code == 130
    before = contents()
    with monkeypatch.context() as patch:
        patch.setattr(place, Mock(side_effect=KeyboardInterrupt))
        output = program(RESUME)
    assert output.code == 130
    assert output.err[-1].startswith("main.py: interrupted; --resume goes on from the last check")
    assert contents() == before
    assert any(program(RESUME, interrupt_at=4).code == 0 for _ in range(4))  # every 3 iterations
    assert contents() == whole


PARTS = {
    "optimizer": (torch.optim, "Adam", lambda p, lr, **_: torch.optim.SGD(p, lr, momentum=0.9)),
    "network": (main, "Net", dropout),
}


@pytest.mark.parametrize("part", PARTS)
def test_any_optimizer_and_network_resume_bit_for_bit(program, monkeypatch, part):
    """Also a network that draws random numbers, and an experiment with a name of its own."""
    monkeypatch.setattr(*PARTS[part])
    words = f"{SHORT} --name {part}"
    assert program(words).code == 0
    whole = contents()
    assert f"weights/w(k=10,epochs=12,name={part}).pt" in whole
    leave_only({})
    assert program(words, interrupt_at=8).code == 130
    assert program(f"{words} --resume").code == 0
    assert contents() == whole


def test_results_that_cannot_be_written_cost_no_training(program, monkeypatch):
    """After a full disk at the end, the run resumes there; its best weights may be older."""
    monkeypatch.setattr(main, "validate", Mock(side_effect=[1.0, 2.0, 3.0] * 2))
    assert program(SHORT).code == 0
    whole = contents()
    leave_only({})
    with monkeypatch.context() as patch:
        patch.setattr(main, "write_results", Mock(side_effect=OSError("no space")))
        assert program(SHORT).refusal == "main.py: no space"
    assert "12/12" in program(RESUME).err[-1]
    assert contents() == whole


def test_checkpoints_are_written_by_the_clock(program, monkeypatch):
    monkeypatch.setattr(main, "CHECKPOINT_EVERY", 3)
    monkeypatch.setattr(main, "time", Mock(monotonic=Mock(side_effect=itertools.count())))
    monkeypatch.setattr(main, "write_checkpoint", written := Mock())
    assert program(SHORT).code == 0
    assert written.call_count == 3


def test_a_run_on_the_cpu_leaves_the_gpu_alone(program, monkeypatch, whole):
    """Its driver may be too old. A run that was stopped on a GPU may resume on the CPU."""
    broken = Mock(side_effect=RuntimeError("the driver is too old"))
    for name in ("get_rng_state", "get_rng_state_all", "set_rng_state", "current_device"):
        monkeypatch.setattr(torch.cuda, name, broken)
    assert program(SHORT, interrupt_at=8).code == 130
    checkpoint = torch.load(CHECKPOINT)
    assert checkpoint["random_cuda"] is None
    torch.save({**checkpoint, "random_cuda": torch.zeros(16, dtype=torch.uint8)}, CHECKPOINT)
    assert program(RESUME).code == 0
    assert contents() == whole


@needs_compiler
def test_a_compiled_run_resumes_bit_for_bit(program):
    """A compiled run resumes bit for bit, and may be resumed without the compiler, too."""
    assert "compiling ..." in program(f"{SHORT} --compile").out
    whole, weights = contents(), torch.load(WEIGHTS)
    leave_only({})
    assert program(f"{SHORT} --compile", interrupt_at=8).code == 130
    checkpoint = Path(CHECKPOINT).read_bytes()
    assert program(f"{RESUME} --compile").code == 0
    assert contents() == whole
    leave_only({CHECKPOINT: checkpoint})
    assert program(RESUME).code == 0
    assert contents() != whole  # the compiler rounds in other places
    torch.testing.assert_close(torch.load(WEIGHTS), weights, rtol=0, atol=1e-9)
