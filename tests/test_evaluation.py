"""What is trained, measured and printed is the sum of its parts. Scores are as by hand."""

import copy
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_weights
from torch import nn

import main
from data import Sinusoid, meta_batches
from meta import Meta
from net import LOSSES, AnyNet, Net

pytestmark = pytest.mark.usefixtures("figures")


class Lines(Sinusoid):
    """Other tasks: `main.Tasks` says what is trained, validated, drawn and tested."""

    def target(self, indices, x):
        return torch.from_numpy(self.amplitude[indices] * np.asarray(x) + self.phase[indices])


class Slower(Meta):
    """An inner loop in which a step depends on its number: it is tested as it was trained."""

    def adapt(self, *arguments):
        trajectory = enumerate(super().adapt(*arguments))
        return [{name: w / (1 + i) for name, w in fast.items()} for i, fast in trajectory]


SETTINGS = [
    "--k_shot 5 --batch_size 25 --inner_lr 0.02 --outer_lr 0.1 --loss mse",  # the last is worse
    "--seed 3 --inner_steps 2 --first_order",
]


@pytest.mark.parametrize("words", SETTINGS)
def test_training_is_the_sum_of_its_parts(program, monkeypatch, words):
    """Weights and tasks are those of the seed, and the best on the validation tasks are kept."""
    monkeypatch.setattr(main, "Tasks", Lines)
    monkeypatch.setattr(main, "VALIDATION_TASKS", 107)  # more than are computed at once
    output, args = program(f"--epochs 12 {words}"), main.parse(words.split())
    torch.manual_seed(args.seed)
    settings = (args.inner_lr, args.outer_lr, args.inner_steps, args.first_order)
    meta, kept = Meta(Net(), LOSSES[args.loss], *settings), {}  # weights by their validation loss
    held_out = Lines(args.k_shot, num_tasks=107, seed=(main.VALIDATION,)).batch(range(107))
    batches = meta_batches(Lines(args.k_shot, seed=(main.TRAIN, args.seed)), args.batch_size)
    for iteration in range(1, 13):
        meta(*next(batches))
        if iteration in (5, 10, 12):
            loss = meta.query_loss(*held_out).mean().item()
            kept[loss] = copy.deepcopy(meta.net.state_dict())
    assert f"best validation loss: {min(kept):.5g}" in output.out[-2]
    (path,) = Path("weights").iterdir()
    torch.testing.assert_close(torch.load(path), dict(kept[min(kept)]), rtol=0, atol=0)


def test_the_default_run_begins_with_known_losses():
    """They are the same on any machine. Later ones depend on how a processor rounds."""
    meta, batches = Meta(Net()), meta_batches(Sinusoid(10, seed=(main.TRAIN, 0)), 10)
    losses = [meta(*next(batches)) for _ in range(10)]
    expected = [13.493226833995, 12.891548881196, 10.350103507709]
    assert [losses[0], losses[1], losses[9]] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("odd", "noted"), [(3.0, 3.0), (math.nan, math.inf), (math.inf, math.inf)])
def test_the_weights_kept_are_of_the_best_validation(program, monkeypatch, odd, noted):
    """Of two that are equal, the first counts. One that is not finite is never the best."""
    losses, seen, query_loss = iter([odd, 1.0, odd, 1.0, 2.0]), [], Meta.query_loss

    def in_validation(meta, *batch):
        if torch.is_grad_enabled():
            return query_loss(meta, *batch)
        seen.append(copy.deepcopy(meta.net.state_dict()))
        return torch.tensor([next(losses)])

    monkeypatch.setattr(Meta, "query_loss", in_validation)
    assert "best validation loss: 1\n" in "\n".join(program("--epochs 25").out)
    (path,) = Path("weights").iterdir()
    torch.testing.assert_close(torch.load(path), dict(seen[1]), rtol=0, atol=0)
    (table,) = Path("res").glob("*.csv")
    rows = [line.split(",") for line in table.read_text().splitlines()]
    assert rows[0] == ["iteration", "loss", "validation_loss"]
    assert [row[2] for row in rows[5::5]] == [str(noted), "1.0", str(noted), "1.0", "2.0"]
    assert (len(rows), rows[6][0], rows[6][2]) == (26, "6", "")


def test_any_network_is_trained_kept_and_tested(program, monkeypatch):
    """Here, one with buffers and dropout, which is off in the evaluation."""

    def odd():
        layers = nn.Linear(1, 20), nn.Dropout(), nn.Dropout().eval(), nn.ReLU(), nn.Linear(20, 1)
        module = nn.Sequential(*layers).double()  # the second dropout stays off
        module.register_buffer("number", torch.ones(1))
        return AnyNet(module)

    monkeypatch.setattr(main, "Net", odd)
    trained = program("--epochs 12")
    assert program("--epochs 12 --test").out == program("--epochs 12 --test").out
    (path,) = Path("weights").iterdir()
    meta = main.load(path, main.parse([]), "cpu").train()
    meta.net.module[2].eval()
    best = f"best validation loss: {main.validate(meta, 10, 'cpu'):.5g}"
    assert best in "".join(trained.out)
    assert [module.training for module in meta.net.module] == [True, True, False, True, True]


def squared_errors(meta, tasks):
    """By `adapt`, from the start for every number of steps: (11, tasks)."""
    k_x, k_y, _, _ = tasks.batch(range(len(tasks)))
    x = torch.linspace(-5, 5, 50, dtype=torch.float64).reshape(1, 50, 1).expand(len(tasks), -1, -1)
    y = tasks.target(range(len(tasks)), x)
    errors = [meta.net(x, meta.adapt(k_x, k_y, steps)[-1]) - y for steps in range(11)]
    return torch.stack(errors).detach().square().sum((2, 3))


