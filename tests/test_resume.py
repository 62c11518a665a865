"""A stopped run is not lost: it resumes from its checkpoint and ends as if it had not stopped."""

import os
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, contents, leave_only, needs_compiler, run, saved

import main
from meta import Meta

SHORT, RESUME = "--epochs 12", "--epochs 12 --resume"
WEIGHTS = "weights/w(k=10,epochs=12).pt"
CHECKPOINT = "weights/checkpoint(k=10,epochs=12).pt"
GRAPH = "res/loss_final(k=10,epochs=12).png"
EARLIER = {WEIGHTS: b"weights of an earlier run", GRAPH: b"a graph of an earlier run"}
CHECKPOINT_EVERY = main.CHECKPOINT_EVERY  # as it is, before `program` sets another

# In a process of its own, with the settings of `program`. It dies within the eighth checkpoint.
KILLED = """
import itertools, main, os, signal
main.VALIDATE_EVERY, main.VALIDATION_TASKS, main.CHECKPOINT_EVERY = 5, 20, -1
number = itertools.count(1)
os.fsync = lambda file: next(number) == 8 and os.kill(os.getpid(), signal.SIGKILL)
main.main()
"""


@pytest.fixture(autouse=True)
def quick_graph(monkeypatch):
    """The loss graph is a file of its numbers: to draw it takes longer than a short run."""

    def write_numbers(path, args, run):
        numbers = f"{run.losses} {run.validation_losses}"
        main.write(path, lambda file: file.write(numbers.encode()))

    monkeypatch.setattr(main, "draw_losses", write_numbers)


@pytest.fixture
def whole(program):
    """What the short run leaves if nothing stops it. The folder is empty again."""
    assert program(SHORT).code == 0
    files = contents()
    assert files.keys() == {WEIGHTS, GRAPH}
    leave_only({})
    return files


def iterations(checkpoint=CHECKPOINT):
    return len(torch.load(checkpoint)["losses"]) if os.path.exists(checkpoint) else 0


