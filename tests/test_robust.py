"""No run is lost, no stranger's code is run, and bad input costs one line."""

import io
import itertools
import math
import os
import pickle
import sys
import time
import zipfile
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from command_line import MAIN, run, start

import main
from meta import Meta
from net import Net

SHORT, RESUME = "--epochs 12", "--epochs 12 --resume"
WEIGHTS = "weights/w(k=10,epochs=12).pt"
CHECKPOINT = "weights/checkpoint(k=10,epochs=12).pt"
GRAPH = "res/loss_final(k=10,epochs=12).png"
EARLIER = {WEIGHTS: b"weights of an earlier run", GRAPH: b"a graph of an earlier run"}
CHECKPOINT_EVERY = main.CHECKPOINT_EVERY  # as it is, before a test sets another
IMPORT_MAIN = f"import sys; sys.path.insert(0, {str(MAIN.parent)!r}); import main"


def snapshot(root="."):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}


def leave_only(files):
    """Make these the only files here. One without content is a folder."""
    for path in snapshot():
        os.remove(path)
    for path, content in files.items():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).mkdir() if content is None else Path(path).write_bytes(content)


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def until(number, function, other):
    """`function`, but `other` instead of it from the call of this number on."""
    calls = itertools.count(1)
    return lambda *args: function(*args) if next(calls) < number else other(*args)


@pytest.fixture(autouse=True)
def quick_graph(monkeypatch):
    """The numbers of the loss graph are written in its place, because to draw it takes longer than a short run."""

    def write_numbers(path, args, run):
        main.write(path, lambda file: file.write(repr((run.losses, run.validation_losses)).encode()))

    monkeypatch.setattr(main, "draw_losses", write_numbers)


@pytest.fixture
def whole(program):
    """What the short run leaves when nothing stops it. The folder is empty again."""
    assert program(SHORT).code == 0
    files = snapshot()
    assert files.keys() == EARLIER.keys()
    leave_only({})
    return files


@pytest.fixture
def stopped(program):
    """The checkpoint of the short run after 7 iterations and one validation. It is the only file."""
    assert program(SHORT, interrupt_at=8).code == 130
    return torch.load(CHECKPOINT)


def test_a_killed_run_ends_bit_identical(tmp_path, monkeypatch):
    """Each iteration of the process sleeps for 10 ms, so that the kill comes long before the last."""
    words = ["--epochs", "300", "--batch_size", "1"]
    checkpoint = tmp_path / "weights" / "checkpoint(k=10,epochs=300,batch_size=1).pt"
    slow = "step = main.Meta.__call__; main.Meta.__call__ = lambda *batch: main.time.sleep(0.01) or step(*batch)"
    command = (sys.executable, "-c", f"{IMPORT_MAIN}; main.CHECKPOINT_EVERY = 0.05; {slow}; main.main()")
    process = start(tmp_path, *words, command=command)
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.01)
    time.sleep(0.05)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode != 0
    assert "Traceback" not in errors
    assert [path for path in snapshot(tmp_path) if not path.endswith(".tmp")] == [f"weights/{checkpoint.name}"]
    monkeypatch.chdir(tmp_path)
    main.main([*words, "--resume"])
    resumed = {path: content for path, content in snapshot(tmp_path).items() if not path.endswith(".tmp")}
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    main.main(words)
    assert snapshot() == resumed


@pytest.mark.parametrize("call", [2, 5, 6, 7, 14, 15])
def test_an_interrupted_run_goes_on_bit_identical(program, monkeypatch, whole, call):
    """Every iteration takes the query loss once, and the validations take it for the 6th, 12th and 15th time."""
    leave_only(EARLIER)
    with monkeypatch.context() as patch:
        patch.setattr(Meta, "query_loss", until(call, Meta.query_loss, Mock(side_effect=KeyboardInterrupt)))
        output = program(SHORT)
    assert output.code == 130
    assert output.err[-1] == "main.py: interrupted; --resume goes on from the last checkpoint, if there is one"
    assert snapshot() == {**EARLIER, CHECKPOINT: Path(CHECKPOINT).read_bytes()}
    assert any(program(RESUME, interrupt_at=4).code == 0 for _ in range(4))  # interrupted again after 3 iterations
    assert snapshot() == whole


