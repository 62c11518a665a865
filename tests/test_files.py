"""A file is written whole or not at all. A file that anybody may have made does no harm."""

import contextlib
import io
import math
import os
import pickle
import sys
import zipfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import ROOT, contents, leave_only, run, saved
from torch import Tensor

import main
from meta import Meta
from net import Net

SHORT, RESUME = "--epochs 12", "--epochs 12 --resume"
WEIGHTS = "weights/w(k=10,epochs=12).pt"
CHECKPOINT = "weights/checkpoint(k=10,epochs=12).pt"
MEASURE = f"--test --weights '{CHECKPOINT}'"


@pytest.fixture
def stopped(program):
    """The checkpoint of a short run after 7 iterations and one validation. It is the only file."""
    assert program(SHORT, interrupt_at=8).code == 130
    return torch.load(CHECKPOINT)


def refusal(program, content, words=RESUME):
    """What is said of a checkpoint with this content. It is refused, and no file is touched."""
    files = {CHECKPOINT: content, WEIGHTS: b"weights of an earlier run"}
    leave_only(files)
    sentence = program(words).refusal
    assert contents() == files
    assert sentence.startswith(f"main.py: {CHECKPOINT}")
    return sentence.removeprefix(f"main.py: {CHECKPOINT}")


def loaded(content):
    """The weights that `--test --weights` measures, of a file with this content."""
    Path("w.pt").write_bytes(content)
    return main.load(Path("w.pt"), main.parse([]), "cpu").net.state_dict()


def test_files_are_dictionaries_of_plain_tensors(program, stopped):
    """All hold six weights. A checkpoint also has those of now, Adam's moments, and the losses."""
    assert program(RESUME).code == 0
    weights = torch.load(WEIGHTS)
    Net().load_state_dict(weights)
    expected = {"losses", "validation_losses", *weights}
    for part in ("net", "exp_avg", "exp_avg_sq"):
        expected |= {f"{part}.{name}" for name in weights}
    assert stopped.keys() == expected
    for tensor in (*weights.values(), *stopped.values()):
        kind = (type(tensor), tensor.dtype, tensor.device.type, tensor.requires_grad)
        assert kind == (Tensor, torch.float64, "cpu", False)


@pytest.mark.parametrize("result", [WEIGHTS, "res/loss_final(k=10,epochs=12).png"])
@pytest.mark.parametrize("validate_every", [4, 5])  # 12 is a multiple, or is validated anyway
def test_a_result_that_cannot_be_written(program, monkeypatch, result, validate_every):
    """A result that can't be written costs one line, and no iteration is repeated for it."""
    monkeypatch.setattr(main, "write_picture", lambda path, _: main.write(path, lambda file: None))
    monkeypatch.setattr(main, "VALIDATE_EVERY", validate_every)
    assert program(SHORT).code == 0
    whole = contents()
    leave_only({result: None})  # a folder, which no file can replace
    output = program(SHORT)
    assert output.code == 2
    assert output.err[-1].startswith(f"main.py: {result} can't be written: ")
    os.rmdir(result)
    monkeypatch.setattr(Meta, "query_loss", None)  # an iteration or a validation would call it
    assert program(RESUME).code == 0
    assert contents() == whole


