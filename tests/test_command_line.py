"""The program as its user meets it: its commands, its files, what it says and what it refuses."""

import io
import os
import re
import runpy
import sys
from unittest.mock import Mock, call

import pytest
import torch
from conftest import ROOT, contents, leave_only, make_weights, needs_compiler, run

import main
from meta import CompileError, Meta

SHORT, CHECKPOINT = "--epochs 12", "weights/checkpoint(k=10,epochs=12).pt"
WEIGHTS, GRAPH = "weights/w(k=10,epochs=12).pt", "res/loss_final(k=10,epochs=12).png"
TABLE = "res/loss_final(k=10,epochs=12).csv"
MEASURED = {"res/graph(k=10,epochs=12).png", "res/steps(k=10,epochs=12).png"}


def test_training_as_a_user_runs_it(program, tmp_path):
    """Training leaves weights and losses, and the same command with --test measures the weights.

    A notebook's backend in the environment, which may not be installed here, does not stop it.
    """
    notebook = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    training = run(tmp_path, *SHORT.split(), env={**os.environ, **notebook})
    assert training.out[1].startswith(f"weights: {WEIGHTS}, best validation loss: ")
    assert training.out[2].startswith(f"losses: {GRAPH}, {TABLE}; the same command with --test ")
    assert re.search(r"12/12 .*it/s, loss \d.*, validation \d", training.err[-1])
    assert "Warning" not in "".join(training.err)
    measuring = program(f"{SHORT} --test")
    assert contents().keys() == {WEIGHTS, GRAPH, TABLE, *MEASURED}
    assert measuring.out[-1] == f"graphs: {', '.join(sorted(MEASURED))}"


def test_the_machine_is_used_as_it_should_be(monkeypatch):
    """With the GPU if there is one, and one thread if the user asks for no other number."""
    training, threads = Mock(), Mock()
    monkeypatch.setattr(main, "train", training)
    monkeypatch.setattr(torch, "set_num_threads", threads)
    for gpu, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", Mock(return_value=gpu))
        main.main([])
        assert training.call_args.args[1] == device
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    main.main([])
    assert threads.call_args_list == [call(1), call(1)]
    assert all(p.is_meta for p in main.learner(main.parse([]), "meta").parameters())


NAMES = {
    "--k_shot 10 --epochs 70000 --inner_lr 0.010 --outer_lr 1e-3": "k=10",
    "--seed 1 --inner_lr 1e-300 --batch_size 1": "k=10,batch_size=1,inner_lr=1e-300,seed=1",
    "--epochs 7 --outer_lr 0.10000000000000002": "k=10,epochs=7,outer_lr=0.10000000000000002",
    "--first_order --inner_steps 0 --loss mse --k_shot 5": "k=5,loss=mse,inner_steps=0,first_order",
    "--name anil-2_b --first_order": "k=10,first_order,name=anil-2_b",
}


@pytest.mark.parametrize("words", NAMES)
def test_a_name_has_all_settings_but_the_defaults(words):
    """Other settings make another name."""
    assert main.run_name(main.parse(words.split())) == NAMES[words]


def test_no_command_touches_a_file_of_another(program, figures):
    """Commands that differ in a setting, or measure a file of another name, have their own."""
    make_weights("folder/w.pt")
    make_weights("weights/w(k=10).pt")
    for words in ("--test", "--test --weights folder/w.pt", "--test --test_shots 5"):
        assert program(words).code == 0
    names = ("k=10", "k=10,weights=w", "k=10,test_shots=5")
    pictures = {f"{kind}({name}).png" for kind in ("graph", "steps") for name in names}
    assert set(os.listdir("res")) == pictures
    for seed in (1, 2):
        before = contents()
        assert program(f"{SHORT} --seed {seed}").code == 0
        assert before.items() <= contents().items()


