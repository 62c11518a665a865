"""A file is written whole or not at all. A file that anybody may have made does no harm."""

import contextlib
import io
import math
import os
import zipfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import contents, leave_only, run, saved
from torch import Tensor

import main
from net import Net

SHORT, RESUME = "--epochs 12", "--epochs 12 --resume"
CHECKPOINT = "weights/checkpoint(k=10,epochs=12).pt"


@pytest.fixture
def stopped(program):
    """The checkpoint of a short run after 7 iterations and one validation. It is the only file."""
    assert program(SHORT, interrupt_at=8).code == 130
    return torch.load(CHECKPOINT)


def refusal(program, content, words=RESUME):
    """What is said of a checkpoint with this content. It is refused, and no file is touched."""
    leave_only({CHECKPOINT: content})
    sentence = program(words).refusal
    assert contents() == {CHECKPOINT: content}
    assert sentence.startswith(f"main.py: {CHECKPOINT}")
    return sentence.removeprefix(f"main.py: {CHECKPOINT}")


def loaded(content):
    """The weights that `--test --weights` measures, of a file with this content."""
    Path("w.pt").write_bytes(content)
    return main.load(Path("w.pt"), main.parse([]), "cpu").net.state_dict()


def test_files_are_dictionaries_of_plain_tensors(program, stopped):
    """All hold six weights. A checkpoint also has those of now, Adam's moments, and the losses."""
    assert program(RESUME).code == 0
    weights = torch.load("weights/w(k=10,epochs=12).pt")
    Net().load_state_dict(weights)
    expected = {"losses", "validation_losses", *weights}
    for part in ("net", "exp_avg", "exp_avg_sq"):
        expected |= {f"{part}.{name}" for name in weights}
    assert stopped.keys() == expected
    for tensor in (*weights.values(), *stopped.values()):
        kind = (type(tensor), tensor.dtype, tensor.device.type, tensor.requires_grad)
        assert kind == (Tensor, torch.float64, "cpu", False)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_all_as_it_was(program, stopped, monkeypatch, call):
    """A full disk is said with the first checkpoint."""
    before, full_disk = contents(), Mock(side_effect=OSError(28, "No space"))
    monkeypatch.setattr(os, call, full_disk)
    output = program(RESUME)
    full_disk.assert_called_once()
    assert output.code == 2
    assert output.err[-1] == f"main.py: {CHECKPOINT} can't be written: No space"
    assert contents() == before


def test_a_file_is_synced_before_it_is_moved(tmp_path, monkeypatch):
    """It is whole on the disk before it is moved, and no two writers share one."""
    noted = []
    monkeypatch.setattr(os, "fsync", lambda number: noted.append(os.fstat(number).st_size))
    monkeypatch.setattr(os, "replace", lambda source, target: noted.append(source))
    for _ in range(2):
        main.write(tmp_path / "file", lambda file: file.write(b"whole"))
    size, first, _, second = noted
    assert size == len(b"whole")
    assert first != second


