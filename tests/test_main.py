"""The program as its user meets it: the real command line, run tiny in a temporary folder."""

import math
import re
import shutil
import sys

import matplotlib.image
import numpy as np
import pytest
import torch
from command_line import run

import main
from data import Sinusoid
from meta import Meta

TINY = ["--epochs", "30", "--batch_size", "4"]


def arguments(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["main.py", *words])
    return main.parse()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder after a tiny default run, one of the pretrained baseline, and a test; their outputs; the files then."""
    folder = tmp_path_factory.mktemp("trained")
    outputs = [run(folder, *TINY), run(folder, *TINY, "--inner_steps", "0"), run(folder, "--test")]
    assert [output.returncode for output in outputs] == [0, 0, 0], outputs
    return folder, outputs, {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_run_leaves_these_files_and_no_others(trained):
    assert trained[2] == {
        "res/graph(k=10).png",
        "res/loss_final(k=10,inner_steps=0).png",
        "res/loss_final.png",
        "res/steps(k=10).png",
        "weights/w(k=10).pt",
        "weights/w(k=10,inner_steps=0).pt",
    }


def test_the_graphs_are_pictures(trained):
    folder, _, _ = trained
    for path in folder.glob("res/*.png"):
        pixels = matplotlib.image.imread(path)
        assert min(pixels.shape[:2]) > 400
        assert len(np.unique(pixels @ [1, 2, 4, 8])) > 20  # colours


def test_training_prints_its_settings_first_and_where_the_files_are_last(trained):
    _, (output, _, _), _ = trained
    first, *_, graph, weights = output.stdout.splitlines()
    for setting in ("epochs=30", "batch_size=4", "k_shot=10", "inner_lr=0.01", "outer_lr=0.001", "seed=0", "device=c"):
        assert setting in first
    assert graph == "loss graph: res/loss_final.png"
    assert re.fullmatch(r"weights: weights/w\(k=10\).pt, best validation loss: \d+\.\d+", weights)
    assert "30/30" in output.stderr
    assert "it/s" in output.stderr
    assert "loss" in output.stderr


def test_the_test_prints_the_line_of_the_original_and_the_table(trained):
    folder, (_, _, output), _ = trained
    lines = output.stdout.splitlines()
    pre, post = map(float, re.fullmatch(r"\| pre loss: (\d+\.\d{3}) \| post loss: (\d+\.\d{3}) \|", lines[1]).groups())

    # The same two losses from the parts: √SSE over the 50 points, of the task that seed 0 draws.
    meta = Meta()
    meta.load_weights(folder / "weights/w(k=10).pt")
    task = Sinusoid(10, num_tasks=1, seed=(main.DRAWN, 0))
    k_x, k_y, _, _ = task.__getitems__([0])
    x = torch.linspace(-5, 5, 50, dtype=torch.float64).reshape(1, 50, 1)
    y = task.amplitude[0].item() * torch.sin(x + task.phase[0].item())
    assert pre == pytest.approx(meta.net(x, y)[0].item(), abs=6e-4)
    assert post == pytest.approx(meta.net(x, y, meta.adapt(k_x, k_y, 1))[0].item(), abs=6e-4)

    rows = [re.findall(r"[\d.]+", line) for line in lines if re.match(r" +\d+ ", line)]
    assert [int(row[0]) for row in rows] == 2 * [0, 1, 2, 3, 5, 10]
    assert all(row[-1] == "10000" for row in rows)


def test_weights_can_be_measured_at_another_k_and_the_drawn_task_follows_the_seed(trained):
    folder, (_, _, first), _ = trained
    words = ["--k_shot", "5", "--weights", "weights/w(k=10).pt", "--later_lr", "0.005", "--seed", "1"]
    output = run(folder, "--test", *words)
    assert output.returncode == 0
    assert (folder / "res/graph(k=5,later_lr=0.005,weights=w(k=10)).png").exists()
    assert (folder / "res/steps(k=5,later_lr=0.005,weights=w(k=10)).png").exists()
    assert "weights/w(k=10).pt, on 10000 test tasks with K = 5" in output.stdout
    assert output.stdout.splitlines()[1] != first.stdout.splitlines()[1]
    # The test tasks are the same for every seed and K: so is the loss before adaptation.
    before = [
        line for text in (first.stdout, output.stdout) for line in text.splitlines() if line.startswith(" " * 13 + "0")
    ]
    assert before[0] == before[-1]


def test_same_seed_same_weights(trained, tmp_path):
    folder, _, _ = trained
    for seed in ("0", "1"):
        (tmp_path / seed).mkdir()
        assert run(tmp_path / seed, *TINY, "--seed", seed).returncode == 0
    weights = [torch.load(path / "weights/w(k=10).pt") for path in (folder, tmp_path / "0", tmp_path / "1")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not any(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_training_learns_the_same(trained, tmp_path):
    assert run(tmp_path, *TINY, "--compile").returncode == 0
    eager, compiled = (torch.load(path / "weights/w(k=10).pt") for path in (trained[0], tmp_path))
    assert all(torch.allclose(eager[name], compiled[name], rtol=0, atol=1e-9) for name in eager)


def test_more_iterations_than_tasks_and_validation_in_between(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "VALIDATE_EVERY", 4)
    monkeypatch.setattr(main, "Sinusoid", lambda k, num_tasks=7, seed=0: Sinusoid(k, num_tasks=num_tasks, seed=seed))
    validation = []
    monkeypatch.setattr(main, "draw_losses", lambda path, title, loss, losses, points: validation.extend(points))
    main.train(arguments(monkeypatch, "--epochs", "10", "--batch_size", "3"), torch.device("cpu"))
    assert [iteration for iteration, _ in validation] == [4, 8, 10]
    best = min(loss for _, loss in validation)
    assert f"best validation loss: {best:.4f}" in capsys.readouterr().out


def test_the_weights_kept_are_those_of_the_best_validation(monkeypatch, tmp_path):
    """Validation losses 3, 1, 2, 1: the weights of the second validation are kept."""
    query_loss, script, weights = Meta.query_loss, [3.0, 1.0, 2.0, 1.0], []

    def scripted(meta, k_x, *rest):
        if len(k_x) != 1000:  # a training batch
            return query_loss(meta, k_x, *rest)
        weights.append({name: parameter.detach().clone() for name, parameter in meta.net.Param.items()})
        return torch.tensor([script[len(weights) - 1]])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "VALIDATE_EVERY", 1)
    monkeypatch.setattr(Meta, "query_loss", scripted)
    main.train(arguments(monkeypatch, "--epochs", "4"), torch.device("cpu"))
    kept = torch.load("weights/w(k=10).pt")
    assert all(torch.equal(kept[name], weights[1][name]) for name in kept)
    assert not any(torch.equal(kept[name], weights[2][name]) for name in kept)


def test_every_flag_has_a_help_text_and_shows_its_default(tmp_path):
    output = run(tmp_path, "--help")
    assert output.returncode == 0
    options = re.split(r"\n  (?=-)", output.stdout.split("options:")[1])[2:]
    assert len(options) == 14
    for option in options:
        assert re.search(r"\(default:\s+\S+\)", option), option
    for default in ("70000", "0.01", "0.001", "rsse"):
        assert f"default: {default})" in re.sub(r"\s+", " ", output.stdout)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "k=10"),
        (["--k_shot", "5"], "k=5"),
        (["--loss", "mse"], "k=10,loss=mse"),
        (["--inner_steps", "0"], "k=10,inner_steps=0"),
        (["--first_order"], "k=10,first_order"),
        (["--loss", "mse", "--inner_steps", "3", "--first_order"], "k=10,loss=mse,inner_steps=3,first_order"),
        (["--batch_size", "25", "--inner_lr", "0.1", "--outer_lr", "0.1", "--seed", "3", "--epochs", "5"], "k=10"),
    ],
)
def test_file_names_carry_what_is_not_the_default(monkeypatch, words, name):
    args = arguments(monkeypatch, *words)
    assert main.run_name(args, args.inner_steps) == name


def test_random_streams_are_independent_of_each_other():
    """No stream repeats another's, whatever the seed: training tasks never are the validation or the test tasks."""
    firsts = [
        Sinusoid(10, num_tasks=1, seed=(stream, seed)).amplitude.item() for stream in range(4) for seed in range(9)
    ]
    assert len(set(firsts)) == len(firsts)
    assert len({main.DRAWN, main.TRAIN, main.VALIDATION, main.TEST}) == 4