@pytest.mark.parametrize(("seconds", "first"), [(2.0, 3), (0.125, 41)])
def test_a_checkpoint_comes_with_the_first_iteration_after_five_seconds(program, monkeypatch, seconds, first):
    now, times, step = [0.0], [], Meta.__call__

    def slow_step(meta, *batch):
        now[0] += seconds
        return step(meta, *batch)

    monkeypatch.setattr(Meta, "__call__", slow_step)
    monkeypatch.setattr(main.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(main, "write", lambda path, save: times.append((path.name[:10], now[0])))
    monkeypatch.setattr(main, "CHECKPOINT_EVERY", CHECKPOINT_EVERY)
    assert program("--epochs 120 --batch_size 1").code == 0
    assert {at / seconds for name, at in times if name == "checkpoint"} == {*range(first, 120, first), 120}


def test_a_checkpoint_has_the_weights_of_the_best_validation_and_before_it_those_of_now(program, monkeypatch):
    def weights(prefix=""):
        checkpoint = torch.load(CHECKPOINT)
        return torch.cat([checkpoint[prefix + name].flatten() for name in Net().Param])

    assert program(SHORT, interrupt_at=2).code == 130
    assert torch.equal(weights(), weights("net."))
    assert program(RESUME, interrupt_at=5).code == 130  # in the iteration after the validation
    best = weights()
    assert torch.equal(best, weights("net."))
    monkeypatch.setattr(main.Run, "lowest", lambda run: 0.0)  # every other validation is worse
    assert program(RESUME, interrupt_at=7).code == 130
    assert torch.equal(best, weights())
    assert not torch.equal(best, weights("net."))


def test_a_renamed_checkpoint_goes_on_with_the_learning_rate_of_its_name(stopped):
    run = main.Run(Meta(outer_lr=0.002), 12)
    run.load(CHECKPOINT)
    assert run.meta.outer_optim.param_groups[0]["lr"] == 0.002


@pytest.mark.parametrize("result", [WEIGHTS, GRAPH])
@pytest.mark.parametrize("validate_every", [4, 5])  # the last of twelve iterations is validated anyway, or as the last
def test_a_result_that_cannot_be_written_costs_one_line_and_no_iteration(program, monkeypatch, result, validate_every):
    monkeypatch.setattr(main, "VALIDATE_EVERY", validate_every)
    assert program(SHORT).code == 0
    whole = snapshot()
    leave_only({result: None})  # a folder, which no file can replace
    output = program(SHORT)
    assert output.code == 2
    assert output.err[-1].startswith(f"main.py: {result} can't be written: ")
    os.rmdir(result)
    monkeypatch.setattr(Meta, "query_loss", None)  # an iteration or a validation would call it
    assert program(RESUME).code == 0
    assert snapshot() == whole


def test_a_run_has_finished_before_its_last_words_and_needs_no_terminal_for_them(program, monkeypatch, whole):
    def broken_print(*words, **options):
        if str(words[0]).startswith("weights: "):
            raise BrokenPipeError("Broken pipe")

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert program(SHORT).code == 0
    assert snapshot() == whole
    leave_only({})
    monkeypatch.setattr(main, "print", broken_print, raising=False)
    assert program(SHORT).code == 2
    assert snapshot() == whole


@pytest.mark.parametrize(("at", "loss"), [(1, math.nan), (7, math.inf), (12, math.nan)])
def test_a_loss_that_is_not_finite_ends_the_run_in_its_iteration_with_advice_that_works(program, monkeypatch, at, loss):
    leave_only(EARLIER)
    with monkeypatch.context() as patch:
        patch.setattr(Meta, "__call__", until(at, Meta.__call__, Mock(return_value=loss)))
        output = program(SHORT)
    assert output.code == 2
    assert output.err[-1].startswith(f"main.py: the loss is {loss} at iteration {at}: ")
    assert all(word in output.err[-1] for word in ("--inner_lr", "--outer_lr", f"{CHECKPOINT} exists", "delete it"))
    assert EARLIER.items() <= snapshot().items()
    assert snapshot().keys() - EARLIER.keys() == ({CHECKPOINT} if at > 1 else set())
    if at > 1:
        assert len(torch.load(CHECKPOINT)["losses"]) == at - 1
        assert program("--test", "--weights", CHECKPOINT).code == 0
    leave_only({})
    assert program(SHORT).code == 0


def test_a_run_without_a_finite_validation_has_no_result(program):
    output, checkpoint = program("--epochs 1 --outer_lr 1e200"), "weights/checkpoint(k=10,epochs=1,outer_lr=1e+200).pt"
    assert output.code == 2
    assert output.err[-1].startswith("main.py: no validation loss was finite: try a smaller --inner_lr")
    assert f"{checkpoint} exists" in output.err[-1]
    assert set(snapshot()) == {checkpoint}


# Files that anybody may have made

CHANGES = {
    "another length": lambda tensor: torch.cat([tensor, tensor]),
    "another dimension": lambda tensor: tensor.unsqueeze(0),
    "one number": lambda tensor: tensor.flatten()[0],
    "stride 0": lambda tensor: tensor.flatten()[:1].expand_as(tensor),
    "transposed": lambda tensor: tensor.t().contiguous().t(),
    "another dtype": torch.Tensor.float,
    "nan": lambda tensor: tensor.where(tensor != tensor.flatten()[-1], math.nan),
    "inf": lambda tensor: tensor.where(tensor != tensor.flatten()[-1], math.inf),
    "-inf": lambda tensor: tensor.where(tensor != tensor.flatten()[-1], -math.inf),
    "a list": torch.Tensor.tolist,
    "missing": lambda tensor: None,
}


def resume(program, content):
    """The exit code of `--resume` from a checkpoint with this content. A refusal is one line and touches no file."""
    leave_only({CHECKPOINT: content, **EARLIER})
    output = program(RESUME)
    if output.code != 0:
        assert output.refusal.startswith(f"main.py: {CHECKPOINT} ")
        assert snapshot() == {CHECKPOINT: content, **EARLIER}
    return output.code


def test_a_checkpoint_and_a_file_of_weights_are_dictionaries_of_these_plain_tensors(whole, stopped):
    weights, lists = torch.load(io.BytesIO(whole[WEIGHTS])), {"losses": (7,), "validation_losses": (1,)}
    Net().load_state_dict(weights)
    shapes = {f"{key}{n}": w.shape for key in ("", "net.", "exp_avg.", "exp_avg_sq.") for n, w in weights.items()}
    assert {name: tensor.shape for name, tensor in stopped.items()} == {**shapes, **lists}
    for tensor in (*stopped.values(), *weights.values()):
        kind = (type(tensor), tensor.dtype, tensor.device.type, tensor.requires_grad)
        assert kind == (torch.Tensor, torch.float64, "cpu", False)


def test_a_changed_tensor_in_a_checkpoint_is_refused_or_makes_no_difference(program, whole, stopped):
    for (change, function), (name, tensor) in itertools.product(CHANGES.items(), stopped.items()):
        changed = {**stopped, name: function(tensor)}
        if resume(program, saved({key: value for key, value in changed.items() if value is not None})) == 0:
            same = isinstance(changed[name], torch.Tensor) and torch.equal(changed[name], tensor)
            assert same or (change, name) == ("inf", "validation_losses")
            assert {**snapshot(), GRAPH: whole[GRAPH]} == whole  # the graph shows the inf


def test_a_damaged_checkpoint_or_another_file_is_refused(program, stopped):
    weights, content = dict(Net().state_dict()), saved(stopped)
    nested = {**weights, "net": weights, "outer_optim": {}, "losses": [1.0], "validation_losses": [1.0]}
    for other in (b"", b"text\n", content[:-100], content[100:], saved(weights), saved([1, 2]), saved(nested)):
        assert resume(program, other) == 2
    for tensor in stopped.values():
        flipped = bytearray(content)
        flipped[content.index(tensor.numpy().tobytes())] ^= 1  # a bit in the last digit of a number
        assert resume(program, bytes(flipped)) == 2
    for losses, validations in ((7, 0), (7, 2), (12, 0), (12, 2), (13, 2), (13, 3)):  # which no run of 12 has
        lists = {"losses": torch.ones(losses).double(), "validation_losses": torch.ones(validations).double()}
        assert resume(program, saved({**stopped, **lists})) == 2


def test_code_in_a_file_is_not_run(program, stopped):
    class Code:
        def __reduce__(self):
            return os.mkdir, ("made by code",)

    for dump in (pickle.dumps, saved):
        assert resume(program, dump({**stopped, "w_1": Code()})) == 2
        assert CHECKPOINT in program("--test", "--weights", CHECKPOINT).refusal
    assert not os.path.exists("made by code")
    torch.load(CHECKPOINT, weights_only=False)
    assert os.path.exists("made by code")  # elsewhere it is dangerous


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_no_file_crashes_the_program_or_makes_it_say_more_than_a_line(tmp_path, program, stopped):
    with zipfile.ZipFile("nested.pt", "w") as archive:  # of a dictionary with tuples in tuples for a key
        archive.writestr("archive/DATA.PKL", b"\x80\x02})" + b"\x85" * 3_000_000 + b"K\x01s.")
        archive.writestr("archive/version", "3\n")
    with zipfile.ZipFile(CHECKPOINT) as sound, zipfile.ZipFile("packed.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in sound.namelist():
            packed.writestr(name, sound.read(name))
    torch.save({**stopped, "w_2": stopped["w_2"].to_sparse_csr()}, "warning.pt")
    torch.save({**stopped, "exp_avg.w_2": torch.zeros(1, 1).double()}, CHECKPOINT)
    commands = [["--test", "--weights", path] for path in ("nested.pt", "packed.pt", "warning.pt")] + [RESUME.split()]
    loop = f"for words in {commands}:\n with contextlib.suppress(SystemExit): main.main(words)"
    child = run(tmp_path, command=(sys.executable, "-c", f"{IMPORT_MAIN}, contextlib\n{loop}"))
    assert child.returncode == 0
    refused = [line.removeprefix("main.py: ").split(" is ")[0] for line in child.stderr.splitlines()]
    assert refused == ["nested.pt", "packed.pt", "warning.pt", CHECKPOINT]


@pytest.mark.parametrize("tag", ["cpu", "cuda:7", "mps"])
def test_parameters_of_any_device_load_whatever_is_beside_them(tmp_path, monkeypatch, tag):
    """The file of a GPU differs from a CPU's in the device tag of its tensors alone."""
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: tag)
    net, other = Net(), Net()
    (tmp_path / "w.pt").write_bytes(saved({**net.Param, "w_4": 1, 5: "five"}))
    assert tag.encode() in (tmp_path / "w.pt").read_bytes()
    main.load(tmp_path / "w.pt", other.Param)
    assert all(torch.equal(other.Param[name], w) for name, w in net.Param.items())


def test_a_file_is_synced_before_it_is_moved_and_no_two_writers_share_one(tmp_path, monkeypatch):
    """The second writer begins and ends while the first moves its file."""
    path, synced, fsync, replace = tmp_path / "file", {}, os.fsync, os.replace

    def noted_fsync(number):
        synced[os.fstat(number).st_ino] = os.fstat(number).st_size
        fsync(number)

    def noted_replace(source, target):
        assert os.stat(source).st_size == synced[os.stat(source).st_ino]
        if len(synced) == 1:
            main.write(path, lambda file: file.write(b"second"))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    main.write(path, lambda file: file.write(b"first"))
    assert list(synced.values()) == [5, 6]
    assert snapshot(tmp_path) == {"file": b"first"}


@pytest.mark.parametrize("failing", ["save", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError(), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_everything_as_it_was(tmp_path, monkeypatch, failing, error):
    (tmp_path / "file").write_bytes(b"old")
    fail = Mock(side_effect=error)
    if failing != "save":
        monkeypatch.setattr(os, failing, fail)
    with pytest.raises(type(error)) as raised:
        main.write(tmp_path / "file", fail if failing == "save" else lambda file: file.write(b"new"))
    if isinstance(error, OSError) and failing != "save":
        assert str(raised.value) == f"{tmp_path / 'file'} can't be written: No space left on device"
    assert snapshot(tmp_path) == {"file": b"old"}


def test_a_full_disk_is_said_with_the_first_checkpoint(program):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # bytes of a file
    try:
        output = program("--epochs 1000000")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert output.code == 2
    assert output.err[-1] == "main.py: weights/checkpoint(k=10,epochs=1000000).pt can't be written: File too large"
    assert snapshot() == {}


# What the program is told

BAD_VALUES = {
    "--epochs": "0 10000001 1.5 ten",
    "--batch_size": "0 10001",
    "--k_shot": "0 1001",
    "--test --test_shots": "0 1001 1.5",
    "--inner_lr": "0 -0.01 1e301 nan",
    "--outer_lr": "0 1e-301 1e301 nan fast",
    "--seed": "-1 4294967296 0.5",
    "--inner_steps": "-1 101",
    "--loss": "mae",
    "--epoch": "7",
}
ENDS = [
    "--epochs 1 --batch_size 1 --k_shot 1 --inner_lr 1e-300 --outer_lr 1e-300 --seed 0 --inner_steps 0",
    "--test --test_shots 1 --epochs 10000000 --batch_size 10000 --k_shot 1000 --inner_lr 1e300 --outer_lr 1e300",
    "--test --test_shots 1000 --seed 4294967295 --inner_steps 100",
]
LONG = "w" * 230 + ".pt"
REFUSED = [
    *((f"{flags} {value}", flags.split()[-1]) for flags, values in BAD_VALUES.items() for value in values.split()),
    ("--test --resume", "--resume is not for --test"),
    ("--test --compile", "--compile is not for --test"),
    ("--weights x.pt", "--weights x.pt needs --test"),
    ("--test_shots 5", "--test_shots 5 needs --test"),
    ("--test", "there are no weights weights/w(k=10).pt: "),
    ("--test --weights x.pt", "there are no weights x.pt: "),
    (SHORT, f"{CHECKPOINT} belongs to an unfinished run: add --resume"),
    (f"{RESUME} --seed 1", "no checkpoint weights/checkpoint(k=10,epochs=12,seed=1).pt: "),
    ("--test --weights folder", "'folder'"),
    ("--test --weights text.pt", "text.pt is damaged"),
    ("--test --seed 2", "weights/w(k=10,seed=2,inner_steps=0).pt is damaged"),
    ("--test --seed 3", "res/graph(k=10,seed=3).png can't be written: "),
    (f"--test --weights {LONG}", ".png can't be written: File name too long"),
]


@pytest.mark.parametrize(("words", "sentence"), REFUSED)
def test_what_cannot_be_done_costs_one_line_and_no_file(program, words, sentence):
    good, files = saved(Net().state_dict()), {CHECKPOINT: b"a checkpoint", "text.pt": b"text", "folder": None}
    files |= {"weights/w(k=10,seed=2).pt": good, "weights/w(k=10,seed=2,inner_steps=0).pt": good[:-9]}
    leave_only({**files, LONG: good, "weights/w(k=10,seed=3).pt": good, "res/graph(k=10,seed=3).png": None})
    before = snapshot()
    output = program(words)
    assert output.code == 2
    assert [line for line in output.err if line.startswith("main.py: ")] == output.err[-1:]
    assert sentence in output.err[-1]
    assert snapshot() == before


@pytest.mark.parametrize("words", ENDS)
def test_the_ends_of_a_range_belong_to_it(words):
    main.parse(words.split())


def test_an_interrupted_measurement_is_one_sentence_without_advice(program, monkeypatch):
    torch.save(Net().state_dict(), "w.pt")
    monkeypatch.setattr(main, "evaluate", Mock(side_effect=KeyboardInterrupt))
    output = program("--test --weights w.pt")
    assert (output.code, output.err) == (130, ["main.py: interrupted"])


@pytest.mark.parametrize("place", ["Sinusoid", "draw_losses"])
def test_an_error_of_the_program_itself_keeps_its_traceback(program, monkeypatch, place):
    monkeypatch.setattr(main, place, Mock(side_effect=KeyError("a bug")))
    with pytest.raises(KeyError, match="a bug"):
        program(SHORT)


def test_a_compiler_that_fails_is_quoted_and_its_cache_named(program, monkeypatch):
    text = "C++ compile error\n\nCommand:\ng++ x\n\nOutput:\nx.cpp:1:1: error: no\nmemory\n\n\nSet TORCHDYNAMO_VER"
    monkeypatch.setattr(Meta, "compile", Mock(side_effect=torch._dynamo.exc.TorchDynamoException(text)))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "a cache")
    refusal = program(f"{SHORT} --compile").refusal
    assert refusal.startswith("main.py: --compile failed: no memory; ")
    assert refusal.endswith("a cache")


def test_compiling_without_a_compiler_costs_one_line_that_names_it(program, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with torch._inductor.config.patch({"cpp.cxx": (None, "/no/such/compiler")}):  # as the environment's CXX does
        output = program(f"{SHORT} --inner_steps 0 --compile")
    assert output.code == 2
    assert output.err[-1].startswith("main.py: --compile failed: InvalidCxxCompiler: No working C++ compiler found")
    assert "/no/such/compiler" in output.err[-1]
