"""No run is lost, no stranger's code is run, and bad input costs one line."""

import contextlib
import errno
import io
import math
import os
import pickle
import random
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import MAIN, run, start

import main
import net
from data import Sinusoid
from meta import Meta
from net import InputError

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # one of the bad files has one

WEIGHTS = "weights/w(k=10).pt"
CHECKPOINT = "weights/checkpoint(k=10).pt"
SHORT = "--epochs 12"
SHORT_WEIGHTS = "weights/w(k=10,epochs=12).pt"
SHORT_CHECKPOINT = "weights/checkpoint(k=10,epochs=12).pt"
SHORT_GRAPH = "res/loss_final(k=10,epochs=12).png"


def snapshot(folder="."):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def good_weights():
    return {name: parameter.detach().clone() for name, parameter in Meta().net.Param.items()}


def saved(obj):
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    return buffer.getvalue()


def restored(content):
    """What `saved` was given, by a reader that trusts it."""
    return torch.load(io.BytesIO(content), weights_only=False)


def put(path, content):
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_bytes(content)


def validation_loss(path):
    """Of the weights in `path`, as the runs here validate: on 20 tasks."""
    meta = Meta()
    meta.load_weights(path)
    batch = Sinusoid(10, num_tasks=20, seed=(main.VALIDATION,)).batch(range(20))
    return meta.query_loss(*batch).mean().item()


