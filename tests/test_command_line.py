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
from conftest import ROOT, contents, leave_only, make_weights, run, saved, start
from matplotlib.figure import Figure

import main
from meta import Meta
from net import Net

SHORT, NAME = "--epochs 12", "k=10,epochs=12"
CHECKPOINT = f"weights/checkpoint({NAME}).pt"
TRAINED = {f"weights/w({NAME}).pt", f"res/loss_final({NAME}).png"}
MEASURED = {f"res/graph({NAME}).png", f"res/steps({NAME}).png"}


@pytest.fixture
def empty_pictures(monkeypatch):
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **options: None)


def test_training_as_a_user_runs_it(program, tmp_path):
    """Training leaves weights and a loss graph, and the same command with --test measures them."""
    training = run(tmp_path, *SHORT.split())
    assert training.code == 0
    assert contents().keys() == TRAINED
    first, weights, graph = training.out
    assert first.startswith("epochs=12 batch_size=10 k_shot=10 inner_lr=0.01 outer_lr=0.001 seed=0")
    assert re.fullmatch(r"weights: (.*), best validation loss: \d+\.\d+", weights)[1] in TRAINED
    assert re.fullmatch("loss graph: (.*); the same command with --test .*", graph)[1] in TRAINED
    assert re.search(r"12/12 .*it/s, loss \d", training.err[-1])
    assert "Warning" not in "".join(training.err)
    measuring = program(f"{SHORT} --test")
    assert contents().keys() == TRAINED | MEASURED
    assert all(contents()[picture].startswith(b"\x89PNG") for picture in MEASURED)
    assert measuring.out[-1] == f"graphs: {', '.join(sorted(MEASURED))}"
    assert "/50 [" in "".join(measuring.err)  # the bar, over tasks


def test_nothing_around_it_stops_the_program(tmp_path):
    """A run needs no docstrings, no standard output or error, and no backend of a notebook."""
    shell = ("sh", "-c", 'exec "$@" >&- 2>&-', "sh")
    command = (*shell, sys.executable, "-OO", str(ROOT / "main.py"), *SHORT.split())
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    assert run(tmp_path, command=command, env=environment).code == 0
    assert contents(tmp_path).keys() == TRAINED


def test_a_reader_who_leaves_is_no_error(tmp_path):
    """A run whose output nobody reads on, as with `| head -1`, ends in silence with its results."""
    process = start(tmp_path, *SHORT.split())
    process.stdout.readline()
    process.stdout.close()
    with process.stderr:
        errors = process.stderr.read()
    assert process.wait() != 0
    assert not re.search("Traceback|Errno|Exception|main.py", errors)
    assert contents(tmp_path).keys() == TRAINED


