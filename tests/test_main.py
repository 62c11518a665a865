"""The program as its user meets it: its commands, the names of its files, what it trains and what it prints."""

import io
import itertools
import math
import re
import shutil
import sys
import time
import warnings
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from command_line import run

import main
from data import Sinusoid, meta_batches
from meta import Meta


def files(folder="."):
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def contents():
    return {name: Path(name).read_bytes() for name in files()}


def make_weights(path, scale=1.0, **settings):
    """Weights that nobody trained, in a file."""
    Path(path).parent.mkdir(exist_ok=True)
    torch.save({name: scale * w for name, w in Meta(**settings).net.state_dict().items()}, path)


def assert_pictures(paths):
    for path in paths:
        pixels = matplotlib.image.imread(path)
        assert min(pixels.shape[:2]) > 400
        assert len(np.unique(pixels @ [1, 2, 4, 8])) > 20  # colours


def load_weights(meta, path):
    meta.net.load_state_dict(torch.load(path))
    return meta


def record_figures(monkeypatch):
    """The figures that are drawn from now on: the name of its file -> figure."""
    write, figures = main.write, {}

    def recorded_write(path, save):
        figures[path.name] = getattr(save, "__self__", None)
        write(path, save)

    monkeypatch.setattr(main, "write", recorded_write)
    return figures


def plotted(*figures):
    """What these figures show: label -> (x, y)."""
    lines = [line for figure in figures for axes in figure.axes for line in axes.get_lines()]
    return {line.get_label(): tuple(np.ravel(points).tolist() for points in line.get_data()) for line in lines}


def test_training_and_the_same_command_with_test_as_a_user_runs_them(tmp_path):
    name, words = "k=10,epochs=30,batch_size=4", ("--epochs", "30", "--batch_size", "4")
    training = run(tmp_path, *words)
    assert training.returncode == 0, training
    assert files(tmp_path) == {f"res/loss_final({name}).png", f"weights/w({name}).pt"}
    first, weights, graph = training.stdout.splitlines()
    for setting in ("epochs=30", "batch_size=4", "k_shot=10", "inner_lr=0.01", "outer_lr=0.001", "seed=0", "device=c"):
        assert setting in first
    assert graph == f"loss graph: res/loss_final({name}).png; the same command with --test measures the weights"
    assert re.fullmatch(re.escape(f"weights: weights/w({name}).pt, best validation loss: ") + r"\d+\.\d+", weights)
    for words_of_the_bar in ("30/30", "it/s", "loss"):
        assert words_of_the_bar in training.stderr

    testing = run(tmp_path, *words, "--test")
    assert testing.returncode == 0, testing
    assert files(tmp_path) == {
        f"res/graph({name}).png",
        f"res/loss_final({name}).png",
        f"res/steps({name}).png",
        f"weights/w({name}).pt",
    }
    assert_pictures(tmp_path.glob("res/*.png"))
    rows = [re.findall(r"[\d.]+", line) for line in testing.stdout.splitlines() if re.match(r" +\d+ ", line)]
    assert [int(row[0]) for row in rows] == [0, 1, 2, 3, 5, 10]
    assert all(row[-1] == "10000" for row in rows)
    assert "/100 [" in testing.stderr  # the bar, over chunks
    assert "Warning" not in training.stderr + testing.stderr


# Names