class Code:
    """A pickle of it runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {shlex.quote(str(self.path))}",)


# Interrupted runs


def test_a_run_killed_again_and_again_ends_bit_identical(tmp_path, monkeypatch):
    """SIGKILL, SIGINT and SIGTERM at random moments; each time --resume goes on, or a new run where none had begun."""
    words = ["--epochs", "2345", "--batch_size", "1"]
    name = "k=10,epochs=2345,batch_size=1"
    checkpoint = tmp_path / f"weights/checkpoint({name}).pt"
    moments = random.Random(0)
    for kind in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        before = checkpoint.read_bytes() if checkpoint.exists() else b""
        process = start(tmp_path, *words, *["--resume"] * bool(before))
        process.stderr.read(20)  # the bar is there: training has begun
        if kind == signal.SIGKILL:  # it has only what an earlier checkpoint kept
            while process.poll() is None and (checkpoint.read_bytes() if checkpoint.exists() else b"") == before:
                time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))
        process.send_signal(kind)
        stdout, stderr = process.communicate()
        assert "Traceback" not in stderr
        if process.returncode == 0:  # it was faster
            break
        assert checkpoint.exists()
        if kind == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 128 + kind
            assert re.match(r"interrupted after \d+ of 2345 iterations; ", stdout.splitlines()[-1])
            assert stdout.splitlines()[-1].endswith("--epochs 2345 --batch_size 1 --resume")
            assert (tmp_path / f"res/loss_final({name}).png").exists()
    if process.returncode != 0:
        assert run(tmp_path, *words, "--resume").returncode == 0
    assert not checkpoint.exists()

    broken = snapshot(tmp_path)
    assert set(broken) == {f"weights/w({name}).pt", f"res/loss_final({name}).png"}
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    main.main(words)
    assert snapshot() == broken


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("iteration", [1, 3, 5, 6, 10, 11])
def test_an_interrupted_run_goes_on_bit_identical(program, iteration, number):
    """Before a validation, in an iteration that ends with one, and after it."""
    assert program(SHORT).code == 0
    whole = snapshot()
    for path in whole:
        os.remove(path)
    output = program(SHORT, interrupt_at=iteration, number=number)
    assert output.code == 128 + number
    assert output.out[-1].startswith(f"interrupted after {iteration} of 12 iterations; to go on: ")
    assert set(snapshot()) == {SHORT_CHECKPOINT} | ({SHORT_WEIGHTS, SHORT_GRAPH} if iteration >= 5 else set())
    assert program(f"{SHORT} --resume").code == 0
    assert snapshot() == whole


def test_an_interruption_before_the_first_iteration_loses_nothing(program):
    assert program(SHORT).code == 0
    whole = snapshot()
    for path in whole:
        os.remove(path)
    output = program(SHORT, interrupt_at=0)
    assert output.code == 130
    assert output.out[-1].startswith("interrupted after 0 of 12 iterations; to go on: ")
    assert program(f"{SHORT} --resume").code == 0
    assert snapshot() == whole


def test_a_signal_in_the_last_iteration_is_no_interruption(program):
    assert program(SHORT).code == 0
    whole = snapshot()
    assert program(SHORT, interrupt_at=12).code == 0
    assert snapshot() == whole


def test_a_run_stopped_after_its_last_checkpoint_only_writes_its_files(program, monkeypatch):
    """Its last iteration was validated and kept, then it was killed."""
    words = "--epochs 10"
    assert program(words).code == 0
    whole = snapshot()
    for path in whole:
        os.remove(path)

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(main, "draw_losses", killed)
        assert program(words).code == 130
    assert set(snapshot()) == {"weights/checkpoint(k=10,epochs=10).pt", "weights/w(k=10,epochs=10).pt"}
    assert program(f"{words} --resume").code == 0
    assert snapshot() == whole


def test_a_run_that_is_resumed_has_weights_although_none_got_better_since(program):
    """Steps too small to change a weight: the first validation stays the best, and its weights were deleted."""
    words = "--epochs 12 --outer_lr 1e-300"
    output = program(words, interrupt_at=7)
    assert output.code == 130
    (weights,) = re.findall(r"^weights: (.*), best", "\n".join(output.out), re.MULTILINE)
    expected = Path(weights).read_bytes()
    os.remove(weights)
    output = program(f"{words} --resume")
    assert output.code == 0
    assert re.findall(r"^weights: (.*), best", "\n".join(output.out), re.MULTILINE) == [weights]
    assert Path(weights).read_bytes() == expected
    Meta().load_weights(weights)


def test_a_run_in_progress_writes_no_weights(program, monkeypatch):
    """Another that has finished may have its own there."""
    seen, step = [], Meta.__call__
    monkeypatch.setattr(Meta, "__call__", lambda meta, *batch: (seen.append(set(snapshot())), step(meta, *batch))[1])
    assert program(SHORT).code == 0
    assert seen[4] == set()
    assert seen[5] == seen[11] == {SHORT_CHECKPOINT}


def test_an_interrupted_run_replaces_no_better_weights(program):
    assert program(SHORT).code == 0
    whole = snapshot()
    output = program(SHORT, interrupt_at=7)
    assert output.code == 130
    assert not [line for line in output.out if line.startswith(("weights:", "loss graph:"))]
    after = snapshot()
    after.pop(SHORT_CHECKPOINT)
    assert after == whole
    assert program(f"{SHORT} --resume").code == 0  # what it looked at has left no trace in it
    assert snapshot() == whole


def test_an_interrupted_run_without_a_validation_replaces_no_weights(program):
    put(SHORT_WEIGHTS, saved({name: 100 * w for name, w in good_weights().items()}))
    put(SHORT_GRAPH, b"a graph")
    before = snapshot()
    assert program(SHORT, interrupt_at=3).code == 130
    after = snapshot()
    after.pop(SHORT_CHECKPOINT)
    assert after == before


@pytest.mark.parametrize("kind", ["worse", "empty", "text", "truncated", "with nan", "of another shape"])
def test_an_interrupted_run_replaces_worse_weights_and_what_is_none(program, kind):
    worse = saved({name: 100 * w for name, w in good_weights().items()})
    put(SHORT_WEIGHTS, worse if kind == "worse" else BAD_WEIGHTS[kind]())
    output = program(SHORT, interrupt_at=7)
    assert output.code == 130
    (lowest,) = re.findall(r"^weights: .*, best validation loss: (.*)", "\n".join(output.out), re.MULTILINE)
    assert validation_loss(SHORT_WEIGHTS) == pytest.approx(float(lowest), abs=6e-5)
    checkpoint = torch.load(SHORT_CHECKPOINT)
    assert checkpoint["validation"].tolist() == [pytest.approx(float(lowest), abs=6e-5)]
    for name, w in torch.load(SHORT_WEIGHTS).items():
        assert torch.equal(w, checkpoint[f"best_{name}"])
        assert not torch.equal(w, checkpoint[name])  # two iterations later


@pytest.mark.parametrize("ending", ["finished", "interrupted", "not finite", "a bug"])
def test_the_signal_handlers_are_those_of_before_after_every_ending(program, monkeypatch, ending):
    def broken(*args):
        raise ValueError("a bug")

    if ending == "a bug":
        monkeypatch.setattr(main, "validate", broken)
    if ending == "not finite":
        monkeypatch.setattr(Meta, "__call__", lambda meta, *batch: math.nan)
    numbers = (signal.SIGINT, signal.SIGTERM)
    mine = [lambda number, frame: None for _ in numbers]
    before = [signal.signal(number, handler) for number, handler in zip(numbers, mine, strict=True)]
    try:
        with pytest.raises(ValueError, match="a bug") if ending == "a bug" else contextlib.nullcontext():
            output = program(SHORT, interrupt_at=7 if ending == "interrupted" else None)
            assert output.code == {"finished": 0, "interrupted": 130, "not finite": 2}[ending]
        assert [signal.getsignal(number) for number in numbers] == mine
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def test_a_keyboard_interrupt_outside_of_the_loop_is_quiet(program, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    put(WEIGHTS, saved(good_weights()))
    monkeypatch.setattr(main, "evaluate", interrupted)
    output = program("--test")
    assert output.code == 130
    assert output.err == []


def test_a_new_run_does_not_replace_one_that_was_interrupted(program):
    assert program(SHORT, interrupt_at=7).code == 130
    before = snapshot()
    assert "--resume" in program(SHORT).refusal
    assert snapshot() == before
    assert program("--epochs 12 --seed 1").code == 0  # which is another run
    assert before.items() <= snapshot().items()


def test_a_resumed_run_takes_up_none_but_its_own(program):
    """Other settings are another run, which has no checkpoint."""
    assert program(SHORT, interrupt_at=7).code == 130
    before = snapshot()
    for words in ("--batch_size 3", "--seed 1", "--outer_lr 0.002", "--inner_steps 2", "--loss mse", "--first_order"):
        (setting, *value) = words[2:].split()
        refusal = program(f"{SHORT} {words} --resume").refusal
        assert "=".join([setting, *value]) in refusal
        assert "checkpoint" in refusal
    assert "epochs=99" in program("--epochs 99 --resume").refusal
    assert snapshot() == before


# Losses that are not finite


def diverge(monkeypatch, at, loss):
    """The loss is what is given from iteration `at` on; the iterations that were begun are in the list returned."""
    step, begun = Meta.__call__, []

    def scripted(meta, *batch):
        begun.append(len(begun) + 1)
        return loss if len(begun) >= at else step(meta, *batch)

    monkeypatch.setattr(Meta, "__call__", scripted)
    return begun


@pytest.mark.parametrize("loss", [math.nan, math.inf])
@pytest.mark.parametrize("at", [1, 3, 7, 12])
def test_a_loss_that_is_not_finite_ends_training_in_its_own_iteration(program, monkeypatch, loss, at):
    put(SHORT_WEIGHTS, saved(good_weights()))
    put(SHORT_GRAPH, b"a graph")
    before = snapshot()
    begun = diverge(monkeypatch, at, loss)
    output = program(SHORT)
    assert output.code == 2
    assert len(begun) == at
    assert output.err[-1].startswith(f"main.py: the loss is {loss} at iteration {at}: ")
    assert "--inner_lr" in output.err[-1]
    assert "--outer_lr" in output.err[-1]
    after = snapshot()
    assert (after.pop(SHORT_CHECKPOINT, None) is not None) == (at > 5)
    if at <= 5:
        assert after == before
    else:  # what was best at the last validation is better than what was there
        assert set(after) == set(before)
        assert not any(after[path] == before[path] for path in before)
        Meta().load_weights(SHORT_WEIGHTS)


@pytest.mark.parametrize("validation", [5, 12])
def test_a_validation_that_is_not_finite_ends_training(program, monkeypatch, validation):
    query_loss, count = Meta.query_loss, []

    def scripted(meta, k_x, *rest):
        loss = query_loss(meta, k_x, *rest)
        if len(k_x) == 20:
            count.append(1)
            return loss * math.nan if len(count) == {5: 1, 12: 3}[validation] else loss
        return loss

    monkeypatch.setattr(Meta, "query_loss", scripted)
    output = program(SHORT)
    assert output.code == 2
    assert f"the loss is nan at iteration {validation}: " in output.err[-1]
    assert set(snapshot()) == ({SHORT_CHECKPOINT, SHORT_WEIGHTS, SHORT_GRAPH} if validation == 12 else set())


def test_a_loss_that_grows_beyond_all_bounds_ends_training_and_changes_no_file(program):
    words = "--epochs 12 --outer_lr 1e200"
    path = "weights/w(k=10,epochs=12,outer_lr=1e+200).pt"
    put(path, saved(good_weights()))
    before = snapshot()
    output = program(words)
    assert output.code == 2
    assert "Traceback" not in "".join(output.err)
    assert re.search(r"the loss is (inf|nan) at iteration 2: .*--outer_lr", output.err[-1])
    assert snapshot() == before


@pytest.mark.parametrize("advice", ["--inner_lr 0.005", "--outer_lr 0.0005"])
def test_the_advice_after_a_divergence_works_as_given(program, monkeypatch, advice):
    """After a checkpoint: the smaller step size is another run, and nothing is in its way."""
    words = "--epochs 12 --inner_lr 0.05 --outer_lr 0.02"
    with monkeypatch.context() as patch:
        diverge(patch, 7, math.nan)
        output = program(words)
    assert output.code == 2
    assert advice.split()[0] in output.err[-1]
    before = snapshot()
    (checkpoint,) = (path for path in before if "checkpoint" in path)
    output = program(f"{words} {advice}")
    assert output.code == 0
    assert before.items() <= snapshot().items()
    refusal = program(words).refusal  # the same again: that, too, says what to do
    assert "--resume" in refusal
    assert checkpoint in refusal
    assert program(f"{words} --resume").code == 0


def test_weights_that_a_stopped_run_has_yet_to_make_are_made_by_the_command_given(program, follow):
    assert program(SHORT, interrupt_at=3).code == 130
    hint = program(f"{SHORT} --test").refusal.removesuffix(" makes them").rsplit(": ", 1)[1]
    assert hint.endswith("--resume")
    assert follow(hint).code == 0
    assert program(f"{SHORT} --test").code == 0


def test_a_graph_that_cannot_be_drawn_costs_no_weights(program, monkeypatch):
    def failing(*args):
        raise OSError("no room for a graph")

    monkeypatch.setattr(main, "draw_losses", failing)
    assert "no room" in program(SHORT).err[-1]
    Meta().load_weights(SHORT_WEIGHTS)
    assert Path(SHORT_CHECKPOINT).exists()


# Checkpoints that anybody may have made


@pytest.fixture
def checkpoint(program):
    """The checkpoint of a run that was interrupted after 7 iterations and one validation, as a dictionary."""
    assert program(SHORT, interrupt_at=7).code == 130
    return torch.load(SHORT_CHECKPOINT)


FIELDS = ["losses", "validation"] + [
    f"{kind}{name}"
    for kind in ("", "best_", "exp_avg_", "exp_avg_sq_")
    for name in ("w_1", "b_1", "w_2", "b_2", "w_3", "b_3")
]
MALFORMED = {
    "text": lambda tensor: "five",
    "None": lambda tensor: None,
    "-1": lambda tensor: -1,
    "[[1]]": lambda tensor: [[1]],
    "of another shape": lambda tensor: torch.zeros(3, 5, dtype=torch.float64),
    "of one dimension more": lambda tensor: tensor[None],
    "a number": lambda tensor: torch.tensor(1.0, dtype=torch.float64),
    "of another length": lambda tensor: tensor.flatten()[:-1],
    "of another type": lambda tensor: tensor.float(),
    "nan": lambda tensor: tensor * math.nan,
    "inf": lambda tensor: torch.full_like(tensor, math.inf),
    "sparse": lambda tensor: tensor.to_sparse(),
    "no memory": lambda tensor: tensor.to("meta"),
}


def assert_refused(program, checkpoint):
    Path(SHORT_CHECKPOINT).write_bytes(saved(checkpoint))
    before = snapshot()
    assert SHORT_CHECKPOINT in program(f"{SHORT} --resume").refusal
    assert snapshot() == before


def test_the_fields_of_a_checkpoint_are_these(checkpoint):
    """Else the cases below leave some out."""
    assert set(checkpoint) == set(FIELDS)
    assert len(checkpoint["losses"]) == 7
    assert len(checkpoint["validation"]) == 1


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_field_of_a_checkpoint_is_refused(program, checkpoint, kind):
    for field in FIELDS:
        if (field, kind) != ("losses", "of another length"):  # six losses and a validation: a run, if another
            assert_refused(program, {**checkpoint, field: MALFORMED[kind](checkpoint[field])})


def test_a_checkpoint_with_a_missing_or_an_extra_field_is_refused(program, checkpoint):
    for field in FIELDS:
        assert_refused(program, {key: tensor for key, tensor in checkpoint.items() if key != field})
    for key in ("settings", "step_w_1", 7, None):
        assert_refused(program, {**checkpoint, key: torch.zeros(1, dtype=torch.float64)})
    assert_refused(program, {})
    assert_refused(program, list(checkpoint.values()))


@pytest.mark.parametrize(
    ("losses", "validations"), [(7, 0), (7, 2), (4, 1), (10, 1), (0, 1), (13, 2), (15, 3), (99, 19)]
)
def test_losses_and_validations_that_do_not_go_together_are_refused(program, checkpoint, losses, validations):
    """A validation after every fifth, and no more than 12 in all."""
    counts = {"losses": losses, "validation": validations}
    assert_refused(program, checkpoint | {key: torch.ones(n, dtype=torch.float64) for key, n in counts.items()})


def test_a_checkpoint_of_parameters_goes_on_all_the_same(program, checkpoint):
    """Tensors that say that they require gradients are tensors."""
    assert program(f"{SHORT} --resume").code == 0
    whole = snapshot()
    put(SHORT_CHECKPOINT, saved({key: tensor.requires_grad_() for key, tensor in checkpoint.items()}))
    assert program(f"{SHORT} --resume", interrupt_at=4).code == 130
    assert program(f"{SHORT} --resume").code == 0
    assert snapshot() == whole


# Writing files


def test_a_save_that_is_killed_leaves_a_file_that_loads(tmp_path):
    path = tmp_path / "w.pt"
    Meta().save_weights(path)
    forever = (
        f"from meta import Meta\nmeta = Meta()\nprint(1, flush=True)\nwhile True: meta.save_weights({str(path)!r})"
    )
    moments = random.Random(0)
    process = subprocess.Popen([sys.executable, "-c", forever], cwd=MAIN.parent, stdout=subprocess.PIPE)
    process.stdout.readline()
    for _ in range(120):  # it is stopped and looked at, and at last killed
        time.sleep(moments.uniform(0, 0.01))
        process.send_signal(signal.SIGSTOP)
        Meta().load_weights(path)
        process.send_signal(signal.SIGCONT)
    process.kill()
    process.communicate()
    Meta().load_weights(path)


def test_a_file_is_on_the_disk_before_it_takes_the_place_of_another(tmp_path, monkeypatch):
    """Else a power cut may leave the new name with nothing behind it."""
    path, order = tmp_path / "file", []
    path.write_bytes(b"old")
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(number):
        (temporary,) = set(tmp_path.iterdir()) - {path}
        order.append(("fsync", temporary.read_bytes(), os.path.samestat(os.fstat(number), temporary.stat())))
        fsync(number)

    def recorded_replace(source, target):
        order.append(("replace", Path(target) == path, path.read_bytes()))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    net.write(path, lambda file: file.write(b"new"))
    assert order[:2] == [("fsync", b"new", True), ("replace", True, b"old")]
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_never_share_a_temporary_one(tmp_path, monkeypatch):
    """The second begins and ends while the first is at it, in the same process or in another."""
    path, sources, replace = tmp_path / "file", [], os.replace

    def interrupted_replace(source, target):
        sources.append(source)
        if len(sources) == 1:
            net.write(path, lambda file: file.write(b"second"))
            assert path.read_bytes() == b"second"
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted_replace)
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as two containers with one folder may have
    net.write(path, lambda file: file.write(b"first"))
    assert path.read_bytes() == b"first"
    assert len(set(sources)) == 2
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failing", ["save", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), ValueError(), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_everything_as_it_was(tmp_path, monkeypatch, failing, error):
    def fail(*args):
        raise error

    path = tmp_path / "file"
    path.write_bytes(b"old")
    if failing != "save":
        monkeypatch.setattr(os, failing, fail)
    with pytest.raises(type(error)) as raised:
        net.write(path, fail if failing == "save" else lambda file: file.write(b"new"))
    if isinstance(error, OSError) and failing != "save":
        assert str(raised.value) == f"{path} can't be written: No space left on device"
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_costs_one_line_and_no_file(tmp_path):
    """No file may grow past 4 KiB: neither weights nor graphs fit."""
    put(tmp_path / "weights/w(k=10,epochs=5).pt", saved(good_weights()))
    put(tmp_path / "res/loss_final(k=10,epochs=5).png", b"an earlier graph")
    before = snapshot(tmp_path)
    limit = (4096, 4096)
    output = run(tmp_path, "--epochs", "5", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    assert output.returncode == 2
    last = output.stderr.splitlines()[-1]
    assert re.fullmatch(r"main.py: weights/(w|checkpoint)\(k=10,epochs=5\)\.pt can't be written: File too large", last)
    assert "Traceback" not in output.stderr
    assert snapshot(tmp_path) == before


def test_a_name_that_is_too_long_is_refused_before_the_work(program, monkeypatch):
    name = "w" * 230 + ".pt"
    put(name, saved(good_weights()))
    monkeypatch.setattr(main, "evaluate", None)
    assert "too long" in program("--test", "--weights", name).refusal


def test_a_name_may_hold_what_begins_a_formula(program):
    put("$x^$.pt", saved(good_weights()))
    assert program("--test", "--weights", "$x^$.pt").code == 0


# The program's own errors


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("a bug"), KeyError("a bug"), TypeError("a bug")])
@pytest.mark.parametrize(("words", "place"), [(SHORT, "draw_losses"), (SHORT, "Sinusoid"), ("--test", "summarize")])
def test_an_error_of_the_program_itself_keeps_its_traceback(program, monkeypatch, words, place, error):
    def broken(*args, **kwargs):
        raise error

    put(WEIGHTS, saved(good_weights()))
    monkeypatch.setattr(main, place, broken)
    with pytest.raises(type(error), match="a bug"):
        program(words)


@pytest.mark.parametrize(
    "error", [InputError("no such thing"), OSError("no such thing"), PermissionError("no such thing")]
)
@pytest.mark.parametrize(("words", "place"), [(SHORT, "Sinusoid"), ("--test", "summarize")])
def test_an_error_of_input_is_one_line(program, monkeypatch, words, place, error):
    def refused(*args, **kwargs):
        raise error

    put(WEIGHTS, saved(good_weights()))
    monkeypatch.setattr(main, place, refused)
    output = program(words)
    assert output.code == 2
    assert output.err[-1] == "main.py: no such thing"
    assert "Traceback" not in "".join(output.err)


def test_an_input_error_is_no_error_that_code_raises_by_mistake():
    assert InputError.__mro__[1:] == Exception.__mro__


# Bad input

BAD_FLAGS = [
    "--epochs 0",
    "--epochs -5",
    "--epochs ten",
    "--epochs 99999999999999999999",
    "--batch_size 0",
    "--batch_size 1000000000",
    "--k_shot 0",
    "--k_shot -1",
    "--k_shot 1000000000",
    "--inner_lr -0.01",
    "--inner_lr nan",
    "--outer_lr inf",
    "--outer_lr fast",
    "--seed -1",
    "--inner_steps -1",
    "--loss mae",
    "--no_such_flag 7",
    "--later_lr 0.005",
]
BAD_WEIGHTS = {
    "empty": lambda: b"",
    "text": lambda: b"these are no weights\n",
    "truncated": lambda: saved(good_weights())[:-3000],
    "pickle": lambda: pickle.dumps({"w_1": [1.0]}),
    "of another type": lambda: saved([1, 2, 3]),
    "of another shape": lambda: saved({**good_weights(), "w_2": torch.zeros(40, 30, dtype=torch.float64)}),
    "of another dtype": lambda: saved({**good_weights(), "b_2": torch.zeros(40)}),
    "with a missing name": lambda: saved({name: w for name, w in good_weights().items() if name != "b_3"}),
    "with an extra name": lambda: saved({**good_weights(), "w_4": torch.zeros(1, dtype=torch.float64)}),
    "with nan": lambda: saved({**good_weights(), "b_3": torch.tensor([math.nan], dtype=torch.float64)}),
    "with inf": lambda: saved({**good_weights(), "b_3": torch.tensor([math.inf], dtype=torch.float64)}),
    "not tensors": lambda: saved({name: 1.0 for name in good_weights()}),
    "sparse": lambda: saved({**good_weights(), "w_2": torch.eye(40, dtype=torch.float64).to_sparse()}),
    "without memory": lambda: saved({**good_weights(), "w_2": torch.zeros(40, 40, dtype=torch.float64, device="meta")}),
    "nested": lambda: saved({**good_weights(), "b_2": torch.nested.nested_tensor([torch.zeros(40).double()])}),
}


def folder_for_weights():
    os.makedirs(WEIGHTS)


def file_for_folder():
    Path("res").write_text("a file")


def folder_that_takes_no_file():
    Path("res").symlink_to("/proc")


def folder_for_graph():
    os.makedirs("res/loss_final.png")


def folder_for_picture():
    put(WEIGHTS, saved(good_weights()))
    os.makedirs("res/graph(k=10).png")


def pickles_that_run_code():
    put(WEIGHTS, pickle.dumps(Code(Path("code was run").absolute())))
    put(CHECKPOINT, saved({"losses": Code(Path("code was run").absolute())}))


def something_else_for_a_checkpoint():
    put(CHECKPOINT, saved(good_weights()))


def nothing():
    pass


CASES = [(nothing, flags, flags.split()) for flags in BAD_FLAGS] + [
    (nothing, "--resume --test", ["--resume", "--test"]),
    (nothing, "--compile --test", ["--compile", "--test"]),
    (nothing, "--weights x.pt", ["--weights", "x.pt", "--test"]),
    (nothing, "--test", [WEIGHTS, "main.py"]),
    (nothing, "--test --weights x.pt", ["x.pt", "--weights"]),
    (nothing, "--resume", [CHECKPOINT, "--resume"]),
    (folder_for_weights, "--test", [WEIGHTS]),
    (folder_for_weights, "", [WEIGHTS, "folder"]),
    (folder_for_graph, "", ["res/loss_final.png", "folder"]),
    (folder_for_picture, "--test", ["res/graph(k=10).png", "folder"]),
    (file_for_folder, "", ["res", "folder"]),
    (folder_that_takes_no_file, "", ["res", "folder"]),
    (pickles_that_run_code, "--test", [WEIGHTS]),
    (pickles_that_run_code, "--resume", [CHECKPOINT]),
    (pickles_that_run_code, "", [CHECKPOINT, "--resume"]),
    (something_else_for_a_checkpoint, "--resume", [CHECKPOINT]),
]


@pytest.mark.parametrize(
    ("prepare", "words", "shown"), CASES, ids=lambda case: getattr(case, "__name__", str(case))[:40]
)
def test_bad_input_costs_one_line_and_no_file(program, prepare, words, shown):
    prepare()
    before = snapshot()
    refusal = program(words).refusal
    assert [word for word in shown if word not in refusal] == []
    assert snapshot() == before


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_bad_weights_cost_one_line_and_no_file(program, kind):
    put(WEIGHTS, BAD_WEIGHTS[kind]())
    before = snapshot()
    for words in ("--test", f"--test --seed 1 --weights '{WEIGHTS}'"):
        assert WEIGHTS in program(words).refusal
    assert snapshot() == before


def test_weights_of_the_baseline_that_are_bad_cost_one_line_and_no_file(program):
    put(WEIGHTS, saved(good_weights()))
    put("weights/w(k=10,inner_steps=0).pt", BAD_WEIGHTS["truncated"]())
    before = snapshot()
    assert "weights/w(k=10,inner_steps=0).pt" in program("--test").refusal
    assert snapshot() == before


def test_compiling_without_a_compiler_costs_one_line_that_names_it(tmp_path):
    environment = {**os.environ, "CXX": "/no/such/compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    output = run(tmp_path, "--epochs", "5", "--compile", env=environment)
    assert output.returncode == 2
    assert len(output.stderr.splitlines()) == 1
    assert "C++ compiler" in output.stderr
    assert "/no/such/compiler" in output.stderr
    assert not list(tmp_path.rglob("*.p*"))


# Weights that anybody may have made


def test_weights_round_trip(tmp_path):
    meta, other = Meta(), Meta()
    meta.save_weights(tmp_path / "w.pt")
    parameters = other.net.Param
    other.load_weights(tmp_path / "w.pt")
    for name, parameter in meta.net.Param.items():
        assert torch.equal(parameter, other.net.Param[name])
        assert other.net.Param[name] is parameters[name]
        assert any(parameters[name] is p for group in other.outer_optim.param_groups for p in group["params"])
    plain = torch.load(tmp_path / "w.pt")
    assert all(type(w) is torch.Tensor and not w.requires_grad for w in plain.values())


def test_weights_of_any_device_load(tmp_path, monkeypatch):
    """The file of a GPU differs from a CPU's in the device tag of its tensors alone."""
    meta = Meta()
    for tag in ("cuda:0", "cuda:7", "mps"):
        with monkeypatch.context() as patch:
            patch.setattr(torch.serialization, "location_tag", lambda storage: tag)  # noqa: B023
            content = saved(dict(meta.net.Param))
        assert tag.encode() in content
        (tmp_path / "w.pt").write_bytes(content)
        other = Meta()
        other.load_weights(tmp_path / "w.pt")
        assert torch.equal(meta.net.w_2, other.net.w_2)