RULE = "--name has up to 40 of a-z, 0-9, - and _, and begins with a letter or digit"
REFUSED = {
    "--epochs 1.5": "argument --epochs: invalid int value: '1.5'",
    "--epochs 0": "--epochs must be at least 1, not 0",
    "--epochs 1 --batch_size 0": "--batch_size must be at least 1, not 0",
    "--epochs 1 --k_shot 0": "--k_shot must be at least 1, not 0",
    "--test --test_shots 0": "--test_shots must be at least 1, not 0",
    "--epochs 1 --inner_lr nan": "--inner_lr must be at least 0, not nan",
    "--epochs 1 --inner_steps -1": "--inner_steps must be at least 0, not -1",
    "--epochs 1 --name a/b": RULE,
    "--epochs 1 --name _a": RULE,
    "--epochs 1 --name ANIL": RULE,
    "--epochs 1 --name 'a\n'": RULE,
    f"--epochs 1 --name {'a' * 41}": RULE,
    "--epochs 1 --seed 4294967296": "--seed must be below 2**32, not 4294967296",
    "--epochs 1 --epoch 7": "unrecognized arguments: --epoch 7",
    "--test --resume": "--test can't be combined with --compile or --resume",
    "--test --compile": "--test can't be combined with --compile or --resume",
    "--resume --weights x.pt": "--test_shots and --weights need --test",
    "--test": "no file weights/w(k=10).pt in this folder: train first, or pass --weights",
    "--epochs 1 --resume": "no checkpoint weights/checkpoint(k=10,epochs=1).pt: leave",
    SHORT: f"{CHECKPOINT} belongs to an unfinished run: add --resume, or delete it",
    "--test --weights folder": "[Errno 21] Is a directory: 'folder'",
    "--test --seed 2": "weights/w(k=10,seed=2,inner_steps=0).pt is damaged",
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_refusal_is_one_line_and_touches_no_file(program, words):
    """It comes before anything is measured, also if the second file is wrong."""
    baseline = "weights/w(k=10,seed=2,inner_steps=0).pt"
    leave_only({CHECKPOINT: b"a checkpoint", baseline: b"PK"})
    os.mkdir("folder")
    make_weights("weights/w(k=10,seed=2).pt")
    before = contents()
    output = program(words)
    assert REFUSED[words] in output.refusal
    assert output.err[0].startswith("usage: main.py ") or len(output.err) == 1
    assert contents() == before
    assert "pre loss" not in "".join(output.out)


@pytest.mark.parametrize("words", ["--outer_lr 1e60 --inner_steps 0", "--epochs 1 --outer_lr 9e99"])
def test_a_run_that_diverges_ends_with_advice(program, words):
    """It ends in that iteration, and leaves the checkpoint of the one before."""
    assert program(words).refusal.endswith(": try a smaller step size")
    (checkpoint,) = contents()
    assert len(torch.load(checkpoint)["losses"]) == 1


LEARNED = torch.nn.Parameter(torch.ones(1).double())
SPOILED = {
    "inner_lr would be trained but not kept": lambda meta: setattr(meta, "inner_lr", LEARNED),
    "the optimizer does not have net.a": lambda meta: setattr(meta.net, "a", LEARNED),
    "net.b_3 is frozen": lambda meta: meta.net.b_3.requires_grad_(False),
}


@pytest.mark.parametrize("sentence", SPOILED)
def test_what_would_not_be_trained_and_kept_is_refused(program, monkeypatch, sentence):
    make = main.learner

    def learner(*settings):
        meta = make(*settings)
        SPOILED[sentence](meta)
        return meta

    monkeypatch.setattr(main, "learner", learner)
    assert sentence in program(SHORT).refusal
    assert contents() == {}


def test_ctrl_c_in_the_test_costs_one_sentence(program, monkeypatch):
    make_weights("weights/w(k=10).pt")
    monkeypatch.setattr(main, "evaluate", Mock(side_effect=KeyboardInterrupt))
    output = program("--test")
    assert (output.code, output.err[-1]) == (130, "main.py: interrupted")


@pytest.mark.parametrize("method", ["compile_gradient", "forward"])
def test_a_compiler_that_fails_costs_one_line(program, monkeypatch, method):
    """Before training, or in it, where a run may compile again."""
    monkeypatch.setattr(Meta, "compile_gradient", Mock())
    monkeypatch.setattr(Meta, method, Mock(side_effect=CompileError("it is wrong")))
    assert program(f"{SHORT} --compile").refusal == "main.py: --compile failed: it is wrong"


@pytest.mark.parametrize("stdout", [io.StringIO(), io.TextIOWrapper(io.BytesIO(), "ascii")])
def test_standard_output_may_be_of_any_kind(monkeypatch, stdout):
    """A notebook's has fewer methods. What one can't encode is printed with escapes."""
    monkeypatch.setattr(sys, "argv", ["main.py", "--test", "--weights", "ä.pt"])
    monkeypatch.setattr(sys, "stdout", stdout)
    with pytest.raises(SystemExit) as end:  # no such file
        runpy.run_path(str(ROOT / "main.py"), run_name="__main__")
    assert end.value.code == 2


@needs_compiler
def test_a_missing_compiler_costs_one_line_that_names_it(program, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with torch._inductor.config.patch({"cpp.cxx": (None, "/no/such/compiler")}):
        refusal = program(f"{SHORT} --inner_steps 0 --batch_size 3 --compile").refusal
    assert re.match("main.py: --compile failed: .*/no/such/compiler", refusal)
