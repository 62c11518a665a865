"""No run is lost, no stranger's code is run, and bad input costs one line."""

import io
import math
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from command_line import MAIN, run, start

from meta import Meta

WEIGHTS = "weights/w(k=10).pt"
CHECKPOINT = "weights/checkpoint(k=10).pt"
RUN = ["--epochs", "4321", "--batch_size", "1"]


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def good_weights():
    return {name: parameter.detach().clone() for name, parameter in Meta().net.Param.items()}


def saved(obj):
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    return buffer.getvalue()


class Code:
    """A pickle of it runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


# Interrupted runs


def test_a_run_killed_again_and_again_ends_bit_identical(tmp_path):
    """SIGKILL, SIGINT and SIGTERM at random moments; each time --resume goes on, or a new run where none had begun."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    with ThreadPoolExecutor(1) as pool:
        uninterrupted = pool.submit(run, whole, *RUN)
        moments = random.Random(0)
        kinds = [signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGTERM]
        for kind in kinds * 2:
            process = start(broken, *RUN, *["--resume"] * (broken / CHECKPOINT).exists())
            process.stderr.read(20)  # the bar is there: training has begun
            time.sleep(moments.uniform(0, 1))
            process.send_signal(kind)
            stdout, stderr = process.communicate()
            assert "Traceback" not in stderr
            if process.returncode == 0:  # it was faster
                break
            if kind == signal.SIGKILL:
                assert process.returncode == -signal.SIGKILL
            else:
                assert process.returncode == 128 + kind
                assert "--resume" in stdout.splitlines()[-1]
                assert (broken / CHECKPOINT).exists()
                assert (broken / "res/loss_final.png").exists()
        if process.returncode != 0:
            assert run(broken, *RUN, *["--resume"] * (broken / CHECKPOINT).exists()).returncode == 0
        assert uninterrupted.result().returncode == 0
    assert (broken / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert (broken / "res/loss_final.png").read_bytes() == (whole / "res/loss_final.png").read_bytes()
    assert not (broken / CHECKPOINT).exists()


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A folder with the checkpoint of a run that SIGINT stopped."""
    folder = tmp_path_factory.mktemp("interrupted")
    process = start(folder, "--epochs", "100000", "--batch_size", "2")
    process.stderr.read(20)
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate()
    assert process.returncode == 130
    line = stdout.splitlines()[-1]
    assert "of 100000 iterations" in line
    assert line.endswith("--epochs 100000 --batch_size 2 --resume")
    return folder


def test_a_larger_number_of_epochs_goes_on_where_the_shorter_run_stood(tmp_path):
    """Two runs that end at 700 iterations: one of them set out for 600 and was stopped on its way."""
    short, long = tmp_path / "short", tmp_path / "long"
    short.mkdir()
    long.mkdir()
    process = start(short, "--epochs", "600", "--batch_size", "20")
    process.stderr.read(20)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    assert run(short, "--epochs", "700", "--batch_size", "20", "--resume").returncode == 0
    assert run(long, "--epochs", "700", "--batch_size", "20").returncode == 0
    assert (short / WEIGHTS).read_bytes() == (long / WEIGHTS).read_bytes()


def test_a_save_that_is_killed_leaves_a_file_that_loads(tmp_path):
    path = tmp_path / "w.pt"
    Meta().save_weights(path)
    forever = (
        f"from meta import Meta\nmeta = Meta()\nprint(1, flush=True)\nwhile True: meta.save_weights({str(path)!r})"
    )
    moments = random.Random(0)
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", forever], cwd=MAIN.parent, stdout=subprocess.PIPE)
        process.stdout.readline()
        for _ in range(40):  # it is stopped and looked at, and at last killed
            time.sleep(moments.uniform(0, 0.01))
            process.send_signal(signal.SIGSTOP)
            Meta().load_weights(path)
            process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()
        Meta().load_weights(path)


def test_a_full_disk_costs_one_line_and_no_file(tmp_path):
    """No file may grow past 4 KiB: neither weights nor graphs fit."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "res").mkdir()
    (tmp_path / WEIGHTS).write_bytes(saved(good_weights()))
    (tmp_path / "res/loss_final.png").write_bytes(b"an earlier graph")
    before = snapshot(tmp_path)
    limit = (4096, 4096)
    output = run(tmp_path, "--epochs", "5", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    assert output.returncode == 2
    assert output.stderr.splitlines()[-1] == f"main.py: {WEIGHTS} can't be written: File too large"
    assert "Traceback" not in output.stderr
    assert snapshot(tmp_path) == before


# Bad input

BAD_FLAGS = [
    ("--epochs", "0"),
    ("--epochs", "-5"),
    ("--epochs", "ten"),
    ("--epochs", "99999999999999999999"),
    ("--batch_size", "0"),
    ("--batch_size", "1000000000"),
    ("--k_shot", "0"),
    ("--k_shot", "-1"),
    ("--k_shot", "1000000000"),
    ("--inner_lr", "-0.01"),
    ("--inner_lr", "nan"),
    ("--outer_lr", "inf"),
    ("--outer_lr", "fast"),
    ("--seed", "-1"),
    ("--inner_steps", "-1"),
    ("--loss", "mae"),
    ("--no_such_flag", "7"),
]
BAD_WEIGHTS = {
    "empty": b"",
    "text": b"these are no weights\n",
    "truncated": saved(good_weights())[:-3000],
    "pickle": pickle.dumps({"w_1": [1.0]}),
    "of another type": saved([1, 2, 3]),
    "of another shape": saved({**good_weights(), "w_2": torch.zeros(40, 30, dtype=torch.float64)}),
    "of another dtype": saved({**good_weights(), "b_2": torch.zeros(40)}),
    "with a missing name": saved({name: w for name, w in good_weights().items() if name != "b_3"}),
    "with an extra name": saved({**good_weights(), "w_4": torch.zeros(1, dtype=torch.float64)}),
    "with nan": saved({**good_weights(), "b_3": torch.tensor([math.nan], dtype=torch.float64)}),
    "with inf": saved({**good_weights(), "b_3": torch.tensor([math.inf], dtype=torch.float64)}),
    "not tensors": saved({name: 1.0 for name in good_weights()}),
    "sparse": saved({**good_weights(), "w_2": torch.eye(40, dtype=torch.float64).to_sparse()}),
}


def folder_for_weights(folder):
    (folder / WEIGHTS).mkdir(parents=True)


def file_for_folder(folder):
    (folder / "res").write_text("a file")


def folder_that_takes_no_file(folder):
    (folder / "res").symlink_to("/proc")


def folder_for_graph(folder):
    (folder / "res/loss_final.png").mkdir(parents=True)


def pickles_that_run_code(folder):
    (folder / "weights").mkdir()
    (folder / WEIGHTS).write_bytes(pickle.dumps(Code(folder / "code was run")))
    (folder / CHECKPOINT).write_bytes(saved({"settings": Code(folder / "code was run")}))


def something_else_for_a_checkpoint(folder):
    (folder / "weights").mkdir()
    (folder / CHECKPOINT).write_bytes(saved(good_weights()))


def nothing(folder):
    pass


CASES = (
    [(nothing, flags, flags) for flags in BAD_FLAGS]
    + [
        (nothing, ("--resume", "--test"), ("--resume", "--test")),
        (nothing, ("--compile", "--test"), ("--compile", "--test")),
        (nothing, ("--later_lr", "0.005"), ("--later_lr", "0.005", "--test")),
        (nothing, ("--weights", "x.pt"), ("--weights", "x.pt", "--test")),
        (nothing, ("--test",), (WEIGHTS, "python3", "main.py")),
        (nothing, ("--test", "--weights", "x.pt"), ("x.pt",)),
        (nothing, ("--resume",), (CHECKPOINT,)),
        (folder_for_weights, ("--test",), (WEIGHTS,)),
        (folder_for_weights, (), (WEIGHTS, "folder")),
        (folder_for_graph, (), ("res/loss_final.png", "folder")),
        (file_for_folder, (), ("res", "folder")),
        (folder_that_takes_no_file, (), ("res", "folder")),
        (pickles_that_run_code, ("--test",), (WEIGHTS,)),
        (pickles_that_run_code, ("--resume",), (CHECKPOINT,)),
        (pickles_that_run_code, (), (CHECKPOINT, "--resume")),
        (something_else_for_a_checkpoint, ("--resume",), (CHECKPOINT,)),
    ]
    + [(content, ("--test",), (WEIGHTS,)) for content in BAD_WEIGHTS]
)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The outputs of all CASES, two at a time, and the files before and after."""

    def output(case):
        prepare, arguments, _ = case
        folder = tmp_path_factory.mktemp("bad")
        if callable(prepare):
            prepare(folder)
        else:
            (folder / "weights").mkdir()
            (folder / WEIGHTS).write_bytes(BAD_WEIGHTS[prepare])
        before = snapshot(folder)
        return run(folder, *arguments), before, snapshot(folder)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(output, CASES))


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: f"{CASES[n][0]}{CASES[n][1]}"[:60])
def test_bad_input_costs_one_line_and_no_file(outputs, number):
    output, before, after = outputs[number]
    assert output.returncode == 2
    assert len(output.stderr.splitlines()) == 1
    assert "Traceback" not in output.stderr
    for words in CASES[number][2]:
        assert words in output.stderr
    assert after == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--batch_size", "3"], "batch_size is 3, but was 2"),
        (["--epochs", "99"], "epochs is 99, but was 100000"),
        (["--seed", "1", "--outer_lr", "0.002"], "outer_lr is 0.002, but was 0.001; seed is 1, but was 0"),
    ],
)
def test_resuming_with_other_settings_is_refused(interrupted, flags, words):
    before = snapshot(interrupted)
    output = run(interrupted, "--epochs", "100000", "--batch_size", "2", *flags, "--resume")
    assert output.returncode == 2
    assert len(output.stderr.splitlines()) == 1
    assert words in output.stderr
    assert snapshot(interrupted) == before


def test_a_new_run_does_not_replace_one_that_was_interrupted(interrupted):
    before = snapshot(interrupted)
    output = run(interrupted, "--epochs", "100000", "--batch_size", "2")
    assert output.returncode == 2
    assert len(output.stderr.splitlines()) == 1
    assert "--resume" in output.stderr
    assert snapshot(interrupted) == before


def test_a_loss_that_is_not_finite_ends_training_and_changes_no_file(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / WEIGHTS).write_bytes(saved(good_weights()))
    before = snapshot(tmp_path)
    output = run(tmp_path, "--outer_lr", "1e200")
    assert output.returncode == 2
    assert "Traceback" not in output.stderr
    last = output.stderr.splitlines()[-1]
    assert "at iteration" in last
    assert "--outer_lr" in last
    assert snapshot(tmp_path) == before


def test_compiling_without_a_compiler_costs_one_line(tmp_path):
    environment = {**os.environ, "CXX": "/no/such/compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    output = run(tmp_path, "--epochs", "5", "--compile", env=environment)
    assert output.returncode == 2
    assert len(output.stderr.splitlines()) == 1
    assert "C++ compiler" in output.stderr
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


@pytest.mark.parametrize("whole", [pickle.dumps, saved])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, whole):
    (tmp_path / "w.pt").write_bytes(whole({**good_weights(), "b_3": Code(tmp_path / "code was run")}))
    with pytest.raises(ValueError, match="w.pt"):
        Meta().load_weights(tmp_path / "w.pt")
    assert not (tmp_path / "code was run").exists()


def test_refused_weights_leave_the_parameters_as_they_were(tmp_path):
    meta = Meta()
    before = {name: parameter.detach().clone() for name, parameter in meta.net.Param.items()}
    for content in BAD_WEIGHTS.values():
        (tmp_path / "w.pt").write_bytes(content)
        with pytest.raises(ValueError, match="w.pt"):
            meta.load_weights(tmp_path / "w.pt")
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
        except ValueError:
            refused += 1
        assert all(parameter.isfinite().all() for parameter in meta.net.parameters())
        assert sum(parameter.numel() for parameter in meta.net.parameters()) == 1761
    assert 100 < refused < 400  # most changes are seen; some bits of a weight may flip and it is still a weight