NAMES = {
    "": "k=10",
    "--k_shot 5": "k=5",
    "--epochs 600": "k=10,epochs=600",
    "--loss mse": "k=10,loss=mse",
    "--inner_steps 0": "k=10,inner_steps=0",
    "--first_order": "k=10,first_order",
    "--seed 1": "k=10,seed=1",
    "--inner_lr 0.1 --outer_lr 1e-4": "k=10,inner_lr=0.1,outer_lr=0.0001",
    "--outer_lr 1e-300": "k=10,outer_lr=1e-300",
    "--batch_size 25 --loss mse": "k=10,batch_size=25,loss=mse",
    "--loss mse --batch_size 25": "k=10,batch_size=25,loss=mse",
    "--inner_steps 2 --loss mse --batch_size 25 --k_shot 5": "k=5,batch_size=25,loss=mse,inner_steps=2",
    "--loss mse --inner_steps 3 --first_order": "k=10,loss=mse,inner_steps=3,first_order",
    "--first_order --seed 3 --outer_lr 2e-3 --inner_lr .02 --k_shot 7 --batch_size 2 --epochs 99": (
        "k=7,epochs=99,batch_size=2,inner_lr=0.02,outer_lr=0.002,seed=3,first_order"
    ),
    # What is given, but is the default:
    "--k_shot 10 --epochs 70000 --batch_size 10 --inner_lr 0.010 --outer_lr 1e-3": "k=10",
    "--seed 0 --loss rsse --inner_steps 1": "k=10",
}


@pytest.mark.parametrize("words", NAMES)
def test_files_carry_every_training_setting_that_is_not_the_default(program, monkeypatch, words):
    name = NAMES[words]
    args = main.parse(words.split())
    assert main.run_name(args) == name
    assert program(words, interrupt_at=6).code == 130
    checkpoint = Path(f"weights/checkpoint({name}).pt")
    assert files() == {str(checkpoint)}

    ended = {key: torch.ones(args.epochs, dtype=torch.float64) for key in ("losses", "validation_losses")}
    torch.save({**torch.load(checkpoint), **ended}, checkpoint)
    monkeypatch.setattr(main, "draw_losses", lambda path, *_: main.write(path, lambda file: file.write(b"a graph")))
    assert program(f"{words} --resume").code == 0
    assert files() == {
        f"weights/w({name}).pt",
        "res/loss_final.png" if name == "k=10" else f"res/loss_final({name}).png",
    }


@pytest.mark.parametrize("words", NAMES)
def test_the_flags_of_the_training_and_test_are_what_measures_it(program, words):
    name = NAMES[words]
    make_weights(f"weights/w({name}).pt")
    before = contents()
    output = program(f"{words} --test")
    assert output.code == 0
    assert f"weights/w({name}).pt" in "\n".join(output.out)
    assert files() == {*before, f"res/graph({name}).png", f"res/steps({name}).png"}


@pytest.mark.parametrize(
    "words", ["--compile", "--resume", "--compile --resume", "--test", "--test --weights x.pt", "--weights x.pt --test"]
)
def test_what_is_no_training_setting_does_not_name_a_run(words):
    assert main.run_name(main.parse(words.split())) == "k=10"
    assert main.run_name(main.parse(f"{words} --seed 3 --k_shot 5".split())) == "k=5,seed=3"


def test_settings_that_differ_give_names_that_differ():
    values = [
        ("--k_shot 5", "--k_shot 15"),
        ("--epochs 5", "--epochs 15"),
        ("--batch_size 5", "--batch_size 15"),
        ("--inner_lr 0.1", "--inner_lr 0.10000000000000002"),
        ("--outer_lr 5", "--outer_lr 15"),
        ("--seed 5", "--seed 15"),
        ("--loss mse",),
        ("--inner_steps 5", "--inner_steps 15"),
        ("--first_order",),
    ]
    runs = [" ".join(words) for words in itertools.product(*(("", *words[:1]) for words in values))]
    runs += [words[1] for words in values if len(words) == 2]
    assert len({main.run_name(main.parse(words.split())) for words in runs}) == len(runs)
    assert len(values) == len(
        [key for key in vars(main.parse([])) if key not in ("compile", "resume", "test", "weights")]
    )


