"""What is trained, kept, measured and printed is the sum of its parts, and scores are as by hand."""

import math
import re
import statistics
from pathlib import Path

import pytest
import torch
from conftest import make_weights
from matplotlib.figure import Figure

import main
import net
from data import Sinusoid, meta_batches
from meta import Meta
from net import Net

SCORES = ("rsse", "rsse_ci", "mse", "mse_ci", "median")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Their files stay empty here, to save time."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **options: None)


def learner(args, file=None):
    network = Net(args.loss)
    if file:
        network.load_state_dict(torch.load(file))
    return Meta(network, args.inner_lr, args.outer_lr, args.inner_steps, args.first_order)


def squared_errors(meta, tasks):
    """By `adapt` and `predict`, from the start for every number of steps: (11, tasks)."""
    k_x, k_y, _, _ = tasks.batch(range(len(tasks)))
    x = torch.linspace(-5, 5, 50, dtype=torch.float64).reshape(1, 50, 1).expand(len(tasks), -1, -1)
    y = torch.from_numpy(tasks.amplitude) * torch.sin(x + torch.from_numpy(tasks.phase))
    adapted = [meta.adapt(k_x, k_y, steps) for steps in range(11)]
    errors = torch.stack([meta.net.predict(x, weights) - y for weights in adapted])
    return errors.detach().square().sum((2, 3))


# Training -----------------------------------------------------------------------------------------

SETTINGS = [
    "",
    "--seed 3 --outer_lr 1e-300",  # which leaves the initial weights
    "--k_shot 5 --batch_size 25 --inner_lr 0.02 --outer_lr 0.01 --loss mse",
    "--seed 3 --inner_steps 2",
    "--first_order",
]


@pytest.mark.parametrize("words", SETTINGS)
def test_training_is_the_sum_of_its_parts(program, monkeypatch, words):
    """Weights and tasks are those of the seed, and the best on the validation tasks are kept."""
    monkeypatch.setattr(main, "VALIDATION_TASKS", 107)  # more than are computed at once
    output, args = program(f"--epochs 12 {words}"), main.parse(words.split())

    torch.manual_seed(args.seed)
    meta = learner(args)
    held_out = Sinusoid(args.k_shot, num_tasks=107, seed=(main.VALIDATION,)).batch(range(107))
    batches = meta_batches(Sinusoid(args.k_shot, seed=(main.TRAIN, args.seed)), args.batch_size)
    lowest = math.inf
    for iteration in range(1, 13):
        meta(*next(batches))
        if iteration in (5, 10, 12):
            loss = meta.query_loss(*held_out).mean().item()
            if loss < lowest:
                lowest = loss
                kept = {name: w.detach().clone() for name, w in meta.net.Param.items()}

    assert f"best validation loss: {lowest:.5g}" in output.out[-2]
    (path,) = Path("weights").iterdir()
    torch.testing.assert_close(torch.load(path), kept, rtol=0, atol=0)


def test_the_default_run_learns_with_known_losses():
    """They are the same on any machine, and each is that of tasks that are new to the net."""
    torch.manual_seed(0)
    meta, batches = Meta(), meta_batches(Sinusoid(10, seed=(main.TRAIN, 0)), 10)
    losses = [meta(*next(batches)) for _ in range(1000)]
    assert losses[0] == pytest.approx(13.493226833995, rel=1e-9)
    assert losses[1] == pytest.approx(12.891548881196, rel=1e-9)
    assert losses[9] == pytest.approx(10.350103507709, rel=1e-9)
    assert losses[99] == pytest.approx(7.294842305821, rel=1e-9)
    assert losses[999] == pytest.approx(4.019852016439, rel=1e-9)


BEST_IS_SECOND = [[3.0, 1.0, 2.0, 1.0], [math.nan, 1.0, math.nan, 2.0], [math.inf, 1.0, 1.5, 1.0]]