NOT_REAL = "is not a dense tensor of floating-point numbers"
NOT_FITTING = " does not fit this run: it has"


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("w_1", lambda w: w.unsqueeze(0), ": w_1 has the shape [1, 40, 1], not [40, 1]"),
        ("w_2", lambda w: w.where(w > 0, math.nan), ": w_2 is not finite"),
        ("b_2", lambda w: w.where(w > 0, math.inf), ": b_2 is not finite"),
        ("w_3", Tensor.to_sparse, f": w_3 {NOT_REAL}"),
        ("b_3", lambda w: torch.nested.nested_tensor([w]), f": b_3 {NOT_REAL}"),
        ("net.b_2", Tensor.long, f": net.b_2 {NOT_REAL}"),
        ("exp_avg.w_3", Tensor.t, ": exp_avg.w_3 has the shape [40, 1], not [1, 40]"),
        ("exp_avg_sq.b_3", lambda w: w[0], ": exp_avg_sq.b_3 has the shape [], not [1]"),
        ("losses", lambda w: w.to("meta"), f": losses {NOT_REAL}"),
        ("validation_losses", lambda w: w[:0], f"{NOT_FITTING} 7 iterations and 0 validations"),
        ("validation_losses", lambda w: 1.0, " has no tensor validation_losses"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(program, stopped, name, change, sentence):
    content = saved({**stopped, name: change(stopped[name])})
    assert refusal(program, content) == sentence
    if name in Net().Param:
        assert refusal(program, content, f"--test --weights '{CHECKPOINT}'") == sentence


def test_another_file_is_refused_for_what_it_is(program, stopped):
    """The sentence says what is wrong. Only a file that is damaged is called so."""
    old, arrays = io.BytesIO(), io.BytesIO()
    torch.save(stopped, old, _use_new_zipfile_serialization=False)
    np.savez(arrays, w_1=np.zeros((40, 1)))
    for content in (b"", b"text\n", old.getvalue()):
        assert refusal(program, content) == " is not in the format of torch.save since PyTorch 1.6"
    many = {str(number): torch.zeros(1) for number in range(300)}
    for content in (arrays.getvalue(), saved([1, 2]), saved(Net()), saved(many)):
        assert refusal(program, content) == " is not a plain dictionary of a few tensors"
    assert refusal(program, saved(Net().state_dict())) == " has no tensor losses"
    longer = {"losses": torch.ones(13, 1), "validation_losses": torch.ones(2, 1)}
    assert refusal(program, saved(longer)) == f"{NOT_FITTING} 13 iterations and 2 validations"


def test_damage_is_found_down_to_a_single_bit(program, stopped):
    """A changed bit in a number is refused; one elsewhere is refused or makes no difference."""
    content = saved(stopped)
    number, folder = bytearray(content), bytearray(content)
    number[content.index(stopped["net.w_2"].numpy().tobytes())] ^= 1
    folder[content.index(b"PK\x01\x02") + 38] ^= 0x10  # the first part is said to be a folder
    for damaged in (content[:-100], number, folder):
        assert refusal(program, bytes(damaged)) == " is damaged"
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

    refusal(program, saved({**stopped, "w_1": Code()}))
    assert not os.path.exists("made by code")


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_no_file_crashes_the_program(stopped, tmp_path):
    """Nor does any file make it say more than a line."""
    torch.save({**stopped, "w_2": stopped["w_2"].to_sparse_csr()}, "warning.pt")
    with zipfile.ZipFile("nested.pt", "w") as nested:  # tuples in tuples, for a key
        nested.writestr("archive/DATA.PKL", b"\x80\x02})" + b"\x85" * 3_000_000 + b"K\x01s.")
        nested.writestr("archive/version", "3\n")
    with zipfile.ZipFile(CHECKPOINT) as sound, zipfile.ZipFile("packed.pt", "w", 8) as packed:
        for name in sound.namelist():
            packed.writestr(name, sound.read(name))
    for file in ("warning.pt", "nested.pt", "packed.pt"):
        output = run(tmp_path, "--test", "--weights", file)
        assert output.refusal.startswith(f"main.py: {file}")


CONVERSIONS = {
    "half": Tensor.half,
    "float8": lambda w: w.to(torch.float8_e4m3fn),
    "bfloat16": Tensor.bfloat16,
    "float": Tensor.float,
    "parameter": torch.nn.Parameter,
    "transposed": lambda w: w.t().contiguous().t(),
    "expanded": lambda w: w[:1].expand_as(w),  # the first row for all
}


@pytest.mark.parametrize("kind", CONVERSIONS)
def test_what_can_be_converted_is_loaded_exactly(tmp_path, monkeypatch, kind):
    """Weights of any precision, layout and device are loaded, whatever is beside them."""
    monkeypatch.chdir(tmp_path)
    # The file of a GPU differs from a CPU's in the device tag of its tensors alone.
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:7")
    weights = {name: CONVERSIONS[kind](w) for name, w in Net().state_dict().items()}
    content = saved({**weights, "w_4": 1, 5: "five"})
    assert b"cuda:7" in content
    expected = {name: w.detach().double() for name, w in weights.items()}
    torch.testing.assert_close(loaded(content), expected, rtol=0, atol=0)