@pytest.mark.parametrize(
    "words",
    ["--epochs 3", "--epochs 12 --seed 1", "--epochs 12 --batch_size 4 --inner_lr 0.1", "--epochs 12 --outer_lr 0.1"],
)
def test_no_run_touches_a_file_of_the_default_one(program, words):
    for name in ("res/loss_final.png", "res/graph(k=10).png", "res/steps(k=10).png", "weights/w(k=10).pt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(b"of the default run")
    before = contents()
    assert program(words).code == 0
    assert program(f"{words} --test").code == 0
    after = contents()
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 4


def test_two_seeds_leave_two_files(program):
    for seed in (1, 2):
        assert program(f"--epochs 12 --seed {seed}").code == 0
    assert {name for name in files() if name.endswith(".pt")} == {
        "weights/w(k=10,epochs=12,seed=1).pt",
        "weights/w(k=10,epochs=12,seed=2).pt",
    }


def test_measuring_other_weights_or_another_drawn_task_leaves_the_graph_of_the_default_run(program):
    for name in ("weights/w(k=10).pt", "weights/w(k=10,seed=1).pt", "other.pt"):
        make_weights(name)
    assert program("--test").code == 0
    before = contents()
    assert {"res/graph(k=10).png", "res/steps(k=10).png"} < set(before)
    for words in ("--seed 1", "--weights other.pt", "--seed 1 --weights other.pt", "--weights 'weights/w(k=10).pt'"):
        assert program(f"--test {words}").code == 0
        assert {name: content for name, content in contents().items() if name in before} == before
    assert files() - set(before) == {
        f"res/{kind}({name}).png"
        for kind in ("graph", "steps")
        for name in ("k=10,seed=1", "k=10,weights=other", "k=10,seed=1,weights=other", "k=10,weights=w(k=10)")
    }


# What is printed


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_any_terminal_shows_what_is_printed(program, monkeypatch, encoding):
    make_weights("weights/w(k=10).pt")
    for words in ("--help", "--test"):
        terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", terminal)
            assert program(words).code == 0
        assert "?SSE" in terminal.buffer.getvalue().decode(encoding) or words == "--help"
    assert "res/graph(k=10).png" in files()


def test_every_flag_has_a_help_text_and_shows_its_default(program, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    output = program("--help")
    assert output.code == 0
    text = "\n".join(output.out)
    options = re.split(r"\n  (?=-)", re.split(r"\n\w[^\n]*:\n", text, maxsplit=1)[1])[1:]
    assert len(options) == 13
    for option in options:
        assert re.search(r"[a-z]{3}.*\(default:\s+\S+\)", option, re.DOTALL), option
    for default in ("70000", "0.01", "0.001", "rsse"):
        assert f"default: {default})" in re.sub(r"\s+", " ", text)


# Training


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"seed": 3},
        {"k_shot": 5, "batch_size": 25, "inner_lr": 0.02, "outer_lr": 0.01, "loss": "mse"},
        {"inner_steps": 2},
        {"first_order": True},
    ],
)
def test_training_is_the_sum_of_its_parts(program, settings):
    """Initial weights and tasks of the seed, steps on them, and the best on the validation tasks is kept."""
    flags = (f"--{name}" if value is True else f"--{name} {value}" for name, value in settings.items())
    output = program(" ".join(["--epochs 12", *flags]))
    assert output.code == 0
    settings = dict(settings)

    k_shot, batch_size, seed = (settings.pop(*item) for item in (("k_shot", 10), ("batch_size", 10), ("seed", 0)))
    torch.manual_seed(seed)
    meta, kept, lowest = Meta(**settings), None, math.inf
    held_out = Sinusoid(k_shot, num_tasks=20, seed=(main.VALIDATION,)).batch(range(20))
    batches = meta_batches(Sinusoid(k_shot, seed=(main.TRAIN, seed)), batch_size)
    for iteration, batch in zip(range(1, 13), batches, strict=False):
        meta(*batch)
        if iteration in (5, 10, 12):
            loss = meta.query_loss(*held_out).mean().item()
            if loss < lowest:
                lowest, kept = loss, {name: w.detach().clone() for name, w in meta.net.Param.items()}
    assert f"best validation loss: {lowest:.5g}" in output.out[-2]
    (path,) = Path("weights").iterdir()
    weights = torch.load(path)
    assert all(torch.equal(weights[name], w) for name, w in kept.items())