@pytest.mark.parametrize("script", BEST_IS_SECOND)
def test_the_weights_kept_are_of_the_best_validation(program, monkeypatch, script):
    """Of two that are equal, the first counts. One that is not finite is never the best."""
    query_loss, weights = Meta.query_loss, []

    def scripted(meta, k_x, *rest):
        if len(k_x) != main.VALIDATION_TASKS:
            return query_loss(meta, k_x, *rest)
        weights.append({name: w.detach().clone() for name, w in meta.net.Param.items()})
        return torch.tensor([script[len(weights) - 1]])

    monkeypatch.setattr(main, "VALIDATE_EVERY", 1)
    monkeypatch.setattr(Meta, "query_loss", scripted)
    output = program("--epochs 4")
    assert output.out[-2].endswith("best validation loss: 1")
    kept = torch.load("weights/w(k=10,epochs=4).pt")
    torch.testing.assert_close(kept, weights[1], rtol=0, atol=0)
    assert not any(torch.equal(kept[name], weights[3][name]) for name in kept)


def test_only_training_takes_second_derivatives(program, monkeypatch):
    """Else the graphs of all tasks and steps would fill the memory."""
    taken = set()  # tasks, and whether derivatives can be differentiated again

    def observed(pred, y):
        loss = (pred - y).square().sum((1, 2))
        if loss.requires_grad:
            loss.register_hook(lambda _: taken.add((len(y), torch.is_grad_enabled())))
        return loss

    monkeypatch.setitem(net.LOSSES, "rsse", observed)
    for words in ("--epochs 6", "--epochs 6 --test"):
        assert program(words).code == 0
    training, validation, test = {(10, True), (10, False)}, {(20, False)}, {(1, False), (50, False)}
    assert taken == training | validation | test


def test_random_streams_are_independent():
    """Tasks to train on or to draw never are those to validate or test on, whatever the seed."""
    seeded = [(stream, seed) for stream in (main.DRAWN, main.TRAIN) for seed in range(99)]
    streams = [(main.VALIDATION,), (main.TEST,), *seeded]
    firsts = {Sinusoid(10, num_tasks=1, seed=stream).amplitude.item() for stream in streams}
    assert len(firsts) == len(streams)


# Evaluation ---------------------------------------------------------------------------------------

MEASURED = ["", "--loss mse --inner_lr 0.004", "--k_shot 5", "--test_shots 5", "--seed 1"]


@pytest.mark.parametrize("words", MEASURED)
def test_what_is_printed_is_what_the_weights_do(program, monkeypatch, words):
    """Test tasks are the same for every seed. The drawn task is of the seed."""
    monkeypatch.setattr(main, "TEST_TASKS", 107)  # more than are computed at once
    args = main.parse(["--test", *words.split()])
    baseline = main.parse([*words.replace("--test_shots 5", "").split(), "--inner_steps", "0"])
    files = {"MAML": main.weights_file(args), main.PRETRAINED: main.weights_file(baseline)}
    shots = args.test_shots or args.k_shot
    expected = []
    for label, file in files.items():
        make_weights(file, scale=0.5)
        meta = learner(args, file)
        drawn = Sinusoid(shots, 0, 1, seed=(main.DRAWN, args.seed))
        pre, post = squared_errors(meta, drawn)[:2, 0].sqrt()
        scores = main.summarize(squared_errors(meta, Sinusoid(shots, 0, 107, seed=(main.TEST,))))
        expected += [
            "",
            f"{label}, {file}, on a drawn task and 107 test tasks with K = {shots}:",
            f"| pre loss: {pre:.3f} | post loss: {post:.3f} |",
            *main.table(scores).splitlines(),
        ]
    assert program(f"--test {words}").out[1:-2] == expected


def test_all_files_are_read_before_any_is_measured(program):
    make_weights("weights/w(k=10).pt")
    Path("weights/w(k=10,inner_steps=0).pt").touch()
    output = program("--test")
    assert "weights/w(k=10,inner_steps=0).pt is not in the format" in output.refusal
    assert len(output.out) == 1


def test_predictions_have_the_precision_of_the_network():
    k_x, k_y, _ = main.points_of_test_tasks(10)
    assert main.predictions(Meta(Net().float()), k_x[:3], k_y[:3]).dtype == torch.float32


