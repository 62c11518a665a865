"""No run is lost, no stranger's code is run, and bad input costs one line."""

import errno
import io
import itertools
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
from data import Sinusoid
from main import InputError
from meta import Meta
from net import Net

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
    return dict(Net().state_dict())


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


class Code:
    """A pickle of it runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {shlex.quote(str(self.path))}",)


# Stopped runs


def test_a_run_killed_again_and_again_ends_bit_identical(tmp_path, monkeypatch):
    """SIGKILL, SIGINT and SIGTERM at random moments, each time after a checkpoint; then --resume goes on."""
    words = ["--epochs", "1234", "--batch_size", "1"]
    name = "k=10,epochs=1234,batch_size=1"
    code = (
        f"import sys; sys.path.insert(0, {str(MAIN.parent)!r}); import main; main.CHECKPOINT_EVERY = 0.05; main.main()"
    )
    checkpoint = tmp_path / f"weights/checkpoint({name}).pt"
    moments = random.Random(0)
    for kind in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        before = checkpoint.read_bytes() if checkpoint.exists() else b""
        process = start(tmp_path, *words, *["--resume"] * bool(before), command=(sys.executable, "-c", code))
        while process.poll() is None and (checkpoint.read_bytes() if checkpoint.exists() else b"") == before:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.1))
        process.send_signal(kind)
        _, stderr = process.communicate()
        assert "Traceback" not in stderr
        if process.returncode == 0:  # it was faster
            break
        assert process.returncode == (130 if kind == signal.SIGINT else -kind)
        assert {file for file in snapshot(tmp_path) if not file.endswith(".tmp")} == {f"weights/{checkpoint.name}"}
    if process.returncode != 0:
        assert run(tmp_path, *words, "--resume").returncode == 0

    broken = {file: content for file, content in snapshot(tmp_path).items() if not file.endswith(".tmp")}
    assert set(broken) == {f"weights/w({name}).pt", f"res/loss_final({name}).png"}
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    main.main(words)
    assert snapshot() == broken


@pytest.mark.parametrize("iteration", [2, 4, 5, 6, 7, 11, 12])
def test_an_interrupted_run_goes_on_bit_identical(program, iteration):
    """Before a validation, in an iteration that ends with one, and after it."""
    assert program(SHORT).code == 0
    whole = snapshot()
    for path in whole:
        os.remove(path)
    output = program(SHORT, interrupt_at=iteration)
    assert output.code == 130
    assert "Traceback" not in "".join(output.err)
    assert output.err[-1] == "main.py: interrupted; --resume goes on from the last checkpoint, if there is one"
    assert set(snapshot()) == {SHORT_CHECKPOINT}
    output = program(f"{SHORT} --resume")
    assert output.code == 0
    assert "12/12" in output.err[-1]  # the bar
    assert snapshot() == whole


def test_a_checkpoint_has_the_whole_run_in_it(tmp_path):
    """However long it was."""
    dice = random.Random(0)
    kept, other = main.Run(Meta()), main.Run(Meta())
    kept.losses = [dice.random() for _ in range(123_456)]
    kept.validation_losses = [math.inf, *(dice.random() for _ in range(123))]
    kept.best_weights = good_weights()
    for parameter in kept.meta.net.parameters():
        parameter.grad = torch.rand_like(parameter)
    kept.meta.outer_optim.step()
    kept.save(tmp_path / "checkpoint.pt")
    other.load(tmp_path / "checkpoint.pt")
    assert other.losses == kept.losses
    assert other.validation_losses == kept.validation_losses
    for name, parameter in other.meta.net.Param.items():
        assert torch.equal(parameter, kept.meta.net.Param[name])
        assert torch.equal(other.best_weights[name], kept.best_weights[name])
        for key, tensor in kept.meta.outer_optim.state[kept.meta.net.Param[name]].items():
            assert torch.equal(tensor, other.meta.outer_optim.state[parameter][key])


def test_checkpoints_come_by_the_clock(program, monkeypatch):
    """Every 5 seconds, however long an iteration takes: here 2 seconds, and an eighth."""
    for seconds, every in ((2.0, 3), (0.125, 41)):
        saved, save = [], main.Run.save
        with monkeypatch.context() as patch:
            patch.setattr(main, "CHECKPOINT_EVERY", 5)
            patch.setattr(main.Run, "save", lambda run, path: (saved.append(len(run.losses)), save(run, path)))  # noqa: B023
            clock = itertools.count()
            patch.setattr(main.time, "monotonic", lambda: seconds * (next(clock) - len(saved)))  # noqa: B023
            assert program("--epochs 120 --batch_size 1").code == 0
        assert saved == [*range(every, 120, every), 120]
    assert re.findall(r"^CHECKPOINT_EVERY = (\d+)", MAIN.read_text(), re.MULTILINE) == ["5"]


def test_a_run_in_progress_writes_its_checkpoint_and_nothing_else(program, monkeypatch):
    """Another of the same name that has finished may have its files there: they stay, however this one is stopped."""
    put(SHORT_WEIGHTS, saved(good_weights()))
    put(SHORT_GRAPH, b"a graph")
    before = snapshot()
    assert program(SHORT, interrupt_at=12).code == 130
    after = snapshot()
    assert after.pop(SHORT_CHECKPOINT)
    assert after == before
    assert program(f"{SHORT} --resume").code == 0
    assert set(snapshot()) == set(before)
    assert not any(snapshot()[path] == before[path] for path in before)


def test_a_run_stopped_after_its_last_iteration_only_writes_its_files(program, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    assert program(SHORT).code == 0
    whole = snapshot()
    for path in whole:
        os.remove(path)
    with monkeypatch.context() as patch:
        patch.setattr(main, "draw_losses", killed)
        assert program(SHORT).code == 130
    assert set(snapshot()) == {SHORT_CHECKPOINT, SHORT_WEIGHTS}
    monkeypatch.setattr(Meta, "adapt", None)  # which would be needed for one more iteration or validation
    assert program(f"{SHORT} --resume").code == 0
    assert snapshot() == whole


def test_what_is_printed_comes_after_the_end_of_the_checkpoint(program, monkeypatch):
    """Behind `| head -1` nothing can be printed: the run has finished all the same."""
    lines = []

    def print_one_line(*args, **kwargs):
        lines.append(args)
        if len(lines) == 2:
            assert set(snapshot()) == {SHORT_WEIGHTS, SHORT_GRAPH}
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        print(*args, **kwargs)

    monkeypatch.setattr(main, "print", print_one_line, raising=False)
    assert program(SHORT).code == 2
    assert len(lines) == 3
    assert set(snapshot()) == {SHORT_WEIGHTS, SHORT_GRAPH}


def test_a_checkpoint_is_a_file_of_the_best_weights_so_far(program):
    """Of the initial ones before the first validation. So an unfinished run can be measured."""
    torch.manual_seed(0)
    initial = good_weights()
    assert program(SHORT, interrupt_at=5).code == 130
    checkpoint = torch.load(SHORT_CHECKPOINT)
    assert all(torch.equal(checkpoint[name], w) for name, w in initial.items())
    assert not any(torch.equal(checkpoint["net"][name], w) for name, w in initial.items())

    assert program(f"{SHORT} --resume", interrupt_at=3).code == 130  # two iterations after the validation
    weights = {name: torch.load(SHORT_CHECKPOINT)[name] for name in initial}
    assert not any(torch.equal(weights[name], w) for name, w in initial.items())
    put("w.pt", saved(weights))
    measured = [program("--test", "--weights", path) for path in (SHORT_CHECKPOINT, "w.pt")]
    assert [output.code for output in measured] == [0, 0]
    assert [line for line in measured[0].out[3:] if "png" not in line] == measured[1].out[3:-1]


def test_a_keyboard_interrupt_outside_of_the_loop_is_one_sentence(program, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    put(WEIGHTS, saved(good_weights()))
    monkeypatch.setattr(main, "evaluate", interrupted)
    output = program("--test")
    assert output.code == 130
    assert len(output.err) == 1


def test_a_new_run_does_not_replace_one_that_was_stopped(program):
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
    if at > 1:
        put("checkpoint.pt", after.pop(SHORT_CHECKPOINT))
        assert len(torch.load("checkpoint.pt")["losses"]) == at - 1
    assert after == before


def test_a_loss_that_grows_beyond_all_bounds_ends_training_and_changes_no_file(program):
    path = "weights/w(k=10,epochs=12,outer_lr=1e+200).pt"
    put(path, saved(good_weights()))
    before = snapshot()
    output = program("--epochs 12 --outer_lr 1e200")
    assert output.code == 2
    assert "Traceback" not in "".join(output.err)
    assert re.search(r"the loss is (inf|nan) at iteration 2: .*--outer_lr", output.err[-1])
    assert before.items() <= snapshot().items()
    assert set(snapshot()) == {path, path.replace("w(", "checkpoint(")}


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


def test_a_checkpoint_of_a_longer_run_is_refused(program, monkeypatch):
    """Somebody has renamed it."""
    assert program(SHORT, interrupt_at=12).code == 130
    os.rename(SHORT_CHECKPOINT, SHORT_CHECKPOINT.replace("12", "4"))
    before = snapshot()
    assert "11 iterations" in program("--epochs 4 --resume").refusal
    assert snapshot() == before


def test_validation_keeps_no_graph_for_second_derivatives(monkeypatch):
    """It would take many times the memory of a training iteration."""
    adapt, orders = Meta.adapt, []
    monkeypatch.setattr(Meta, "adapt", lambda meta, *rest: (orders.append(meta.first_order), adapt(meta, *rest))[1])
    run = main.Run(Meta())
    run.validate(Sinusoid(10, num_tasks=20).batch(range(20)))
    assert orders == [True]
    assert not run.meta.first_order


def test_a_program_without_a_terminal_trains(program, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert program(SHORT).code == 0
    assert set(snapshot()) == {SHORT_WEIGHTS, SHORT_GRAPH}


@pytest.mark.parametrize("ending", ["weights/w(", "res/loss_final("])
def test_a_result_that_cannot_be_written_costs_one_line_and_leaves_the_checkpoint(program, ending):
    assert program(SHORT).code == 0
    whole = snapshot()
    (path,) = (path for path in whole if path.startswith(ending))
    for name in whole:
        os.remove(name)
    os.mkdir(path)  # which no file can replace
    output = program(SHORT)
    assert output.code == 2
    assert output.err[-1] == f"main.py: {path} can't be written: Is a directory"
    assert SHORT_CHECKPOINT in snapshot()
    os.rmdir(path)
    assert program(f"{SHORT} --resume").code == 0
    assert snapshot() == whole


def test_what_cannot_be_written_is_said_with_the_first_checkpoint(program):
    Path("weights").write_text("a file")
    output = program("--epochs 1000000")
    assert output.code == 2
    assert output.err[-1] == "main.py: weights/checkpoint(k=10,epochs=1000000).pt can't be written: File exists"
    assert set(snapshot()) == {"weights"}


# Checkpoints that anybody may have made


@pytest.fixture
def checkpoint(program):
    """The checkpoint of a run that was interrupted after 7 iterations and one validation, as a dictionary."""
    assert program(SHORT, interrupt_at=8).code == 130
    return torch.load(SHORT_CHECKPOINT)


FIELDS = ["w_1", "b_1", "w_2", "b_2", "w_3", "b_3", "net", "outer_optim", "losses", "validation_losses"]
MALFORMED = {"text": "five", "None": None, "-1": -1, "a list": [[1]], "empty": {}}


def assert_refused(program, content):
    Path(SHORT_CHECKPOINT).write_bytes(content)
    before = snapshot()
    assert SHORT_CHECKPOINT in program(f"{SHORT} --resume").refusal
    assert snapshot() == before


def test_the_fields_of_a_checkpoint_are_these(checkpoint):
    """Else the cases below leave some out."""
    assert list(checkpoint) == FIELDS
    assert len(checkpoint["losses"]) == 7
    assert len(checkpoint["validation_losses"]) == 1


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_a_checkpoint_that_is_missing_or_of_another_type_is_refused(program, checkpoint, field):
    for malformed in MALFORMED.values():
        assert_refused(program, saved({**checkpoint, field: malformed}))
    assert_refused(program, saved({key: value for key, value in checkpoint.items() if key != field}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"no checkpoint\n",
        lambda content: content[:-1000],
        lambda content: content[: len(content) // 2],
        lambda content: content[1000:],
    ],
)
def test_a_damaged_checkpoint_is_refused(program, checkpoint, damage):
    assert_refused(program, damage(Path(SHORT_CHECKPOINT).read_bytes()))


def test_a_checkpoint_with_a_flipped_bit_is_refused_or_means_the_same(program, checkpoint, tmp_path):
    """A weight or a loss that is a little off would go on to a wrong result, and nobody would know."""
    whole, dice, refused = Path(SHORT_CHECKPOINT).read_bytes(), random.Random(0), 0
    for _ in range(300):
        content = bytearray(whole)
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        put("checkpoint.pt", content)
        run = main.Run(Meta())
        try:
            run.load(Path("checkpoint.pt"))
        except InputError:
            refused += 1
            continue
        assert run.losses == checkpoint["losses"].tolist()
        assert run.validation_losses == checkpoint["validation_losses"].tolist()
        for name, w in checkpoint["net"].items():
            assert torch.equal(run.best_weights[name], checkpoint[name])
            assert torch.equal(run.meta.net.Param[name], w)
        for number, parameter in enumerate(run.meta.net.parameters()):
            for key, tensor in checkpoint["outer_optim"]["state"][number].items():
                assert torch.equal(run.meta.outer_optim.state[parameter][key], tensor)
    assert refused > 150  # what is left over is in names, dates and padding that nobody reads


# Writing files


def test_a_save_that_is_killed_leaves_a_file_that_loads(tmp_path):
    path = tmp_path / "w.pt"
    save = "main.write(path, lambda file: main.torch.save(main.Net().state_dict(), file))"
    forever = f"import main\npath = main.Path({str(path)!r})\n{save}\nprint(1, flush=True)\nwhile True: {save}"
    moments = random.Random(0)
    process = subprocess.Popen([sys.executable, "-c", forever], cwd=MAIN.parent, stdout=subprocess.PIPE)
    process.stdout.readline()
    for _ in range(120):  # it is stopped and looked at, and at last killed
        time.sleep(moments.uniform(0, 0.01))
        process.send_signal(signal.SIGSTOP)
        main.load(path)
        process.send_signal(signal.SIGCONT)
    process.kill()
    process.communicate()
    main.load(path)


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
    main.write(path, lambda file: file.write(b"new"))
    assert order[:2] == [("fsync", b"new", True), ("replace", True, b"old")]
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_never_share_a_temporary_one(tmp_path, monkeypatch):
    """The second begins and ends while the first is at it, in the same process or in another."""
    path, sources, replace = tmp_path / "file", [], os.replace

    def interrupted_replace(source, target):
        sources.append(source)
        if len(sources) == 1:
            main.write(path, lambda file: file.write(b"second"))
            assert path.read_bytes() == b"second"
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted_replace)
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as two containers with one folder may have
    main.write(path, lambda file: file.write(b"first"))
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
        main.write(path, fail if failing == "save" else lambda file: file.write(b"new"))
    if isinstance(error, OSError) and failing != "save":
        assert str(raised.value) == f"{path} can't be written: No space left on device"
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_costs_one_line_and_no_file(program):
    """No file may grow past 4 KiB: neither weights nor graphs fit."""
    put(SHORT_WEIGHTS, saved(good_weights()))
    put(SHORT_GRAPH, b"an earlier graph")
    before = snapshot()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        output = program(SHORT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert output.code == 2
    assert output.err[-1] == f"main.py: {SHORT_CHECKPOINT} can't be written: File too large"
    assert snapshot() == before


def test_a_name_that_is_too_long_is_refused(program):
    name = "w" * 230 + ".pt"
    put(name, saved(good_weights()))
    output = program("--test", "--weights", name)
    assert output.code == 2
    assert "can't be written: File name too long" in output.err[-1]


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
    "--inner_steps 101",
    "--loss mae",
    "--no_such_flag 7",
    "--epoch 7",
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
    "with nan": lambda: saved({**good_weights(), "b_3": torch.tensor([math.nan], dtype=torch.float64)}),
    "with inf": lambda: saved({**good_weights(), "b_3": torch.tensor([math.inf], dtype=torch.float64)}),
    "not tensors": lambda: saved({name: 1.0 for name in good_weights()}),
    "sparse": lambda: saved({**good_weights(), "w_2": torch.eye(40, dtype=torch.float64).to_sparse()}),
    "without memory": lambda: saved({**good_weights(), "w_2": torch.zeros(40, 40, dtype=torch.float64, device="meta")}),
    "nested": lambda: saved({**good_weights(), "b_2": torch.nested.nested_tensor([torch.zeros(40).double()])}),
}


def folder_for_weights():
    os.makedirs(WEIGHTS)


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
    (nothing, "--test", [WEIGHTS, "without --test"]),
    (nothing, "--test --weights x.pt", ["x.pt", "--weights"]),
    (nothing, "--resume", [CHECKPOINT, "--resume"]),
    (folder_for_weights, "--test", [WEIGHTS]),
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
    output = program("--test")
    assert output.code == 2
    assert output.err[-1].startswith("main.py: weights/w(k=10,inner_steps=0).pt ")
    assert snapshot() == before


@pytest.mark.parametrize("path", ["res/graph(k=10).png", "res/steps(k=10).png"])
def test_a_graph_that_cannot_be_written_costs_one_line(program, path):
    put(WEIGHTS, saved(good_weights()))
    os.makedirs(path)
    output = program("--test")
    assert output.code == 2
    assert output.err[-1] == f"main.py: {path} can't be written: Is a directory"


def test_compiling_without_a_compiler_costs_one_line_that_names_it(tmp_path):
    environment = {**os.environ, "CXX": "/no/such/compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    output = run(tmp_path, "--epochs", "5", "--compile", env=environment)
    assert output.returncode == 2
    last = output.stderr.splitlines()[-1]
    assert re.match(r"main\.py: --compile failed: .*C\+\+ compiler.*/no/such/compiler", last)
    assert "Traceback" not in output.stderr
    assert not list(tmp_path.rglob("*.p*"))


# Weights that anybody may have made


def test_anybody_can_load_the_weights(program):
    """They are a plain state_dict, on the CPU."""
    assert program(SHORT).code == 0
    weights = torch.load(SHORT_WEIGHTS)
    Net().load_state_dict(weights)
    assert all(type(w) is torch.Tensor and not w.requires_grad and w.device.type == "cpu" for w in weights.values())


@pytest.mark.parametrize(
    "kind",
    [
        dict,
        lambda weights: {**weights, "w_4": 1, 5: "five"},
        lambda weights: {n: torch.nn.Parameter(w) for n, w in weights.items()},
    ],
)
def test_six_sound_weights_load_whatever_is_beside_them(program, kind):
    weights = good_weights()
    put(WEIGHTS, saved(kind(weights)))
    content = main.load(Path(WEIGHTS))
    assert all(torch.equal(content[name], w) for name, w in weights.items())
    assert program("--test").code == 0


def test_weights_of_any_device_load(tmp_path, monkeypatch):
    """The file of a GPU differs from a CPU's in the device tag of its tensors alone."""
    weights = good_weights()
    for tag in ("cuda:0", "cuda:7", "mps"):
        with monkeypatch.context() as patch:
            patch.setattr(torch.serialization, "location_tag", lambda storage: tag)  # noqa: B023
            content = saved(weights)
        assert tag.encode() in content
        put(tmp_path / "w.pt", content)
        assert torch.equal(main.load(tmp_path / "w.pt")["w_2"], weights["w_2"])


@pytest.mark.parametrize(("dump", "load"), [(pickle.dumps, pickle.loads), (saved, restored)])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, dump, load):
    code, path = tmp_path / "code was run", tmp_path / "w.pt"
    path.write_bytes(dump({**good_weights(), "b_3": Code(code)}))
    with pytest.raises(InputError, match=r"w\.pt"):
        main.load(path)
    assert not code.exists()
    load(path.read_bytes())
    assert code.exists()  # elsewhere it is dangerous


def test_mutated_weights_load_as_they_were_or_are_refused(tmp_path):
    """400 files with bytes flipped, cut out or put in."""
    dice, weights, refused = random.Random(0), good_weights(), 0
    for _ in range(400):
        content = bytearray(saved(weights))
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
        put(tmp_path / "w.pt", content)
        try:
            loaded = main.load(tmp_path / "w.pt")
        except InputError:
            refused += 1
        else:
            assert all(torch.equal(loaded[name], w) for name, w in weights.items())
    assert 200 < refused < 400  # the rest is in names, dates and padding that nobody reads