def test_evaluation_in_chunks_equals_evaluation_at_once():
    meta = Meta(inner_lr=1e-3)
    results = [
        main.evaluate(meta, Sinusoid(10, 0, 100, seed=(main.TEST,)), torch.device("cpu"), 1e-3, chunk)
        for chunk in (7, 100)
    ]
    assert results[0].shape == (11, 100)
    assert torch.allclose(*results, rtol=1e-10, atol=1e-10)


def test_evaluation_is_the_error_on_the_grid_after_each_number_of_steps():
    meta, tasks = Meta(inner_lr=1e-3), Sinusoid(5, 0, 3)
    sse = main.evaluate(meta, tasks, torch.device("cpu"), later_lr=5e-4)
    tasks = Sinusoid(5, 0, 3)
    k_x, k_y, _, _ = tasks.__getitems__([0, 1, 2])
    x = torch.linspace(-5, 5, 50, dtype=torch.float64).reshape(1, 50, 1).expand(3, -1, -1)
    y = torch.from_numpy(tasks.amplitude) * torch.sin(x + torch.from_numpy(tasks.phase))
    one = meta.adapt(k_x, k_y, 1)
    for steps, weights in ((0, None), (1, one), (4, meta.adapt(k_x, k_y, 3, one, inner_lr=5e-4))):
        rsse, _ = meta.net(x, y, weights)
        assert torch.allclose(sse[steps].sqrt(), rsse, rtol=0, atol=1e-10)


