"""The program as its user meets it: its commands, its files, what it says and what it refuses."""

import io
import os
import re
import runpy
import signal
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import ROOT, contents, leave_only, make_weights, run

import main

SHORT, CHECKPOINT = "--epochs 12", "weights/checkpoint(k=10,epochs=12).pt"
WEIGHTS, GRAPH = "weights/w(k=10,epochs=12).pt", "res/loss_final(k=10,epochs=12).png"
MEASURED = {"res/graph(k=10,epochs=12).png", "res/steps(k=10,epochs=12).png"}


def test_training_as_a_user_runs_it(program, tmp_path):
    """Training leaves weights and a loss graph, and the same command with --test measures them."""
    training = run(tmp_path, *SHORT.split())
    first, weights, graph = training.out
    assert re.fullmatch("epochs=12 batch_size=10 k_shot=10 .* device=(cpu|cuda)", first)
    assert re.fullmatch(r"weights: (.*), best validation loss: \d+\.\d+", weights)[1] == WEIGHTS
    assert re.fullmatch("loss graph: (.*); the same command with --test .*", graph)[1] == GRAPH
    assert re.search(r"12/12 .*it/s, loss \d", training.err[-1])
    assert "Warning" not in "".join(training.err)
    measuring = program(f"{SHORT} --test")
    assert contents().keys() == {WEIGHTS, GRAPH, *MEASURED}
    assert measuring.out[-1] == f"graphs: {', '.join(sorted(MEASURED))}"
    assert "task/s" in "".join(measuring.err)  # the bar


def test_nothing_around_it_stops_the_program(tmp_path):
    """A run needs no docstrings, no standard output or error, and no backend of a notebook."""
    command = ("sh", "-c", 'exec "$@" >&- 2>&-', "sh", sys.executable, ROOT / "main.py")
    backend = "module://matplotlib_inline.backend_inline"
    environment = {**os.environ, "PYTHONOPTIMIZE": "2", "MPLBACKEND": backend}
    assert run(tmp_path, *SHORT.split(), command=command, env=environment).code == 0
    assert contents(tmp_path).keys() == {WEIGHTS, GRAPH}


def test_a_reader_who_leaves_is_no_error(tmp_path):
    """A run whose output nobody reads on, as with `| head -1`, ends in silence with its results."""
    shell = '{ "$@"; echo "exit code $?" >&2; } | head -1'
    command = ("sh", "-c", shell, "sh", sys.executable, ROOT / "main.py")
    output = run(tmp_path, *SHORT.split(), command=command)
    assert (len(output.out), output.err[-1]) == (1, "exit code 141")
    assert not re.search("Traceback|Errno|Exception|main.py", "".join(output.err))
    assert contents(tmp_path).keys() == {WEIGHTS, GRAPH}


CASES = [(signal.SIG_DFL, "", -signal.SIGINT), (signal.SIG_DFL, "def tqdm(**_): ", 130)]
CASES += [(signal.SIG_IGN, "", 7)]  # as in a script's jobs in the background


@pytest.mark.parametrize(("before", "place", "code"), CASES)
def test_ctrl_c_leaves_no_traceback(tmp_path, before, place, code):
    """It ends the process silently while modules are imported, and then with one sentence."""
    press = f"import os, signal\n{place}os.kill(os.getpid(), signal.SIGINT); exit(7)"
    (tmp_path / "tqdm.py").write_text(press)
    options = {"preexec_fn": lambda: signal.signal(signal.SIGINT, before)}
    output = run(tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, **options)
    assert (output.code, len(output.err)) == (code, code == 130)


def test_who_imports_main_keeps_his_settings(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "svg")
    runpy.run_path(str(ROOT / "main.py"), run_name="main")
    assert os.environ["MPLBACKEND"] == "svg"