@pytest.mark.parametrize("words", ["--seed 1 --test_shots 5", "--loss mse --inner_lr 0.004"])
def test_what_is_printed_is_what_the_weights_do(program, monkeypatch, words):
    """On test tasks that are the same for every seed, and on the drawn task of the seed."""
    monkeypatch.setattr(main, "Tasks", Lines)
    monkeypatch.setattr(main, "Meta", Slower)
    monkeypatch.setattr(main, "TEST_TASKS", 107)  # more than are computed at once
    args = main.parse(["--test", *words.split()])
    shots, expected = args.test_shots or args.k_shot, []
    for label, more in (("MAML", ""), (main.PRETRAINED, "--inner_steps 0")):
        file = main.weights_file(main.parse(f"--test {words} {more}".split()))
        make_weights(file, scale=0.5)
        meta = Slower(Net(), LOSSES[args.loss], args.inner_lr)
        meta.net.load_state_dict(torch.load(file))
        drawn = Lines(shots, 0, 1, seed=(main.DRAWN, args.seed))
        pre, post = squared_errors(meta, drawn)[:2, 0].sqrt()
        tests = Lines(shots, 0, 107, seed=(main.TEST,))
        expected += ["", f"{label}, {file}, on a drawn task and 107 test tasks with K = {shots}:"]
        expected += [f"| pre loss: {pre:.3f} | post loss: {post:.3f} |"]
        scores = main.summarize(squared_errors(meta, tests))
        row = [f"{scores[name][10]:.3f}" for name in ("rsse", "rsse_ci", "mse", "mse_ci", "median")]
        table = main.table(scores).splitlines()
        assert re.findall(r"[\d.]+", table[-2]) == ["10", *row]
        expected += table
    assert program(f"--test {words}").out[1:-2] == expected


@pytest.mark.parametrize("steps", [1, 3, 12])
def test_any_number_of_steps_is_measured(program, monkeypatch, steps):
    monkeypatch.setattr(main, "MAX_STEPS", steps)
    make_weights("weights/w(k=10).pt")
    rows = [line.split()[0] for line in program("--test").out if "+-" in line]
    expected = {1: [0, 1], 3: [0, 1, 2, 3], 12: [0, 1, 2, 3, 5, 12]}
    assert [int(row) for row in rows] == expected[steps]


@pytest.mark.parametrize(("inputs", "outputs"), [(2, 1), (1, 2)])
def test_more_inputs_or_outputs_are_trained_and_not_tested(program, monkeypatch, inputs, outputs):
    class Wider(Sinusoid):
        def batch(self, *arguments):
            sizes = inputs, outputs, inputs, outputs
            points = zip(super().batch(*arguments), sizes, strict=True)
            return [tensor.repeat(1, 1, size) for tensor, size in points]

    monkeypatch.setattr(main, "Tasks", Wider)
    monkeypatch.setattr(main, "Net", lambda: AnyNet(nn.Linear(inputs, outputs).double()))
    assert program("--epochs 12").code == 0
    output = program("--epochs 12 --test")
    assert "--test is for tasks of one input and one output" in output.refusal
    assert "pre loss" not in "".join(output.out)


def test_scores_by_hand():
    """The median of an even number of tasks is the mean of the middle two."""
    mse = torch.tensor([[1.0, 2.0, 4.0, 9.0]], dtype=torch.float64)
    roots = (50 * mse).sqrt()
    scores = {name: value.item() for name, value in main.summarize(50 * mse).items()}
    assert (scores["mse"], scores["median"], scores["capped"]) == (4, 3, 0)
    # Deviations 3, 2, 0 and 5; a mean of four varies half as much as one.
    assert scores["mse_ci"] == pytest.approx(1.96 * math.sqrt((9 + 4 + 0 + 25) / 3) / 2)
    assert scores["rsse"] == pytest.approx(roots.mean().item())
    assert scores["rsse_ci"] == pytest.approx(1.96 * roots.std().item() / 2)


@pytest.mark.parametrize("mse", [math.nan, math.inf, 101.0, 100.0])
def test_an_mse_of_100_or_more_counts_as_100(mse):
    """So does one that is not a number. Said is how many there are after the worst step."""
    sse = torch.full((11, 4), 50.0)
    sse[4] *= torch.tensor([1, 4, mse, mse])
    scores = main.summarize(sse)
    torch.testing.assert_close(scores, main.summarize(sse.fmin(torch.tensor(5000.0))))
    assert (scores["mse"][4], scores["median"][4]) == (51.25, 52)
    assert scores["capped"].tolist() == [0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0]
    assert "at most 2 of" in main.table(scores)


LABELS = {
    "--inner_steps 0": "pretrained",
    "--epochs 70000": "MAML",
    "--first_order": "first-order",
    "--seed 1 --weights √$^$.pt": r"'\u221a$^$.pt'",
    "--name anil --first_order": "first-order, anil",
}


def test_weights_are_called_what_they_are_known_to_be():
    """Of a file of the user's nothing is known but its name."""
    for words, label in LABELS.items():
        assert next(iter(main.files_to_measure(main.parse(["--test", *words.split()])))) == label


def test_the_baseline_has_the_step_size_of_the_run_or_the_default(tmp_path, monkeypatch):
    """Pretraining does not use it."""
    monkeypatch.chdir(tmp_path)
    args = main.parse(["--test", "--inner_lr", "0.002", "--name", "x"])
    for baseline in (
        "w(k=10,inner_steps=0,name=x).pt",
        "w(k=10,inner_lr=0.002,inner_steps=0,name=x).pt",
    ):
        make_weights(f"weights/{baseline}")
        assert main.files_to_measure(args)[main.PRETRAINED].name == baseline