def test_scores_by_hand():
    """The median of an even number of tasks is the mean of the middle two."""
    mse = torch.tensor([[1.0, 2.0, 4.0, 9.0]], dtype=torch.float64)
    roots = [math.sqrt(50), math.sqrt(100), math.sqrt(200), math.sqrt(450)]
    scores = {name: value.item() for name, value in main.summarize(50 * mse).items()}
    assert scores["mse"] == 4
    # Deviations 3, 2, 0 and 5; a mean of four varies half as much as one.
    assert scores["mse_ci"] == pytest.approx(1.96 * math.sqrt((9 + 4 + 0 + 25) / 3) / 2)
    assert scores["rsse"] == pytest.approx(statistics.mean(roots))
    assert scores["rsse_ci"] == pytest.approx(1.96 * statistics.stdev(roots) / 2)
    assert scores["median"] == 3
    assert scores["capped"] == 0


@pytest.mark.parametrize("mse", [math.nan, math.inf, 101.0, 100.0])
def test_an_mse_of_100_or_more_counts_as_100(mse):
    """So does one that is not a number. How many there are is counted."""
    sse = 50 * torch.tensor([[0.0, 0.0, mse], [mse, mse, 99.0]], dtype=torch.float64)
    scores = main.summarize(sse)
    low, high = math.sqrt(50 * 99), math.sqrt(50 * 100)
    assert scores["mse"].tolist() == pytest.approx([100 / 3, 299 / 3])
    # The standard deviation of 0, 0 and a is a / √3.
    assert scores["mse_ci"].tolist() == pytest.approx([1.96 * 100 / 3, 1.96 * 1 / 3])
    assert scores["rsse"].tolist() == pytest.approx([high / 3, (2 * high + low) / 3])
    assert scores["median"].tolist() == [0, 100]
    assert scores["capped"].tolist() == [1, 2]


def test_the_table_prints_the_scores():
    scores = main.summarize(500 * torch.rand(11, 50))
    _, *rows, _ = main.table(scores).splitlines()
    for step, row in zip((0, 1, 2, 3, 5, 10), rows, strict=True):
        numbers = [f"{scores[name][step]:.3f}" for name in SCORES]
        assert re.findall(r"[\d.]+", row) == [str(step), *numbers]


def test_a_table_of_diverged_tasks_stays_a_table(program):
    """Their √SSE counts as √(100 · 50)."""
    make_weights("w.pt", scale=1e50)
    head, *rows, capped = program("--test --weights w.pt").out[4:12]
    assert head.startswith("gradient steps ")
    assert {" ".join(row.split()[1:]) for row in rows} == {"70.711 ± 0.000 100.000 ± 0.000 100.000"}
    assert {len(row) for row in rows} == {len(head)}
    assert capped == "tasks capped at MSE 100: at most 50 of 50 after any step"


def test_the_count_of_capped_tasks_is_that_of_the_worst_step(program):
    """Also of a step that has no row in the table."""
    sse = torch.ones(11, 50)
    sse[4, :7] = 5000.0
    sse[10, 5:9] = math.nan
    last = main.table(main.summarize(sse)).splitlines()[-1]
    assert last == "tasks capped at MSE 100: at most 7 of 50 after any step"


PRETRAINED = ("pretrained on all tasks", "weights/w(k=10,inner_steps=0).pt")
LABELS = {
    "": [("MAML", "weights/w(k=10).pt"), PRETRAINED],
    "--first_order": [("FOMAML", "weights/w(k=10,first_order).pt"), PRETRAINED],
    "--inner_steps 0": [PRETRAINED],
    "--seed 1": [("MAML", "weights/w(k=10,seed=1).pt")],
    "--inner_steps 0 --weights weights/w(k=10).pt": [("'w(k=10).pt'", "weights/w(k=10).pt")],
    "--weights weights/original(k=10).pt": [
        ("the original's weights", "weights/original(k=10).pt"),
        PRETRAINED,
    ],
    "--seed 1 --weights original(k=10).pt": [("'original(k=10).pt'", "original(k=10).pt")],
    "--seed 1 --first_order --weights √$^$.pt": [(r"'\u221a$^$.pt'", "√$^$.pt")],
}


def test_weights_are_called_what_they_are_known_to_be(tmp_path, monkeypatch):
    """Of a file of the user's nothing is known but its name."""
    monkeypatch.chdir(tmp_path)
    for measured in LABELS.values():
        for _, file in measured:
            make_weights(file)
    for words, measured in LABELS.items():
        files = main.files_to_measure(main.parse(["--test", *words.split()]))
        assert [(label, str(file)) for label, file in files.items()] == measured