def test_ctrl_c_in_the_first_seconds(tmp_path, monkeypatch):
    """Ctrl-C costs one sentence while modules are imported, too, even if they swallow it."""
    press = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\n"
    (tmp_path / "tqdm.py").write_text(f"{press}time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    # A shell that starts tests in the background has them ignore the signal.
    output = run(tmp_path, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert (output.code, output.err) == (130, ["main.py: interrupted"])


def test_who_imports_main_keeps_his_backend(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "svg")
    runpy.run_path(str(ROOT / "main.py"), run_name="main")
    assert os.environ["MPLBACKEND"] == "svg"


NAMES = {
    "": "k=10",
    "--inner_lr 0.1 --outer_lr 1e-4": "k=10,inner_lr=0.1,outer_lr=0.0001",
    "--loss mse --batch_size 25": "k=10,batch_size=25,loss=mse",
    "--first_order --seed 3 --inner_steps 2": "k=10,seed=3,inner_steps=2,first_order",
    "--k_shot 10 --epochs 70000 --batch_size 10 --inner_lr 0.010 --outer_lr 1e-3": "k=10",
    "--compile --resume --inner_steps 0": "k=10,inner_steps=0",
    "--test --test_shots 5 --weights x.pt": "k=10",
}


@pytest.mark.parametrize("words", NAMES)
def test_a_run_is_named_by_its_settings(words):
    """A name has K and every training setting that is not the default, whatever their order."""
    assert main.run_name(main.parse(words.split())) == NAMES[words]


def test_every_training_setting_is_in_the_name(program):
    """Every flag that, says --help, names the files does so, and other values make other names."""
    text = "\n".join(program("--help").out)
    group = text.split("training settings, which name the files of a run:")[1].split("\n\n")[0]
    flags = re.findall(r"^  --(\w+)", group, flags=re.MULTILINE)
    assert sorted(flags) == sorted(["k_shot", *main.NAMING])
    names = {"k=10", "k=10,loss=mse", "k=10,first_order"}
    for flag in set(flags) - {"loss", "first_order"}:
        values = ["0.1", "0.10000000000000002", "1e-300"] if "_lr" in flag else ["2", "12", "21"]
        names |= {main.run_name(main.parse([f"--{flag}", value])) for value in values}
    assert len(names) == 3 + 7 * 3


def test_two_files_of_weights_give_two_pictures():
    """No two files of weights share a picture, and the pictures that ship keep their names."""

    def name(file):
        return main.picture_name(main.parse(["--test", "--weights", file]))[0]

    files = "w.pt w.pth a/w.pt /a/w.pt b/w.pt a%2Fw.pt a%252Fw.pt weights/w.pt weights/w.pth"
    names = {name(file) for file in files.split()}
    assert len(names) == 9
    assert not any("/" in name for name in names)
    assert name("weights/original(k=10).pt") == "k=10,weights=original(k=10)"


RESULTS = ("weights/w({}).pt", "res/loss_final({}).png")
PICTURES = ("res/graph({}).png", "res/steps({}).png")
NEW_FILES = {
    "--epochs 12 --seed 1": (RESULTS, "k=10,epochs=12,seed=1"),
    "--epochs 12 --seed 2": (RESULTS, "k=10,epochs=12,seed=2"),
    "--epochs 12 --seed 2 --test": (PICTURES, "k=10,epochs=12,seed=2"),
    "--test": (PICTURES, "k=10"),
    "--test --weights other.pt": (PICTURES, "k=10,file=other.pt"),
    "--test --test_shots 5": (PICTURES, "k=10,test_shots=5"),
    "--test --test_shots 5 --weights other.pt": (PICTURES, "k=10,test_shots=5,file=other.pt"),
    "--test --test_shots 10": ((), "the pictures of --test"),
}


def test_no_command_touches_a_file_of_another(program, empty_pictures):
    leave_only({"res/loss_final.png": b"the graph of weights/w(k=10).pt"})
    for path in ("weights/w(k=10).pt", "other.pt"):
        make_weights(path)
    for words, (kinds, name) in NEW_FILES.items():
        before = contents()
        assert program(words).code == 0
        after = contents()
        assert before.items() <= after.items()
        assert after.keys() - before.keys() == {kind.format(name) for kind in kinds}
    assert program("--epochs 12 --seed 3", interrupt_at=6).code == 130
    assert contents().keys() - after.keys() == {"weights/checkpoint(k=10,epochs=12,seed=3).pt"}


def test_any_terminal_shows_what_is_printed(program, monkeypatch, empty_pictures):
    make_weights("weights/w(k=10).pt")
    for words, shown in (("--help", "inner loop, ?"), ("--test", "?SSE")):
        terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", terminal)
            assert program(words).code == 0
        assert shown in terminal.buffer.getvalue().decode()


def test_every_flag_has_a_help_text_with_its_default(program, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = program("--help").out
    for flag, default in vars(main.parse([])).items():
        (line,) = (line for line in lines if line.startswith(f"  --{flag} "))
        assert re.search(r"  [a-zA-Z].*[a-z]{3}", line)
        assert default in (None, False) or line.endswith(f" (default: {default})")


def test_one_thread_unless_the_environment_says_more(program, monkeypatch):
    """Two runs at once, each with a thread for every core, take many times as long."""
    try:
        for threads in (1, 2):
            torch.set_num_threads(2)
            assert program("--epochs 1").code == 0
            assert torch.get_num_threads() == threads
            monkeypatch.setenv("OMP_NUM_THREADS", "2")
    finally:
        torch.set_num_threads(1)


def test_a_gpu_is_used_if_there_is_one(program, monkeypatch):
    monkeypatch.setattr(main, "train", lambda args, device: print(device))
    for available, device in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda value=available: value)
        first, given = program(SHORT).out
        assert (first.rsplit("device=")[-1], given) == (device, device)


@pytest.mark.parametrize(
    ("flag", "low", "high"),
    [
        ("--epochs", 1, 10**7),
        ("--batch_size", 1, 10**4),
        ("--k_shot", 1, 10**3),
        ("--test_shots", 1, 10**3),
        ("--seed", 0, 2**32 - 1),
        ("--inner_steps", 0, 100),
    ],
)
def test_a_number_is_in_its_range(program, flag, low, high):
    """The ends of a range belong to it, and a refusal says them."""
    for number in (low, high):
        main.parse(["--test", flag, str(number)])
    for number in (low - 1, high + 1):
        sentence = f"argument {flag}: must be from {low} to {high}, not {number}"
        assert program(flag, str(number)).refusal.endswith(sentence)


@pytest.mark.parametrize("flag", ["--inner_lr", "--outer_lr"])
def test_a_learning_rate_is_positive(program, flag):
    main.parse([flag, "1e-300"])
    main.parse([flag, "1e300"])
    for rate in ("0", "-0.01", "nan", "inf"):
        sentence = f"argument {flag}: must be positive and finite, not {rate}"
        assert program(flag, rate).refusal.endswith(sentence)


LONG = "w" * 230 + ".pt"
REFUSED = {
    "--epochs 1.5": "argument --epochs: invalid int value: '1.5'",
    "--epoch 7": "unrecognized arguments: --epoch 7",
    "--test --resume": "--test can't be combined with --compile or --resume",
    "--test --compile": "--test can't be combined with --compile or --resume",
    "--weights x.pt": "--weights x.pt needs --test",
    "--test_shots 5": "--test_shots 5 needs --test",
    "--inner_steps 40 --compile": "at most 30 inner steps, not 40",
    "--test": "no file weights/w(k=10).pt in this folder: ",
    "--test --weights x.pt": "no file x.pt in this folder: ",
    SHORT: f"{CHECKPOINT} belongs to an unfinished run: add --resume, or delete it",
    f"{SHORT} --resume --seed 1": "no checkpoint weights/checkpoint(k=10,epochs=12,seed=1).pt: ",
    "--test --weights folder": "'folder'",
    "--test --weights text.pt": "text.pt is not in the format",
    "--test --seed 2": "weights/w(k=10,seed=2,inner_steps=0).pt is damaged",
    "--test --seed 3": "res/graph(k=10,seed=3).png can't be written: ",
    f"--test --weights {LONG}": ".png can't be written: File name too long",
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_refusal_is_one_line_and_touches_no_file(program, empty_pictures, words):
    """A refusal touches no file, and comes before anything is measured, if of a file to read."""
    good = saved(Net().state_dict())
    files = {CHECKPOINT: b"a checkpoint", "text.pt": b"text", "folder": None, LONG: good}
    files |= {"weights/w(k=10,seed=3).pt": good, "res/graph(k=10,seed=3).png": None}
    baseline = "weights/w(k=10,seed=2,inner_steps=0).pt"
    leave_only({**files, "weights/w(k=10,seed=2).pt": good, baseline: good[:-9]})
    before = contents()
    output = program(words)
    assert output.code == 2
    assert [line for line in output.err if line.startswith("main.py: ")] == output.err[-1:]
    assert REFUSED[words] in output.err[-1]
    assert contents() == before
    assert "pre loss" not in "".join(output.out) or "can't be written" in REFUSED[words]


DIVERGING = {
    "--epochs 12 --outer_lr 1e200": "the loss is nan at iteration 2: ",
    "--epochs 12 --inner_steps 0 --outer_lr 1e60": "the loss is inf at iteration 2: ",
    "--epochs 1 --outer_lr 1e200": "no validation loss was finite: ",
}


@pytest.mark.parametrize("words", DIVERGING)
def test_a_run_that_diverges_ends_with_advice(program, empty_pictures, words):
    """A run that diverges ends in that iteration, with advice that works."""
    checkpoint = f"weights/checkpoint({main.run_name(main.parse(words.split()))}).pt"
    output = program(words)
    assert output.code == 2
    assert output.err[-1].startswith(f"main.py: {DIVERGING[words]}try a smaller --inner_lr or ")
    assert f"If {checkpoint} exists, measure it with --test --weights, or del" in output.err[-1]
    assert contents().keys() == {checkpoint}
    assert len(torch.load(checkpoint)["losses"]) == 1
    assert program("--test", "--weights", checkpoint).code == 0


def test_an_interrupted_measurement_is_one_sentence(program, monkeypatch):
    make_weights("w.pt")
    monkeypatch.setattr(main, "evaluate", Mock(side_effect=KeyboardInterrupt))
    output = program("--test --weights w.pt")
    assert (output.code, output.err) == (130, ["main.py: interrupted"])


def test_too_little_memory_costs_one_sentence(program, monkeypatch):
    """That is so whoever finds it out: NumPy, PyTorch or a GPU."""
    gpu = Mock(side_effect=torch.OutOfMemoryError("Tried to allocate 2.00 GiB."))
    for step in (lambda *batch: np.empty(10**18), lambda *batch: torch.empty(10**15), gpu):
        monkeypatch.setattr(Meta, "__call__", step)
        output = program(SHORT)
        assert output.code == 2
        assert output.err[-1].startswith("main.py: not enough memory: try a smaller --batch_size")


@pytest.mark.parametrize("place", ["Sinusoid", "draw_losses"])
@pytest.mark.parametrize("error", [KeyError, RuntimeError, ValueError])
def test_an_error_of_the_program_keeps_its_traceback(program, monkeypatch, place, error):
    monkeypatch.setattr(main, place, Mock(side_effect=error("a bug")))
    with pytest.raises(error, match="a bug"):
        program("--epochs 1")


def test_a_missing_compiler_costs_one_line_that_names_it(program, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    # As the environment's CXX does.
    with torch._inductor.config.patch({"cpp.cxx": (None, "/no/such/compiler")}):
        output = program(f"{SHORT} --inner_steps 0 --batch_size 3 --compile")
    assert output.code == 2
    assert output.err[-1].startswith("main.py: the compiler failed: ")
    assert "/no/such/compiler" in output.err[-1]