def test_a_killed_run_resumes_bit_for_bit(program, whole, tmp_path):
    """A run that is killed, even while it writes a checkpoint, ends as a whole run when resumed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = (sys.executable, "-c", KILLED, *SHORT.split())
    killed = run(tmp_path, command=command, env=environment)
    assert killed.code < 0
    assert "Traceback" not in "".join(killed.err)
    assert iterations() == 7
    (rest,) = contents().keys() - {CHECKPOINT}
    assert rest.endswith(".tmp")
    os.remove(rest)
    assert program(RESUME).code == 0
    assert contents() == whole


@pytest.mark.parametrize(
    ("place", "done"),
    [
        *(("iteration", 1), ("iteration", 4), ("iteration", 5), ("iteration", 11)),
        *(("validation", 4), ("validation", 9), ("validation", 11)),
        *((CHECKPOINT, 1), (CHECKPOINT, 4), (CHECKPOINT, 12), (WEIGHTS, 12)),
    ],
)
def test_an_interrupted_run_resumes_bit_for_bit(program, monkeypatch, whole, place, done):
    """A run that is interrupted anywhere, and again, and again, ends as a whole run."""
    query_loss, replace = Meta.query_loss, os.replace

    def come(here):
        if here == place and iterations() == done:
            raise KeyboardInterrupt

    def interrupted_query_loss(meta, *batch):
        come("iteration" if len(batch[0]) == 10 else "validation")
        return query_loss(meta, *batch)

    def interrupted_replace(source, target):
        come(str(target))
        replace(source, target)

    leave_only(EARLIER)
    with monkeypatch.context() as patch:
        patch.setattr(Meta, "query_loss", interrupted_query_loss)
        patch.setattr(os, "replace", interrupted_replace)
        for words in (SHORT, RESUME):
            output = program(words)
            advice = "--resume resumes from the last checkpoint, if there is one"
            assert (output.code, output.err[-1]) == (130, f"main.py: interrupted; {advice}")
            assert contents() == {**EARLIER, CHECKPOINT: Path(CHECKPOINT).read_bytes()}
            assert iterations() == done
    assert any(program(RESUME, interrupt_at=4).code == 0 for _ in range(4))  # every 3 iterations
    assert contents() == whole


@needs_compiler
def test_a_compiled_run_resumes_bit_for_bit(program):
    """A compiled run resumes bit for bit, and may be resumed without the compiler, too."""
    assert "compiling …" in program(f"{SHORT} --compile").out
    whole, compiled = contents(), torch.load(WEIGHTS)
    leave_only({})
    assert program(f"{SHORT} --compile", interrupt_at=8).code == 130
    checkpoint = Path(CHECKPOINT).read_bytes()
    assert " 12/12 " in program(f"{RESUME} --compile").err[-1]
    assert contents() == whole
    leave_only({CHECKPOINT: checkpoint})
    assert program(RESUME).code == 0
    mixed = torch.load(WEIGHTS)
    assert program(SHORT).code == 0
    assert contents() != whole  # the compiler rounds in other places
    for weights in (compiled, mixed):
        torch.testing.assert_close(weights, torch.load(WEIGHTS), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("settings", "done", "part", "end"),
    [
        ("--loss mse --inner_lr 1e30", 7, "exp_avg_sq.w_1", " 12/12 "),
        ("--loss mse --inner_lr 1e45 --outer_lr 1e50", 1, "net.w_1", "loss is nan at iteration 2"),
        ("--inner_lr 1e50", 7, "validation_losses", " 12/12 "),
    ],
)
def test_a_run_never_refuses_its_own(program, monkeypatch, settings, done, part, end):
    """Whatever is infinite or NaN in its checkpoint, a run ends as if it had not stopped."""
    monkeypatch.setattr(main, "VALIDATE_EVERY", 1)
    assert end in program(f"{SHORT} {settings}").err[-1]
    whole = contents()
    leave_only({})
    assert program(f"{SHORT} {settings}", interrupt_at=done + 1).code == 130
    (checkpoint,) = contents()
    assert not torch.load(checkpoint)[part].isfinite().all()
    assert end in program(f"{RESUME} {settings}").err[-1]
    assert contents() == whole


def test_a_checkpoint_is_a_file_of_the_best_weights(program):
    """Its weights are those of the best validation, and before there is one, those of now."""

    def weights(path, prefix=""):
        content = torch.load(path)
        return torch.cat([content[prefix + name].flatten() for name in Meta().net.Param])

    assert program(SHORT, interrupt_at=3).code == 130
    assert torch.equal(weights(CHECKPOINT), weights(CHECKPOINT, "net."))
    assert program(RESUME, interrupt_at=4).code == 130  # after the validation
    best = weights(CHECKPOINT)
    assert torch.equal(best, weights(CHECKPOINT, "net."))
    lowest = {**torch.load(CHECKPOINT), "validation_losses": torch.zeros(1)}
    leave_only({CHECKPOINT: saved(lowest)})  # every other validation is worse
    assert program(RESUME, interrupt_at=7).code == 130
    assert torch.equal(best, weights(CHECKPOINT))
    assert not torch.equal(best, weights(CHECKPOINT, "net."))
    assert program(RESUME).code == 0
    assert torch.equal(best, weights(WEIGHTS))


@pytest.mark.parametrize(("seconds", "first"), [(2.0, 3), (0.125, 41)])
def test_checkpoints_come_by_the_clock(program, monkeypatch, seconds, first):
    """A checkpoint comes with the first iteration after five seconds, and before the results."""
    step, steps, written = Meta.__call__, [], []
    monkeypatch.setattr(Meta, "__call__", lambda *batch: steps.append(None) or step(*batch))
    monkeypatch.setattr(main.time, "monotonic", lambda: seconds * len(steps))
    monkeypatch.setattr(main, "write", lambda path, _: written.append((path.name[0], len(steps))))
    monkeypatch.setattr(main, "CHECKPOINT_EVERY", CHECKPOINT_EVERY)
    assert program("--epochs 121 --batch_size 1").code == 0
    checkpoints = [iteration for letter, iteration in written if letter == "c"]
    assert checkpoints == [*range(first, 121, first), 121]
