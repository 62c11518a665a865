"""The three pictures show what was trained and measured, whatever Matplotlib's settings are."""

import math
from pathlib import Path

import matplotlib
import matplotlib.style
import numpy as np
import pytest
import torch
from conftest import contents, make_weights
from matplotlib.figure import Figure

import main
from data import Sinusoid
from meta import Meta


@pytest.fixture
def figures(monkeypatch):
    """The figures that were drawn, in their order. They are laid out, and their files are empty."""
    figures = []

    def lay_out(figure, file, **options):
        figure.draw_without_rendering()
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", lay_out)
    return figures


def curves(axes):
    """By label: x and y."""
    lines = axes.get_lines()
    return {line.get_label(): [np.ravel(data) for data in line.get_data()] for line in lines}


def texts(artists):
    return [artist.get_text() for artist in artists]


def scores_of(*mse):
    """Of two tasks, which have these MSEs after 0, 1, … 10 steps."""
    return main.summarize(50 * torch.tensor(mse, dtype=torch.float64).T)


def test_a_test_draws_the_predictions_and_scores(program, figures):
    """A panel has the drawn task, its support points, and the predictions after 0, 1, 10 steps."""
    make_weights("w.pt", scale=0.5)
    make_weights("weights/w(k=10,seed=1,inner_steps=0).pt", scale=0.1)
    assert program("--test --seed 1 --test_shots 5 --weights w.pt").code == 0
    graph, steps = figures
    assert graph.get_suptitle() == "K = 10, seed = 1, test shots = 5"
    protocol = "50 test tasks, mean and 95 % confidence interval"
    assert steps.axes[0].get_title() == f"K = 10, seed = 1, test shots = 5\n{protocol}"

    files = {
        "'w.pt'": "w.pt",
        "pretrained on all tasks": "weights/w(k=10,seed=1,inner_steps=0).pt",
    }
    assert list(curves(steps.axes[0])) == texts(steps.legends[0].get_texts()) == list(files)
    drawn, x = Sinusoid(5, 0, 1, seed=(main.DRAWN, 1)), main.GRID
    k_x, k_y, _, _ = drawn.batch([0])
    y = drawn.target([0], x)
    for panel, (label, file) in zip(graph.axes, files.items(), strict=True):
        meta = Meta()
        meta.net.load_state_dict(torch.load(file))
        pred = [p.detach() for p in meta.trajectory(k_x, k_y, x[None], 10)]
        errors = " → ".join(f"{(pred[step] - y).norm():.2f}" for step in (0, 1, 10))
        assert panel.get_title() == f"{label}\n√SSE after 0 → 1 → 10 steps: {errors}"
        expected = {"Ground Truth": (x, y), "Pre Update": (x, pred[0])}
        expected |= {"One Grad Step": (x, pred[1]), "10 Grad Steps": (x, pred[10])}
        expected |= {"K = 5 Support Points": (k_x, k_y)}
        assert list(curves(panel)) == texts(graph.legends[0].get_texts()) == list(expected)
        for name, shown in curves(panel).items():
            np.testing.assert_allclose(shown, [values.flatten() for values in expected[name]])
        mse = main.summarize(main.evaluate(meta, *main.points_of_test_tasks(5)))["mse"]
        np.testing.assert_allclose(curves(steps.axes[0])[label], [range(11), mse])


def test_panels_have_the_scale_of_the_first(figures, tmp_path):
    """A learner that is far off doesn't flatten the others."""
    points, truth = (torch.ones(5, 1), torch.ones(5, 1)), torch.ones(50, 1)
    good, bad = torch.rand(11, 50, 1), 100 * torch.rand(11, 50, 1)
    main.draw_graph(tmp_path / "graph.png", "", points, truth, {"good": good})
    main.draw_graph(tmp_path / "graph.png", "", points, truth, {"good": good, "bad": bad})
    (alone,), panels = figures[0].axes, figures[1].axes
    assert [panel.get_ylim() for panel in panels] == [alone.get_ylim()] * 2
    widths = [panel.get_position().width for panel in panels]
    assert widths[0] == pytest.approx(widths[1])


def test_the_steps_graph_shows_means_and_their_intervals(figures, tmp_path):
    """Tasks that are capped are counted beside the label."""
    good = scores_of(range(11), range(2, 13))
    bad = scores_of([1.0] * 10 + [math.nan], [2.0] * 11)
    worse = scores_of([math.inf] * 11, [3.0] * 10 + [200.0])
    main.draw_steps(tmp_path / "s.png", "", {"good": good, "bad": bad, "worse": worse})
    (axes,), (legend,) = figures[0].axes, figures[0].legends
    labels = ["good", "bad, MSE ≥ 100: 1 task", "worse, MSE ≥ 100: 2 tasks"]
    assert list(curves(axes)) == texts(legend.get_texts()) == labels
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("gradient steps", "MSE of 50 points")
    assert axes.get_ylim()[0] == 0
    np.testing.assert_allclose(curves(axes)["good"], [range(11), range(1, 12)])
    x, y = axes.collections[0].get_paths()[0].vertices.T
    for step in range(11):  # the standard deviation of two tasks that differ by 2 is √2
        edges = y[x == step]
        assert edges.min() == pytest.approx(step + 1 - 1.96)
        assert edges.max() == pytest.approx(step + 1 + 1.96)


LOSS_GRAPHS = [  # flags, title, unit, window of the mean, iterations with a validation, the best
    ("", "K = 10", "√SSE", 10_000, range(10_000, 70_001, 10_000), 20_000),
    ("--epochs 12 --loss mse", "K = 10, epochs = 12, loss = mse", "MSE", 5, [5, 10, 12], 10),
    ("--epochs 2", "K = 10, epochs = 2", "√SSE", 1, [2], 2),
    ("--epochs 1", "K = 10, epochs = 1", "√SSE", 1, [1], 1),
]


@pytest.mark.parametrize(("words", "title", "unit", "window", "validated", "best"), LOSS_GRAPHS)
def test_the_loss_graph(figures, tmp_path, monkeypatch, words, title, unit, window, validated, best):
    """Of a run of any length it shows all losses, their moving average, and the weights kept."""
    monkeypatch.setattr(main, "VALIDATE_EVERY", max(5, window))
    args = main.parse(words.split())
    run = main.Run(Meta(), args.epochs)
    run.losses = np.linspace(9.6, 13, args.epochs).tolist()  # with no 1, 2, 3 or 5 but the 10
    run.validation_losses = [9.7 if iteration == best else math.inf for iteration in validated]
    main.draw_losses(tmp_path / "loss.png", args, run)
    (axes,) = figures[0].axes
    assert axes.get_title() == f"Training, {title}"
    assert (axes.get_ylabel(), axes.get_yscale()) == (f"query loss ({unit})", "log")
    means = [np.mean(run.losses[end - window : end]) for end in range(window, args.epochs + 1)]
    expected = {
        "each meta-batch": (range(1, args.epochs + 1), run.losses),
        f"mean of the last {window:,} iterations": (range(window, args.epochs + 1), means),
        "validation, 1,000 tasks": (validated, run.validation_losses),
        f"weights kept, iteration {best:,}": ([best], [9.7]),
    }
    assert list(curves(axes)) == texts(axes.get_legend().get_texts()) == list(expected)
    for label, shown in curves(axes).items():
        np.testing.assert_allclose(shown, expected[label])