def test_same_seed_same_weights(program):
    weights = {}
    for attempt, seed in enumerate((0, 0, 1)):
        assert program(f"--epochs 12 --seed {seed}").code == 0
        (path,) = Path("weights").iterdir()
        weights[attempt] = torch.load(path)
        path.unlink()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not any(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_one_thread_unless_the_environment_says_otherwise(program, monkeypatch):
    """Two runs at once, each with a thread for every core, take many times as long as with one each."""
    try:
        torch.set_num_threads(2)
        assert program("--epochs 3").code == 0
        assert torch.get_num_threads() == 1
        torch.set_num_threads(2)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        assert program("--epochs 3").code == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_the_seed_decides_the_initial_weights(program):
    """At a learning rate that moves nothing, they are what is left at the end."""
    weights = {}
    for seed in (0, 1):
        assert program(f"--epochs 3 --outer_lr 1e-300 --seed {seed}").code == 0
        weights[seed] = torch.load(f"weights/w(k=10,epochs=3,outer_lr=1e-300{',seed=1' * seed}).pt")
        torch.manual_seed(seed)
        assert all(torch.equal(weights[seed][name], w) for name, w in Meta().net.Param.items())
    assert not any(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_training_learns_the_same_and_a_run_may_change_between_the_two(program):
    path = Path("weights/w(k=10,epochs=30).pt")
    assert program("--epochs 30").code == 0
    eager = torch.load(path)
    path.unlink()
    assert program("--epochs 30", interrupt_at=7).code == 130
    assert program("--epochs 30 --resume --compile", interrupt_at=14).code == 130
    assert len(torch.load("weights/checkpoint(k=10,epochs=30).pt")["losses"]) == 19
    assert program("--epochs 30 --resume").code == 0
    assert all(torch.allclose(eager[name], w, rtol=0, atol=1e-9) for name, w in torch.load(path).items())


def test_more_iterations_than_tasks_and_validation_in_between(program, monkeypatch):
    """Validation after iterations 4 and 8, and after the last, 10: that is also what the graph shows."""
    figures, runs, draw_losses = record_figures(monkeypatch), [], main.draw_losses

    def recorded_draw(path, args, run):
        runs.append(run)
        draw_losses(path, args, run)

    monkeypatch.setattr(main, "VALIDATE_EVERY", 4)
    monkeypatch.setattr(main, "Sinusoid", lambda k, num_tasks=7, seed=0: Sinusoid(k, num_tasks=num_tasks, seed=seed))
    monkeypatch.setattr(main, "draw_losses", recorded_draw)
    output = program("--epochs 10 --batch_size 3")
    assert output.code == 0
    (run,) = runs
    assert len(run.losses) == 10
    assert len(run.validation_losses) == 3
    assert f"best validation loss: {min(run.validation_losses):.5g}" in output.out[-2]
    lines = plotted(figures["loss_final(k=10,epochs=10,batch_size=3).png"])
    means = [sum(run.losses[i : i + 4]) / 4 for i in range(7)]
    assert lines["training, each meta-batch"] == (list(range(1, 11)), run.losses)
    assert lines["training, mean of the last 4 iterations"] == (list(range(4, 11)), pytest.approx(means))
    assert lines["validation, 20 tasks"] == ([4, 8, 10], run.validation_losses)


@pytest.mark.parametrize(
    "script", [[3.0, 1.0, 2.0, 1.0], [math.nan, 1.0, math.nan, 2.0], [math.inf, 1.0, math.inf, 1.5]]
)
def test_the_weights_kept_are_those_of_the_best_validation(program, monkeypatch, script):
    """The second, in all of these: a validation that is not finite is not the best."""
    query_loss, weights = Meta.query_loss, []

    def scripted(meta, k_x, *rest):
        if len(k_x) != 20:  # a training batch
            return query_loss(meta, k_x, *rest)
        weights.append({name: parameter.detach().clone() for name, parameter in meta.net.Param.items()})
        return torch.tensor([script[len(weights) - 1]])

    monkeypatch.setattr(main, "VALIDATE_EVERY", 1)
    monkeypatch.setattr(Meta, "query_loss", scripted)
    output = program("--epochs 4")
    assert output.out[-2].endswith("best validation loss: 1")
    kept = torch.load("weights/w(k=10,epochs=4).pt")
    assert all(torch.equal(kept[name], weights[1][name]) for name in kept)
    assert not any(torch.equal(kept[name], weights[2][name]) for name in kept)


def test_validation_in_chunks_is_the_mean_over_all_tasks(monkeypatch):
    run, batch = main.Run(Meta()), Sinusoid(10, num_tasks=25).batch(range(25))
    expected = run.meta.query_loss(*batch).mean().item()
    for chunk in (1, 7, 100):
        monkeypatch.setattr(main, "CHUNK", chunk)
        run.validate(batch)
    assert run.validation_losses == pytest.approx(3 * [expected], abs=1e-10)


def test_no_graph_searches_a_place_for_its_legend(tmp_path, monkeypatch):
    """Among 700,000 iterations that takes Matplotlib more than a second, and then it warns: the clock here is fast."""
    scores = main.summarize(torch.rand(11, 50, dtype=torch.float64))
    monkeypatch.setattr(time, "perf_counter", itertools.count(step=1000).__next__)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = main.Run(Meta())
        run.losses, run.validation_losses = [3.0, 1.0, 2.0], [1.5]
        main.draw_losses(tmp_path / "loss.png", main.parse([]), run)
        main.draw_steps(tmp_path / "steps.png", 10, {"MAML": scores})
    assert_pictures(tmp_path.iterdir())


def test_random_streams_are_independent_of_each_other():
    """No stream repeats another's, whatever the seed: training tasks never are the validation or the test tasks."""
    firsts = [
        Sinusoid(10, num_tasks=1, seed=(stream, seed)).amplitude.item() for stream in range(4) for seed in range(9)
    ]
    assert len(set(firsts)) == len(firsts)
    assert len({main.DRAWN, main.TRAIN, main.VALIDATION, main.TEST}) == 4
    firsts = [Sinusoid(10, num_tasks=1, seed=(main.TRAIN, seed)).amplitude.item() for seed in range(99)]
    for stream in (main.VALIDATION, main.TEST):
        assert Sinusoid(10, num_tasks=1, seed=(stream,)).amplitude.item() not in firsts


# The evaluation


def table(output):
    return [line for line in output.out if re.match(r" +\d+ ", line)]


SCORES = ("rsse", "rsse_ci", "mse", "mse_ci", "median")


@pytest.mark.parametrize(
    ("words", "settings"),
    [("", {}), ("--loss mse", {"loss": "mse"}), ("--inner_lr 0.004", {"inner_lr": 0.004}), ("--k_shot 5", {})],
)
def test_the_test_prints_the_line_of_the_original_and_the_table(program, words, settings):
    """Of a Meta with the settings of the command line."""
    make_weights("w.pt", scale=0.5)
    baseline = main.parse([*words.split(), "--inner_steps", "0"])
    make_weights(f"weights/w({main.run_name(baseline)}).pt")
    output = program(f"--test --weights w.pt {words}")
    assert output.code == 0
    lines = [re.fullmatch(r"\| pre loss: (\d+\.\d{3}) \| post loss: (\d+\.\d{3}) \|", line) for line in output.out]
    (pre, post), _ = (line.groups() for line in lines if line)

    # The same two losses from the parts: √SSE over the 50 points, of the task that seed 0 draws.
    meta = load_weights(Meta(**settings), "w.pt")
    task = Sinusoid(baseline.k_shot, num_tasks=1, seed=(main.DRAWN, 0))
    k_x, k_y, _, _ = task.batch([0])
    x = torch.linspace(-5, 5, 50, dtype=torch.float64).reshape(1, 50, 1)
    y = task.amplitude[0].item() * torch.sin(x + task.phase[0].item())
    for printed, steps in ((pre, 0), (post, 1)):
        _, pred = meta.net(x, y, meta.adapt(k_x, k_y, steps))
        assert float(printed) == pytest.approx((pred - y).square().sum().sqrt().item(), abs=6e-4)

    assert [int(line.split()[0]) for line in table(output)] == 2 * [0, 1, 2, 3, 5, 10]
    assert all(line.endswith(" of 50") for line in table(output))
    assert_pictures(Path("res").iterdir())
    assert re.fullmatch(r"graphs: res/graph\(.*\)\.png, res/steps\(.*\)\.png", output.out[-1])
    assert "chunk" in "\n".join(output.err)  # a bar: the whole takes ten seconds

    # The numbers are those of the test tasks, which no seed changes.
    tasks = Sinusoid(baseline.k_shot, q_query=0, num_tasks=50, seed=(main.TEST,))
    scores = main.summarize(main.evaluate(meta, tasks))
    for line, step in zip(table(output)[:6], (0, 1, 2, 3, 5, 10), strict=True):
        printed = [float(word) for word in re.findall(r"\d+\.\d+", line)]
        assert printed == pytest.approx([scores[name][step].item() for name in SCORES], abs=6e-4)


STEPS = {"Pre Update": 0, "One Grad Step": 1, "10 Grad Steps": 10}


def test_the_graphs_show_what_was_computed(program, monkeypatch):
    make_weights("weights/w(k=10).pt")
    figures = record_figures(monkeypatch)
    assert program("--test").code == 0
    graph, steps_graph = figures["graph(k=10).png"], figures["steps(k=10).png"]
    lines = plotted(graph, steps_graph)
    meta = load_weights(Meta(), "weights/w(k=10).pt")
    task = Sinusoid(10, num_tasks=1, seed=(main.DRAWN, 0))
    k_x, k_y, _, _ = task.batch([0])
    x = torch.linspace(-5, 5, 50, dtype=torch.float64).reshape(1, 50, 1)
    y = task.amplitude[0].item() * torch.sin(x + task.phase[0].item())
    expected = {"Ground Truth": (x, y), "K = 10 Support Points": (k_x, k_y)}
    for label, steps in STEPS.items():
        expected[label] = x, meta.net(x, y, meta.adapt(k_x, k_y, steps))[1].detach()
    scores = main.summarize(main.evaluate(meta, Sinusoid(10, q_query=0, num_tasks=50, seed=(main.TEST,))))
    label = f"MAML, without {scores['diverged'].max()} diverged" if scores["diverged"].any() else "MAML"
    expected[label] = torch.arange(11), scores["mse"]
    assert set(lines) == set(expected)
    for name, points in expected.items():
        for drawn, values in zip(lines[name], points, strict=True):
            assert drawn == pytest.approx(values.flatten().tolist(), abs=1e-9), name

    title = graph.axes[0].get_title()
    assert "√SSE after 0 → 1 → 10 steps" in title
    errors = [(expected[label][1] - y).square().sum().sqrt().item() for label in STEPS]
    assert [float(number) for number in re.findall(r"\d+\.\d\d", title)] == pytest.approx(errors, abs=6e-3)
    (band,) = steps_graph.axes[0].collections
    edge = torch.from_numpy(band.get_paths()[0].vertices[:, 1])
    for bound in (scores["mse"] - scores["mse_ci"], scores["mse"] + scores["mse_ci"]):
        assert all((edge - value).abs().min() < 1e-9 for value in bound)


def test_the_evaluation_takes_no_second_derivatives(program, monkeypatch):
    """Else the graphs of all its steps stay in memory."""
    make_weights("w.pt")
    learners, evaluate = [], main.evaluate
    monkeypatch.setattr(main, "evaluate", lambda meta, tasks: learners.append(meta) or evaluate(meta, tasks))
    assert program("--test --weights w.pt").code == 0
    assert [learner.first_order for learner in learners] == [True]


def test_the_loss_graph_says_what_it_shows(program, monkeypatch):
    figures = record_figures(monkeypatch)
    for words, unit in (("--epochs 12", "√SSE"), ("--epochs 12 --loss mse", "MSE")):
        assert program(words).code == 0
        name = main.run_name(main.parse(words.split()))
        (axes,) = figures[f"loss_final({name}).png"].axes
        assert axes.get_title() == f"Training, {name}"
        assert axes.get_ylabel().startswith(f"query loss ({unit}")
        assert axes.get_yscale() == "log"


def test_weights_can_be_measured_at_another_k_and_the_drawn_task_follows_the_seed(program):
    make_weights("weights/w(k=10).pt")
    first = program("--test")
    output = program("--test --k_shot 5 --weights 'weights/w(k=10).pt' --seed 1")
    assert output.code == 0
    assert "weights/w(k=10).pt, on a drawn task and 50 test tasks with K = 5" in "\n".join(output.out)
    assert files() >= {f"res/{kind}(k=5,seed=1,weights=w(k=10)).png" for kind in ("graph", "steps")}
    assert output.out[3].split("|")[1] != first.out[3].split("|")[1]  # before adaptation: K has no part in it
    # The test tasks are the same for every seed and K: so is the loss before adaptation.
    assert table(output)[0] == table(first)[0]
    assert table(output)[1] != table(first)[1]


LABELS = {
    "": ["MAML, weights/w(k=10).pt", "pretrained on all tasks, weights/w(k=10,inner_steps=0).pt"],
    "--first_order": [
        "FOMAML, weights/w(k=10,first_order).pt",
        "pretrained on all tasks, weights/w(k=10,inner_steps=0).pt",
    ],
    "--inner_steps 0": ["pretrained on all tasks, weights/w(k=10,inner_steps=0).pt"],
    "--seed 1": ["MAML, weights/w(k=10,seed=1).pt"],
    "--inner_steps 0 --weights 'weights/w(k=10).pt'": ["'w(k=10).pt', weights/w(k=10).pt"],
    "--weights 'weights/w(k=10,inner_steps=0).pt'": [
        "'w(k=10,inner_steps=0).pt', weights/w(k=10,inner_steps=0).pt",
        "pretrained on all tasks, weights/w(k=10,inner_steps=0).pt",
    ],
    "--seed 1 --first_order --weights 'weights/w(k=10,inner_steps=0).pt'": [
        "'w(k=10,inner_steps=0).pt', weights/w(k=10,inner_steps=0).pt"
    ],
}


@pytest.mark.parametrize("words", LABELS)
def test_weights_are_called_what_they_are_known_to_be(program, monkeypatch, words):
    """Of a file of the user's nothing is known but its name."""
    for name in ("k=10", "k=10,inner_steps=0", "k=10,first_order", "k=10,seed=1"):
        make_weights(f"weights/w({name}).pt")
    shown = []
    monkeypatch.setattr(main, "draw_graph", lambda path, k_x, k_y, truth, results: shown.extend(results))
    output = program(f"--test {words}")
    assert output.code == 0
    assert [line for line in output.out if "test tasks" in line] == [
        f"{label}, on a drawn task and 50 test tasks with K = 10:" for label in LABELS[words]
    ]
    assert shown == [re.match(r"(.*), weights/", label)[1] for label in LABELS[words]]


def test_a_table_of_diverged_tasks_stays_a_table(program):
    """Weights that answer in millions: most tasks diverge, and have no mean and no finite median."""
    make_weights("w.pt", scale=1e3)
    output = program("--test --weights w.pt")
    assert output.code == 0
    assert len(table(output)) == 6
    for line in table(output):
        assert re.search(r" inf +50 of 50$", line)
    make_weights("w.pt", scale=1e50)
    output = program("--test --weights w.pt")
    assert output.code == 0
    for line in table(output):
        assert len(line) <= 100
    for line in table(output):
        assert re.search(r" inf +50 of 50$", line)


def test_evaluation_in_chunks_equals_evaluation_at_once(monkeypatch):
    meta, results = Meta(inner_lr=1e-3, first_order=True), []
    for chunk in (7, 100):
        monkeypatch.setattr(main, "CHUNK", chunk)
        results.append(main.evaluate(meta, Sinusoid(10, 0, 100, seed=(main.TEST,))))
    assert results[0].shape == (11, 100)
    assert torch.allclose(*results, rtol=1e-10, atol=1e-10)


def test_evaluation_is_the_error_on_the_grid_after_each_number_of_steps():
    meta, tasks = Meta(inner_lr=1e-3), Sinusoid(5, 0, 3)
    sse = main.evaluate(meta, tasks)
    tasks = Sinusoid(5, 0, 3)
    k_x, k_y, _, _ = tasks.batch([0, 1, 2])
    x = torch.linspace(-5, 5, 50, dtype=torch.float64).reshape(1, 50, 1).expand(3, -1, -1)
    y = torch.from_numpy(tasks.amplitude) * torch.sin(x + torch.from_numpy(tasks.phase))
    for steps in range(11):
        rsse, _ = meta.net(x, y, meta.adapt(k_x, k_y, steps))
        assert torch.allclose(sse[steps].sqrt(), rsse, rtol=0, atol=1e-10)


def test_scores_by_hand():
    """Four tasks with MSE 1, 4, 4, 9, so √SSE = √50 · (1, 2, 2, 3): means 4.5 and 2 √50, standard deviations
    √11 (of 1, 4, 4, 9 around 4.5: squares 12.25 + 0.25 + 0.25 + 20.25 = 33, over 3) and √50 · √(2/3)."""
    scores = main.summarize(50 * torch.tensor([[1.0, 4.0, 4.0, 9.0]], dtype=torch.float64))
    assert scores["mse"].item() == pytest.approx(4.5, abs=1e-10)
    assert scores["mse_ci"].item() == pytest.approx(1.96 * math.sqrt(11 / 4), abs=1e-10)
    assert scores["rsse"].item() == pytest.approx(2 * math.sqrt(50), abs=1e-10)
    assert scores["rsse_ci"].item() == pytest.approx(1.96 * math.sqrt(50 * 2 / 3 / 4), abs=1e-10)
    assert scores["median"].item() == 4.0
    assert scores["diverged"].item() == 0


@pytest.mark.parametrize("blown_up", [math.nan, math.inf, 50 * 101.0])
def test_diverged_tasks_are_counted_and_left_out_of_the_means(blown_up):
    sse = 50 * torch.tensor([[1.0, 4.0, 4.0, 9.0]], dtype=torch.float64)
    expected = main.summarize(sse)
    scores = main.summarize(torch.cat([sse, torch.full((1, 2), blown_up, dtype=torch.float64)], dim=1))
    assert scores["diverged"].item() == 2
    for name in ("mse", "mse_ci", "rsse", "rsse_ci"):
        assert scores[name].item() == pytest.approx(expected[name].item(), abs=1e-10)
    assert scores["median"].item() == 4.0  # of 1, 4, 4, 9 and two that are larger
    scores = main.summarize(torch.cat([sse, torch.full((1, 5), blown_up, dtype=torch.float64)], dim=1))
    assert scores["median"].item() == math.inf  # most have diverged