NAMES = {
    "--k_shot 10 --epochs 70000 --inner_lr 0.010 --outer_lr 1e-3": "k=10",
    "--seed 1 --inner_lr 1e-300 --batch_size 1": "k=10,batch_size=1,inner_lr=1e-300,seed=1",
    "--epochs 7 --outer_lr 0.10000000000000002": "k=10,epochs=7,outer_lr=0.10000000000000002",
    "--first_order --inner_steps 0 --loss mse --k_shot 5": "k=5,loss=mse,inner_steps=0,first_order",
    "--test --test_shots 10 --weights w.pt": "k=10,file=w.pt",
    "--test --test_shots 5 --weights /w.pth": "k=10,test_shots=5,file=%2Fw.pth",
    "--test --weights a%2Fw.pt": "k=10,file=a%252Fw.pt",
    "--test --weights weights/w.pth": "k=10,file=weights%2Fw.pth",
    "--test --weights weights/original(k=10).pt": "k=10,weights=original(k=10)",
}


@pytest.mark.parametrize("words", NAMES)
def test_a_name_has_all_settings_but_the_defaults(words):
    """Other settings make another name. That of a picture goes on with what else was measured."""
    name, _ = main.picture_name(main.parse(words.split()))
    assert name == NAMES[words]


def test_no_command_touches_a_file_of_another(program, figures):
    """Commands that differ in a setting, or in what they measure, have files of their own."""
    make_weights("w.pt")
    make_weights("weights/w(k=10).pt")
    commands = [f"{SHORT} --seed 1", f"{SHORT} --seed 2", f"{SHORT} --seed 2 --test", "--test"]
    for words in (*commands, "--test --weights w.pt", "--test --test_shots 5"):
        before = contents()
        assert program(words).code == 0
        after = contents()
        assert before.items() <= after.items()
        assert len(after) == len(before) + 2


def test_any_terminal_shows_what_is_printed(program, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert program("--help").code == 0
    assert "step size of the inner loop, ? (" in terminal.buffer.getvalue().decode()


def test_help_has_every_flag_and_its_default(program, monkeypatch):
    """It also says which flags name the files of a run."""
    monkeypatch.setenv("COLUMNS", "200")
    lines = program("--help").out
    for flag, default in vars(main.parse([])).items():
        (line,) = (line for line in lines if line.startswith(f"  --{flag} "))
        assert re.search(r"  [a-zA-Z].*[a-z]{3}", line)
        names_files = flag in ("k_shot", *main.NAMING)
        assert names_files == line.endswith(f" (default: {default})")
        assert names_files == (lines.index(line) < lines.index("what to do:"))


def test_a_run_takes_a_gpu_and_a_single_thread(program, monkeypatch):
    """A GPU if there is one, and more threads only if the environment says so."""
    monkeypatch.setattr(main, "train", lambda _, device: print(device, torch.get_num_threads()))
    torch.set_num_threads(2)
    with monkeypatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "2")
        patch.setattr(torch.cuda, "is_available", lambda: True)
        assert program(SHORT).out[-1] == "cuda 2"
    assert program(SHORT).out[-1] == "cpu 1"


RANGES = {"--epochs": (1, 10**7), "--batch_size": (1, 10**4), "--inner_steps": (0, 100)}
RANGES |= {"--k_shot": (1, 10**3), "--test_shots": (1, 10**3), "--seed": (0, 2**32 - 1)}


@pytest.mark.parametrize("flag", RANGES)
def test_a_number_is_in_its_range(program, flag):
    """The ends of a range belong to it, and a refusal says them."""
    low, high = RANGES[flag]
    for number in (low, high):
        main.parse(["--test", flag, str(number)])
    for number in (low - 1, high + 1):
        sentence = f"argument {flag}: must be from {low} to {high}, not {number}"
        assert program(f"--resume {flag} {number}").refusal.endswith(sentence)