@pytest.mark.parametrize(("dump", "load"), [(pickle.dumps, pickle.loads), (saved, restored)])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, dump, load):
    code, path = tmp_path / "code was run", tmp_path / "w.pt"
    path.write_bytes(dump({**good_weights(), "b_3": Code(code)}))
    with pytest.raises(InputError, match=r"w\.pt"):
        Meta().load_weights(path)
    assert not code.exists()
    load(path.read_bytes())
    assert code.exists()  # elsewhere it is dangerous


def test_refused_weights_leave_the_parameters_as_they_were(tmp_path):
    meta = Meta()
    before = {name: parameter.detach().clone() for name, parameter in meta.net.Param.items()}
    for content in BAD_WEIGHTS.values():
        (tmp_path / "w.pt").write_bytes(content())
        with pytest.raises(InputError, match=r"w\.pt"):
            meta.load_weights(tmp_path / "w.pt")
    with pytest.raises(OSError, match=r"none\.pt"):
        meta.load_weights(tmp_path / "none.pt")
    assert all(torch.equal(before[name], parameter) for name, parameter in meta.net.Param.items())


def test_mutated_weights_load_finite_or_are_refused(tmp_path):
    """400 files with bytes flipped, cut out or put in, in torch's present and its older format."""
    dice = random.Random(0)
    buffer = io.BytesIO()
    torch.save(good_weights(), buffer, _use_new_zipfile_serialization=False)
    originals = [saved(good_weights()), buffer.getvalue()]
    refused = 0
    for number in range(400):
        content = bytearray(originals[number % 2])
        for _ in range(dice.choice([1, 1, 3, 30])):
            # Half of the changes go to the start of the file, where the pickle is, which says what to build.
            place = dice.randrange(len(content) if dice.random() < 0.5 else min(1500, len(content)))
            kind = dice.choice(["flip", "cut", "pad"])
            if kind == "flip":
                content[place] ^= 1 << dice.randrange(8)
            elif kind == "cut":
                del content[place : place + dice.choice([1, 100, len(content)])]
            else:
                content[place:place] = dice.randbytes(dice.choice([1, 100, 5000]))
            content = content or bytearray(b"\0")
        (tmp_path / "w.pt").write_bytes(content)
        meta = Meta()
        try:
            meta.load_weights(tmp_path / "w.pt")
        except InputError:
            refused += 1
        assert all(parameter.isfinite().all() for parameter in meta.net.parameters())
        assert sum(parameter.numel() for parameter in meta.net.parameters()) == 1761
    assert 100 < refused < 400  # most changes are seen; some bits of a weight may flip and it is still a weight
