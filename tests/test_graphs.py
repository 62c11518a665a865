"""The three pictures show what was trained and measured, whatever Matplotlib's settings are."""

import matplotlib.style
import numpy as np
import pytest
import torch
from conftest import contents, leave_only, make_weights, saved
from matplotlib.figure import Figure

import main
from data import Sinusoid
from meta import Meta


@pytest.fixture
def figures(monkeypatch):
    """The figures that were drawn, in their order. Their files stay empty, to save time."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    return figures


def assert_shown(axes, legend, expected):
    """Curves by label: x and y. The legend has the same labels, and all can be laid out."""
    axes.figure.draw_without_rendering()
    lines = axes.get_lines()
    labels = [text.get_text() for text in legend.get_texts()]
    assert [line.get_label() for line in lines] == labels == list(expected)
    for line, (x, y) in zip(lines, expected.values(), strict=True):
        np.testing.assert_allclose(line.get_xydata(), np.column_stack([np.ravel(x), np.ravel(y)]))


def test_a_test_draws_the_predictions_and_scores(program, figures):
    """By every learner, with the true curve and support points. A $ in a file name is not math."""
    files = {"'$^$.pt'": "$^$.pt", main.PRETRAINED: "weights/w(k=10,seed=1,inner_steps=0).pt"}
    for file, scale in zip(files.values(), (0.5, 0.1), strict=True):
        make_weights(file, scale)
    assert program("--test --seed 1 --test_shots 5 --weights $^$.pt").code == 0
    graph, steps = figures
    drawn, x, means = Sinusoid(5, 0, 1, seed=(main.DRAWN, 1)), main.GRID, {}
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
        assert_shown(panel, graph.legends[0], expected)
        scores = main.summarize(main.evaluate(meta, *main.points_of_test_tasks(5)))
        means[label] = (range(11), scores["mse"])
    assert_shown(steps.axes[0], steps.legends[0], means)
    title, protocol = graph.get_suptitle(), "50 test tasks, mean and 95 % confidence interval"
    assert title == "K = 10, seed = 1, test shots = 5"
    assert steps.axes[0].get_title() == f"{title}\n{protocol}"


def test_panels_have_the_scale_of_the_first(figures, tmp_path):
    """A learner that is far off doesn't flatten the others."""
    points, truth = (torch.ones(5, 1), torch.ones(5, 1)), torch.ones(50, 1)
    good, bad = torch.rand(11, 50, 1), 100 * torch.rand(11, 50, 1)
    main.draw_graph(tmp_path / "graph.png", "", points, truth, {"good": good})
    main.draw_graph(tmp_path / "graph.png", "", points, truth, {"good": good, "bad": bad})
    (alone,), panels = figures[0].axes, figures[1].axes
    assert [panel.get_ylim() for panel in panels] == [alone.get_ylim()] * 2


def test_the_steps_graph_shows_means_and_intervals(figures, tmp_path):
    """Tasks that are capped are counted beside the label."""
    mse = torch.tensor([range(11), range(2, 13)], dtype=torch.float64).T  # of two tasks
    one_is_capped, both_are = mse.clone(), mse.clone()
    one_is_capped[4, 1] = both_are[4] = np.nan
    scores = [main.summarize(50 * tasks) for tasks in (mse, one_is_capped, both_are)]
    main.draw_steps(tmp_path / "steps.png", "", dict(zip("ABC", scores, strict=True)))
    (axes,), (legend,) = figures[0].axes, figures[0].legends
    labels = ["A", "B, MSE ≥ 100: 1 task", "C, MSE ≥ 100: 2 tasks"]
    means = [(range(11), score["mse"]) for score in scores]
    assert_shown(axes, legend, dict(zip(labels, means, strict=True)))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("gradient steps", "MSE of 50 points")
    assert axes.get_ylim()[0] == 0
    x, y = axes.collections[0].get_paths()[0].vertices.T
    for step in range(11):  # the standard deviation of two tasks that differ by 2 is √2
        edges = y[x == step]
        assert (edges.min(), edges.max()) == pytest.approx((step + 1 - 1.96, step + 1 + 1.96))


RUNS = [(np.geomspace(14, 5.2, 12), 5, [5, 10, 12], 10), ([13, 9.6], 1, [2], 2), ([10], 1, [1], 1)]


@pytest.mark.parametrize(("losses", "window", "validated", "best"), RUNS)
def test_the_loss_graph(figures, tmp_path, monkeypatch, losses, window, validated, best):
    """Of a run of any length it shows all losses, their moving average, and the weights kept."""
    monkeypatch.setattr(main, "VALIDATE_EVERY", 5)
    epochs, iterations = len(losses), range(1, len(losses) + 1)
    run = main.Run(Meta(), epochs)
    run.losses = list(losses)
    run.validation_losses = [10.0 if iteration == best else np.inf for iteration in validated]
    args = main.parse(f"--epochs {epochs} --loss mse".split())
    main.draw_losses(tmp_path / "loss.png", args, run)
    (axes,) = figures[0].axes
    means = [np.mean(losses[end - window : end]) for end in iterations[window - 1 :]]
    expected = {
        "each meta-batch": (iterations, losses),
        f"mean of the last {window} iterations": (iterations[window - 1 :], means),
        "validation, 1,000 tasks": (validated, run.validation_losses),
        f"weights kept, iteration {best}": (best, 10.0),
    }
    assert_shown(axes, axes.get_legend(), expected)
    assert axes.get_title() == f"Training, K = 10, epochs = {epochs}, loss = mse"
    assert (axes.get_ylabel(), axes.get_yscale()) == ("query loss (MSE)", "log")
    # A point without neighbors is seen, iterations are whole numbers, and the losses have a scale.
    assert [line.get_marker() for line in axes.get_lines()[2:]] == [".", "*"]
    assert all(tick == round(tick) for tick in axes.get_xticks())
    low, high = axes.get_ylim()
    numbers = [label.get_text() for label in axes.get_yticklabels(which="both")]
    assert sum(low < float(number) < high for number in numbers if number) > 1


def test_the_loss_graph_of_the_default_run(program, figures):
    """It has a short name. The run is resumed here for its last iteration."""
    run = main.Run(Meta(), epochs=70_000)
    run.losses, run.validation_losses = [2.0] * 69_999, [3.0] * 399 + [2.0] + [3.0] * 13_599
    leave_only({"weights/checkpoint(k=10).pt": saved(run.state())})
    assert program("--resume").code == 0
    assert set(contents()) == {"res/loss_final.png", "weights/w(k=10).pt"}
    (axes,) = figures[0].axes
    assert (axes.get_title(), axes.get_ylabel()) == ("Training, K = 10", "query loss (√SSE)")
    losses, *_, kept = axes.get_lines()
    assert losses.get_ydata()[:-1].tolist() == run.losses
    assert kept.get_label() == "weights kept, iteration 2,000"


def test_no_setting_of_the_user_reaches_a_picture(program):
    """The bytes are the same with any matplotlibrc, and his settings stay as they are."""

    def draw():
        leave_only({})
        assert program("--epochs 3").code == program("--epochs 3 --test").code == 0
        return contents()

    plain = draw()
    users = {"font.size": 20, "text.usetex": True, "path.sketch": (1, 100, 2)}
    users |= {"savefig.format": "pdf", "savefig.bbox": "tight", "savefig.dpi": 30}
    with matplotlib.style.context(["dark_background", users]):
        before = matplotlib.rcParams.copy()
        assert draw() == plain
        assert matplotlib.rcParams.copy() == before
