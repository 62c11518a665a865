"""The three pictures show what was trained and measured, whatever Matplotlib's settings are."""

import re

import matplotlib
import numpy as np
import pytest
import torch
from conftest import contents, leave_only, make_weights

import main
from data import Sinusoid
from meta import Meta
from net import Net, mse


def assert_shown(axes, legend, expected):
    """Curves by label: x and y. The legend has the same labels, and all can be laid out."""
    axes.figure.draw_without_rendering()
    assert axes.get_xlabel()
    lines = axes.get_lines()
    labels = [text.get_text() for text in legend.get_texts()]
    assert [line.get_label() for line in lines] == labels == list(expected)
    for line, (x, y) in zip(lines, expected.values(), strict=True):
        np.testing.assert_allclose(line.get_xydata(), np.column_stack([np.ravel(x), np.ravel(y)]))


def test_a_test_draws_the_predictions_and_scores(program, figures):
    """By every learner, with the true curve and support points. A $ in a file name is not math."""
    files = {
        "'$^$.pt'": "$^$.pt",
        main.PRETRAINED: "weights/w(k=10,seed=1,loss=mse,inner_steps=0).pt",
    }
    for scale, file in enumerate(files.values(), start=1):
        make_weights(file, 0.2 * scale)
    assert program("--test --seed 1 --loss mse --test_shots 5 --weights $^$.pt").code == 0
    graph, steps = figures
    drawn, x, means = Sinusoid(5, 0, 1, seed=(main.DRAWN, 1)), main.GRID, {}
    k_x, k_y, _, _ = drawn.batch([0])
    y = drawn.target([0], x)
    for panel, (label, file) in zip(graph.axes, files.items(), strict=True):
        meta = Meta(Net(), mse)
        meta.net.load_state_dict(torch.load(file))
        pred = [meta.net(x[None], meta.adapt(k_x, k_y, steps)[-1]).detach() for steps in range(11)]
        errors = " → ".join(f"{(pred[step] - y).square().mean():.2f}" for step in (0, 1, 10))
        assert panel.get_title() == f"{label}\nMSE after 0 → 1 → 10 steps: {errors}"
        expected = {"Ground Truth": (x, y), "Pre Update": (x, pred[0])}
        expected |= {"One Grad Step": (x, pred[1]), "10 Grad Steps": (x, pred[10])}
        expected |= {"K = 5 Support Points": (k_x, k_y)}
        assert_shown(panel, graph.legends[0], expected)
        means[label] = (range(11), main.summarize(main.evaluate(meta, 5))["mse"])
    assert_shown(steps.axes[0], steps.legends[0], means)
    assert graph.get_suptitle() == "K = 10, seed = 1, loss = mse, test shots = 5"
    assert steps.axes[0].get_title().startswith(graph.get_suptitle())


@pytest.mark.parametrize("far", [3.0, np.nan])
def test_panels_have_the_scale_of_the_first_step_of_the_first(figures, tmp_path, far):
    """Another learner, or ten steps, that are far off don't flatten the others."""
    points, y = (torch.ones(5, 1), torch.ones(5, 1)), torch.ones(50, 1)
    good = torch.rand(11, 50, 1)
    main.draw_graph(tmp_path / "graph.png", "", "rsse", points, y, {"good": good})
    ten = torch.cat((good[:10], far * good[10:]))
    main.draw_graph(tmp_path / "graph.png", "", "rsse", points, y, {"good": ten, "bad": far * good})
    (low, high), (bottom, top), of_all = (panel.get_ylim() for f in figures for panel in f.axes)
    assert (bottom, top) == of_all
    assert (top > high) == np.isfinite(far)  # it grows by half at most
    assert top - bottom <= 1.5 * (high - low) + 1e-9