@pytest.mark.parametrize("failing", ["torch.save", "os.fsync", "os.replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space"), ValueError(), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_all_as_it_was(tmp_path, monkeypatch, failing, error):
    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(failing, Mock(side_effect=error))
    with pytest.raises(type(error)):
        main.save(tmp_path / "file", {"new": torch.ones(1)})
    assert contents(tmp_path) == {"file": b"old"}


def test_a_file_is_synced_before_it_is_moved(tmp_path, monkeypatch):
    """It is on the disk before it is moved, and no two writers share one."""
    path, synced, replace = tmp_path / "file", [], os.replace

    def noted_replace(source, target):
        assert synced[-1] == os.stat(source).st_size
        if len(synced) == 1:  # a second writer begins and ends while the first moves its file
            main.write(path, lambda file: file.write(b"second"))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
    monkeypatch.setattr(os, "replace", noted_replace)
    main.write(path, lambda file: file.write(b"first"))
    assert synced == [5, 6]
    assert contents(tmp_path) == {"file": b"first"}


def test_a_full_disk_is_said_with_the_first_checkpoint(program):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # bytes of a file
    try:
        output = program("--epochs 1000000")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    checkpoint = "weights/checkpoint(k=10,epochs=1000000).pt"
    assert output.code == 2
    assert output.err[-1] == f"main.py: {checkpoint} can't be written: File too large"
    assert contents() == {}


NOT_REAL = ": {name} is not a dense tensor of floating-point numbers"
WRONG = {
    "another length": (lambda w: torch.cat([w, w]), ": {name} has the shape {shape}, not "),
    "another dimension": (lambda w: w.unsqueeze(0), ": {name} has the shape {shape}, not "),
    "a scalar": (lambda w: w.flatten()[0], ": {name} has the shape [], not "),
    "integers": (Tensor.long, NOT_REAL),
    "sparse": (Tensor.to_sparse, NOT_REAL),
    "without data": (lambda w: w.to("meta"), NOT_REAL),
    "no tensor": (lambda w: 1.0, " has no tensor {name}"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_tensor_that_does_not_fit_is_named(program, stopped, kind):
    change, sentence = WRONG[kind]
    for name, tensor in stopped.items():
        changed = change(tensor)
        expected = sentence.format(name=name, shape=list(getattr(changed, "shape", [])))
        if kind == "another length" and name.endswith("losses"):
            expected = " does not fit this run: it has "
        content = saved({**stopped, name: changed})
        assert refusal(program, content).startswith(expected)
        if name in Net().Param:
            assert refusal(program, content, MEASURE).startswith(expected)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_only_the_six_weights_have_to_be_finite(program, stopped, number):
    """Whatever else is not finite is taken as it is, but for losses that no run can have."""
    for name, tensor in stopped.items():
        changed = tensor.where(tensor != tensor.flatten()[-1], number)
        content = saved({**stopped, name: changed})
        if name in Net().Param:
            assert refusal(program, content) == f": {name} is not finite"
        elif name.endswith("losses") and number != math.inf:
            assert refusal(program, content) == ": a loss is not a number"
        else:
            leave_only({CHECKPOINT: content})
            resumed = main.Run(Meta(), 12)
            resumed.load(Path(CHECKPOINT))
            restored = resumed.state()[name]
            torch.testing.assert_close(restored, changed, rtol=0, atol=0, equal_nan=True)


def test_another_file_is_refused_for_what_it_is(program, stopped):
    """The sentence says what is wrong. Only a file that is damaged is called so."""
    old = io.BytesIO()
    torch.save(stopped, old, _use_new_zipfile_serialization=False)
    for content in (b"", b"text\n", saved(stopped)[100:], old.getvalue()):
        sentence = refusal(program, content)
        assert sentence == " is not in the format of torch.save since PyTorch 1.6"
    arrays = io.BytesIO()
    np.savez(arrays, w_1=np.zeros((40, 1)))
    many = {str(number): torch.zeros(1) for number in range(300)}
    others = [saved(content) for content in ([1, 2], stopped["w_1"], Net(), many)]
    for content in (*others, arrays.getvalue()):
        sentence = refusal(program, content)
        assert sentence == " is not a plain dictionary of a few tensors"
    for content in (Net().state_dict(), {"net": stopped}):
        assert refusal(program, saved(content)) == " has no tensor losses"
    for done, validated in ((7, 0), (7, 2), (12, 0), (12, 2), (13, 2), (13, 3)):
        lists = {"losses": torch.ones(done), "validation_losses": torch.ones(validated)}
        lengths = f"{done} iterations and {validated} validations"
        sentence = refusal(program, saved({**stopped, **lists}))
        assert sentence == f" does not fit this run: it has {lengths}"


def test_damage_is_found_down_to_a_single_bit(program, stopped):
    """A changed bit in a number is refused; one elsewhere is refused or makes no difference."""
    content = saved(stopped)
    assert refusal(program, content[:-100]) == " is damaged"
    for tensor in stopped.values():
        flipped = bytearray(content)
        flipped[content.index(tensor.numpy().tobytes())] ^= 1
        assert refusal(program, bytes(flipped)) == " is damaged"
    folder = bytearray(content)
    entry = content.index(b"PK\x01\x02")  # of the first part; this says that it is a folder
    folder[entry + 38] ^= 0x10
    assert refusal(program, bytes(folder)) == " is damaged"
    weights = Net().state_dict()
    content = saved(weights)
    for position in range(0, len(content), 50):
        flipped = bytearray(content)
        flipped[position] ^= 1
        with contextlib.suppress(main.InputError):
            torch.testing.assert_close(loaded(flipped), weights, rtol=0, atol=0)


def test_code_in_a_file_is_not_executed(program, stopped):
    class Code:
        def __reduce__(self):
            return os.mkdir, ("made by code",)

    for content in (saved({**stopped, "w_1": Code()}), pickle.dumps(Code())):
        refusal(program, content)
        refusal(program, content, MEASURE)
    assert not os.path.exists("made by code")


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_no_file_crashes_the_program(program, stopped, tmp_path):
    """Nor does any file make it say more than a line."""
    torch.save({**stopped, "w_2": stopped["w_2"].to_sparse_csr()}, "warning.pt")
    with zipfile.ZipFile("nested.pt", "w") as nested:  # tuples in tuples, for a key
        nested.writestr("archive/DATA.PKL", b"\x80\x02})" + b"\x85" * 3_000_000 + b"K\x01s.")
        nested.writestr("archive/version", "3\n")
    with zipfile.ZipFile(CHECKPOINT) as sound, zipfile.ZipFile("packed.pt", "w", 8) as packed:
        for name in sound.namelist():
            packed.writestr(name, sound.read(name))
    code = "import contextlib, main, sys\nfor file in sys.argv[1:]:\n"
    code += " with contextlib.suppress(SystemExit): main.main(['--test', '--weights', file])"
    command = (sys.executable, "-c", code, "nested.pt", "packed.pt", "warning.pt")
    child = run(tmp_path, command=command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert child.code == 0
    refused = [line.removeprefix("main.py: ").split(".pt")[0] for line in child.err]
    assert refused == ["nested", "packed", "warning"]


CONVERSIONS = (
    Tensor.half,
    Tensor.bfloat16,
    Tensor.float,
    torch.nn.Parameter,
    lambda w: w.t().contiguous().t(),
    lambda w: w[:1].expand_as(w),  # the first row for all
)


@pytest.mark.parametrize("tag", ["cpu", "cuda:7", "mps"])
def test_what_can_be_converted_is_loaded_exactly(tmp_path, monkeypatch, tag):
    """Weights of any precision, layout and device are loaded, whatever is beside them."""
    monkeypatch.chdir(tmp_path)
    # The file of a GPU differs from a CPU's in the device tag of its tensors alone.
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: tag)
    for change in CONVERSIONS:
        weights = {name: change(w) for name, w in Net().state_dict().items()}
        content = saved({**weights, "w_4": 1, 5: "five"})
        assert tag.encode() in content
        expected = {name: w.detach().double() for name, w in weights.items()}
        torch.testing.assert_close(loaded(content), expected, rtol=0, atol=0)