REFUSED = {
    "--epochs 1.5": "argument --epochs: invalid int value: '1.5'",
    "--inner_lr nan": "argument --inner_lr: must be positive and finite, not nan",
    "--outer_lr 0": "argument --outer_lr: must be positive and finite, not 0",
    "--outer_lr inf": "argument --outer_lr: must be positive and finite, not inf",
    "--epoch 7": "unrecognized arguments: --epoch 7",
    "--test --resume": "--test can't be combined with --compile or --resume",
    "--test --compile": "--test can't be combined with --compile or --resume",
    "--resume --weights x.pt": "--weights x.pt needs --test",
    "--resume --test_shots 5": "--test_shots 5 needs --test",
    "--inner_steps 31 --compile": "compilation allows at most 30 inner steps, not 31",
    "--test": "no file weights/w(k=10).pt in this folder: train first, or pass --weights",
    "--epochs 1 --resume": "no checkpoint weights/checkpoint(k=10,epochs=1).pt: leave",
    SHORT: f"{CHECKPOINT} belongs to an unfinished run: add --resume, or delete it",
    "--test --weights folder": "[Errno 21] Is a directory: 'folder'",
    "--test --seed 2": "weights/w(k=10,seed=2,inner_steps=0).pt is damaged",
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_refusal_is_one_line_and_touches_no_file(program, words):
    """It comes before anything is measured, even if of the second file to read."""
    baseline = "weights/w(k=10,seed=2,inner_steps=0).pt"
    leave_only({CHECKPOINT: b"a checkpoint", baseline: b"PK", "folder": None})
    make_weights("weights/w(k=10,seed=2).pt")
    before = contents()
    output = program(words)
    assert REFUSED[words] in output.refusal
    assert contents() == before
    assert "pre loss" not in "".join(output.out)


DIVERGING = {
    "--epochs 12 --outer_lr 1e60 --inner_steps 0": "the loss is inf at iteration 2: ",
    "--epochs 1 --outer_lr 1e300": "no validation loss was finite: ",
}


@pytest.mark.parametrize("words", DIVERGING)
def test_a_run_that_diverges_ends_with_advice(program, words):
    """It ends in that iteration, and leaves the checkpoint of the one before."""
    output = program(words)
    assert output.code == 2
    assert output.err[-1].startswith(f"main.py: {DIVERGING[words]}try a smaller --inner_lr or ")
    (checkpoint,) = contents()
    assert len(torch.load(checkpoint)["losses"]) == 1


def test_an_interrupted_measurement_is_one_sentence(program, monkeypatch):
    monkeypatch.setattr(main, "test", Mock(side_effect=KeyboardInterrupt))
    output = program("--test")
    assert (output.code, output.err) == (130, ["main.py: interrupted"])


def test_too_little_memory_costs_one_sentence(program, monkeypatch):
    """That is so whoever finds it out: NumPy, PyTorch or a GPU."""
    gpu = Mock(side_effect=torch.OutOfMemoryError("Tried to allocate 2.00 GiB."))
    for train in (lambda *_: np.empty(10**18), lambda *_: torch.empty(10**15), gpu):
        monkeypatch.setattr(main, "train", train)
        sentence = program(SHORT).refusal
        assert sentence.startswith("main.py: not enough memory: try a smaller --batch_size")


@pytest.mark.parametrize("error", [KeyError, RuntimeError, ValueError])
def test_an_error_of_the_program_keeps_its_traceback(program, monkeypatch, error):
    monkeypatch.setattr(main, "train", Mock(side_effect=error("a bug")))
    with pytest.raises(error, match="a bug"):
        program(SHORT)


def test_a_missing_compiler_costs_one_line_that_names_it(program, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with torch._inductor.config.patch({"cpp.cxx": (None, "/no/such/compiler")}):
        output = program(f"{SHORT} --inner_steps 0 --batch_size 3 --compile")
    assert output.code == 2
    assert re.match("main.py: the compiler failed: .*/no/such/compiler", output.err[-1])