def test_the_steps_graph_shows_means_and_intervals(figures, tmp_path):
    """Tasks that are capped are counted in the title."""
    mse = torch.tensor([range(11), range(2, 13)], dtype=torch.float64).T  # of two tasks
    one_is_capped, both_are = mse.clone(), mse.clone()
    one_is_capped[4, 1] = both_are[4] = np.nan
    scores = [main.summarize(50 * tasks) for tasks in (mse, one_is_capped, both_are)]
    main.draw_steps(tmp_path / "steps.png", "", dict(zip("ABC", scores, strict=True)))
    (axes,), (legend,) = figures[0].axes, figures[0].legends
    means = [(range(11), score["mse"]) for score in scores]
    assert_shown(axes, legend, dict(zip("ABC", means, strict=True)))
    notes = axes.get_title().splitlines()[2:]
    assert [(note[0], *re.findall(r"up to (\d+)", note)) for note in notes] == [
        ("B", "1"),
        ("C", "2"),
    ]
    assert axes.get_ylim()[0] == 0
    x, y = axes.collections[0].get_paths()[0].vertices.T
    for step in range(11):  # the standard deviation of two tasks that differ by 2 is √2
        edges = y[x == step]
        assert (edges.min(), edges.max()) == pytest.approx((step + 1 - 1.96, step + 1 + 1.96))


def test_the_loss_graph_shows_losses_means_and_validations(figures, tmp_path, monkeypatch):
    """And which weights are kept, those of the best validation."""
    monkeypatch.setattr(main, "VALIDATE_EVERY", 5)
    losses, iterations = np.geomspace(14, 5.2, 12), range(1, 13)
    validations = {5: np.inf, 10: 6.0, 12: 6.0}
    means = [np.mean(losses[end - 5 : end]) for end in iterations[4:]]
    args = main.parse(["--epochs", "12", "--loss", "mse"])
    main.draw_losses(tmp_path / "loss.png", args, losses.tolist(), validations)
    (axes,) = figures[0].axes
    expected = {
        "each meta-batch": (iterations, losses),
        "mean of the last 5 iterations": (iterations[4:], means),
        "validation, 1,000 tasks": ([5, 10, 12], [np.inf, 6.0, 6.0]),
        "weights kept, iteration 10": (10, 6.0),
    }
    assert_shown(axes, axes.get_legend(), expected)
    assert axes.get_title() == "Training, K = 10, epochs = 12, loss = mse"
    assert (axes.get_ylabel(), axes.get_yscale()) == ("query loss (MSE)", "log")


@pytest.mark.parametrize(
    ("lowest", "ratio"), [(5.6, 1.01), (13.0, 1.1), (5.6, 1.6), (1.0, 5.0), (1.0, 1e9)]
)
def test_the_loss_graph_has_ticks_at_any_range(figures, tmp_path, lowest, ratio):
    """A few labels, and a grid."""
    highest = lowest * ratio
    losses = np.geomspace(lowest, highest, 30).tolist()
    main.draw_losses(tmp_path / "loss.png", main.parse(["--epochs", "30"]), losses, {30: highest})
    (axes,) = figures[0].axes
    axes.figure.draw_without_rendering()
    low, high = axes.get_ylim()
    ticks = axes.yaxis.get_major_ticks() + axes.yaxis.get_minor_ticks()
    shown = [tick for tick in ticks if low <= tick.get_loc() <= high]
    assert 2 <= len({tick.label1.get_text() for tick in shown} - {""}) <= 16
    assert any(tick.gridline.get_visible() for tick in shown)


def test_no_setting_of_the_user_reaches_a_picture(program, monkeypatch):
    """The bytes are the same with any matplotlibrc. The default run has a graph of a short name."""
    monkeypatch.setitem(main.SETTINGS, "epochs", 1)  # one can be drawn, too

    def draw():
        leave_only({})
        assert program("").code == program("--test").code == 0
        return contents()

    plain = draw()
    assert "res/loss_final.png" in plain
    users = {"font.size": 20, "text.usetex": True, "path.sketch": (1, 100, 2)}
    users |= {"savefig.format": "pdf", "savefig.bbox": "tight", "savefig.dpi": 30}
    matplotlib.rcParams.update({**users, "axes.facecolor": "black"})
    before = matplotlib.rcParams.copy()
    assert draw() == plain
    assert matplotlib.rcParams == before  # and the user's session keeps them