def test_scores_by_hand():
    """Four tasks with MSE 1, 4, 4, 9, so √SSE = √50 · (1, 2, 2, 3): means 4.5 and 2 √50, standard deviations
    √11 (of 1, 4, 4, 9 around 4.5: squares 12.25 + 0.25 + 0.25 + 20.25 = 33, over 3) and √50 · √(2/3)."""
    scores = main.summarize(50 * torch.tensor([[1.0, 4.0, 4.0, 9.0]], dtype=torch.float64))
    assert scores.mse.item() == pytest.approx(4.5, abs=1e-10)
    assert scores.mse_ci.item() == pytest.approx(1.96 * math.sqrt(11 / 4), abs=1e-10)
    assert scores.rsse.item() == pytest.approx(2 * math.sqrt(50), abs=1e-10)
    assert scores.rsse_ci.item() == pytest.approx(1.96 * math.sqrt(50 * 2 / 3 / 4), abs=1e-10)
    assert scores.median.item() == 4.0
    assert scores.diverged.item() == 0


@pytest.mark.parametrize("blown_up", [math.nan, math.inf, 50 * 101.0])
def test_diverged_tasks_are_counted_and_left_out_of_the_means(blown_up):
    sse = 50 * torch.tensor([[1.0, 4.0, 4.0, 9.0]], dtype=torch.float64)
    expected = main.summarize(sse)
    scores = main.summarize(torch.cat([sse, torch.full((1, 2), blown_up, dtype=torch.float64)], dim=1))
    assert scores.diverged.item() == 2
    for name in ("mse", "mse_ci", "rsse", "rsse_ci"):
        assert getattr(scores, name).item() == pytest.approx(getattr(expected, name).item(), abs=1e-10)
    assert scores.median.item() == 4.0  # of 1, 4, 4, 9 and two that are larger
