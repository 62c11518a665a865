"""A file is written whole or not at all. A file that somebody else made does no harm."""

import os
from unittest.mock import Mock

import pytest
import torch
from conftest import contents, leave_only, saved

import main
from net import AnyNet, Net

SHORT, RESUME = "--epochs 12", "--epochs 12 --resume"
CHECKPOINT = "weights/checkpoint(k=10,epochs=12).pt"


@pytest.fixture
def stopped(program):
    """The checkpoint of a short run after 7 iterations and one validation. It is the only file."""
    assert program(SHORT, interrupt_at=8).code == 130
    return torch.load(CHECKPOINT)


def refusal(program, content, words=RESUME, path=CHECKPOINT):
    """What is said of a checkpoint with this content. It is refused, and no file is touched."""
    leave_only({path: content})
    sentence = program(words).refusal
    assert contents() == {path: content}
    assert sentence.startswith(f"main.py: {path} ")
    return sentence.removeprefix(f"main.py: {path} ")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_all_as_it_was(program, stopped, monkeypatch, call):
    """A full disk is said with the first checkpoint."""
    before, full_disk = contents(), Mock(side_effect=OSError(28, "No space"))
    monkeypatch.setattr(os, call, full_disk)
    assert program(RESUME).refusal == f"main.py: {CHECKPOINT} can't be written: No space"
    full_disk.assert_called_once()
    assert contents() == before


def test_a_folder_that_cannot_be_made_is_named(program):
    leave_only({"weights": b"a file"})
    assert program(SHORT).refusal == f"main.py: {CHECKPOINT} can't be written: File exists"
    assert contents() == {"weights": b"a file"}


def test_a_run_that_ends_early_has_results(program):
    """They are of the validations that it had; without any there are none."""
    args, best = main.parse(SHORT.split()), Net().state_dict()
    with pytest.raises(main.Failure, match="it ended before its first validation"):
        main.write_results(args, ([1.5] * 4, {}, best))
    assert contents() == {}
    main.write_results(args, ([1.5] * 7, {5: 2.5}, best))
    rows = contents()["res/loss_final(k=10,epochs=12).csv"].decode().splitlines()
    assert rows[5:] == ["5,1.5,2.5", "6,1.5,", "7,1.5,"]


ANOTHER = "it has other settings, weights or another optimizer"
SETTINGS = ["--epochs 13", "--k_shot 9", "--batch_size 9", "--seed 1", "--inner_lr 0.1", "--name a"]
SETTINGS += ["--outer_lr 0.1", "--loss mse", "--inner_steps 2", "--first_order"]


def test_a_checkpoint_of_other_settings_is_refused(program, stopped):
    """Whatever its name is."""
    for setting in SETTINGS:
        words = f"{RESUME} {setting}"
        path = f"weights/checkpoint({main.run_name(main.parse(words.split()))}).pt"
        assert ANOTHER in refusal(program, saved(stopped), words, path)


def test_a_checkpoint_of_another_network_or_optimizer_is_refused(program, stopped, monkeypatch):
    """Also if only the order of the weights is another: the optimizer tells them apart by it."""

    class Reordered(Net):
        def __init__(self):
            super().__init__()
            self.b_1 = self._parameters.pop("b_1")  # now the last

    for other in (Reordered, lambda: AnyNet(Net())):
        with monkeypatch.context() as patch:
            patch.setattr(main, "Net", other)
            assert ANOTHER in refusal(program, saved(stopped))
    monkeypatch.setattr(torch.optim, "Adam", lambda p, lr, **_: torch.optim.SGD(p, lr, 0.9))
    assert ANOTHER in refusal(program, saved(stopped))


def test_another_file_is_refused(program, stopped):
    """Of another program, of another network, of an older version, or cut short."""
    test = f"--test --weights '{CHECKPOINT}'"
    for content in (b"", b"text\n", saved(Net()), saved(stopped)[:-99]):
        for words in (RESUME, test):
            assert refusal(program, content, words).startswith("is damaged, or no file of ")
    for content in (5, {**Net().state_dict(), "w_1": torch.ones(2)}):
        assert refusal(program, saved(content), RESUME).startswith("does not fit this run: ")
        assert refusal(program, saved(content), test).startswith("does not fit the network: ")
    for parts in ({"validations": [2.5]}, {"random": None}, {"meta": {}}):
        assert refusal(program, saved({**stopped, **parts})).startswith("does not fit this run: ")
    assert "size mismatch for w_1" in refusal(program, saved(content), test)


def test_damage_is_found(program, stopped):
    """PyTorch reads a number with a changed bit as another number."""
    damaged = bytearray(saved(stopped))
    damaged[damaged.index(stopped["meta"]["net.w_2"].numpy().tobytes())] ^= 1
    assert refusal(program, bytes(damaged)).startswith("is damaged, or no file of ")


def test_code_in_a_file_is_not_executed(program, stopped):
    class Code:
        def __reduce__(self):
            return os.mkdir, ("made by code",)

    refusal(program, saved({**stopped, "best": Code()}))
    assert not os.path.exists("made by code")
