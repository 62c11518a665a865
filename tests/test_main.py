"""The program as its user meets it: its commands, the names of its files, what it trains, prints and draws."""

import io
import math
import re
import shutil
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from command_line import run
from matplotlib.figure import Figure

import main
from data import Sinusoid, meta_batches
from meta import Meta


def contents(folder="."):
    paths = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def make_weights(path, scale=1.0):
    """Weights that nobody trained, in a file."""
    Path(path).parent.mkdir(exist_ok=True)
    torch.save({name: scale * w for name, w in Meta().net.state_dict().items()}, path)


@pytest.fixture
def figures(monkeypatch):
    """The figures of the program, in the order in which they are drawn. Their files stay empty, to save time."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file: figure.draw_without_rendering())
    monkeypatch.setattr(main, "Figure", lambda **settings: figures.append(Figure(**settings)) or figures[-1])
    return figures


def curves(axes):
    """Label -> (x, y)."""
    return {line.get_label(): tuple(np.ravel(data).tolist() for data in line.get_data()) for line in axes.get_lines()}


def texts(artists):
    return [artist.get_text() for artist in artists]


@pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")
def test_training_as_a_user_runs_it_and_the_same_command_with_test(program, tmp_path):
    name, words = "k=10,epochs=30,batch_size=4", ("--epochs", "30", "--batch_size", "4")
    training = run(tmp_path, *words)
    assert training.returncode == 0, training
    assert set(contents()) == {f"res/loss_final({name}).png", f"weights/w({name}).pt"}
    first, weights, graph = training.stdout.splitlines()
    assert first.startswith("epochs=30 batch_size=4 k_shot=10 inner_lr=0.01 outer_lr=0.001 seed=0 loss=rsse ")
    assert graph == f"loss graph: res/loss_final({name}).png; the same command with --test measures the weights"
    assert re.fullmatch(re.escape(f"weights: weights/w({name}).pt, best validation loss: ") + r"\d+\.\d+", weights)
    assert re.search(r"30/30 .*it/s, loss \d", training.stderr)
    assert "Warning" not in training.stderr

    testing = program(*words, "--test")
    graphs = {f"res/{kind}({name}).png" for kind in ("loss_final", "graph", "steps")}
    assert set(contents()) == {f"weights/w({name}).pt", *graphs}
    assert all(matplotlib.image.imread(graph).std() > 0 for graph in graphs)
    assert testing.out[-1] == f"graphs: res/graph({name}).png, res/steps({name}).png"
    assert "/1 [" in "".join(testing.err)  # the bar, over chunks


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
    # What is no training setting:
    "--compile --resume --seed 3 --k_shot 5": "k=5,seed=3",
    "--test --test_shots 5 --weights x.pt": "k=10",
}


@pytest.mark.parametrize("words", NAMES)
def test_a_run_is_named_by_every_training_setting_that_is_not_the_default(words):
    assert main.run_name(main.parse(words.split())) == NAMES[words]


def test_training_settings_that_differ_give_names_that_differ():
    names = ["k=10", "k=10,loss=mse", "k=10,first_order"]
    for flag in ("epochs", "batch_size", "k_shot", "inner_lr", "outer_lr", "seed", "inner_steps"):
        values = ("0.1", "0.10000000000000002", "1e-300") if flag.endswith("lr") else ("2", "12", "21")
        names += [main.run_name(main.parse([f"--{flag}", value])) for value in values]
    assert len(set(names)) == len(names)


TRAINED, MEASURED = ("weights/w({}).pt", "res/loss_final({}).png"), ("res/graph({}).png", "res/steps({}).png")
NEW_FILES = {
    "--epochs 12 --seed 1": (TRAINED, "k=10,epochs=12,seed=1"),
    "--epochs 12 --seed 2": (TRAINED, "k=10,epochs=12,seed=2"),
    "--epochs 12 --seed 2 --test": (MEASURED, "k=10,epochs=12,seed=2"),
    "--test": (MEASURED, "k=10"),
    "--test --seed 1": (MEASURED, "k=10,seed=1"),
    "--test --weights other.pt": (MEASURED, "k=10,weights=other"),
    "--test --weights 'weights/w(k=10).pt'": (MEASURED, "k=10,weights=w(k=10)"),
    "--test --test_shots 5": (MEASURED, "k=10,test_shots=5"),
    "--test --test_shots 5 --seed 1 --weights other.pt": (MEASURED, "k=10,seed=1,test_shots=5,weights=other"),
    "--test --test_shots 10": ((), "what was there with --test"),
}


def test_no_command_touches_a_file_of_another(program, figures):
    for path in ("weights/w(k=10).pt", "weights/w(k=10,seed=1).pt", "other.pt", "res/loss_final.png"):
        make_weights(path)
    for words, (kinds, name) in NEW_FILES.items():
        before = contents()
        assert program(words).code == 0
        after = contents()
        assert {path: after[path] for path in before} == before
        assert set(after) - set(before) == {kind.format(name) for kind in kinds}
    assert program("--epochs 12 --seed 3", interrupt_at=6).code == 130
    assert set(contents()) - set(after) == {"weights/checkpoint(k=10,epochs=12,seed=3).pt"}


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_any_terminal_shows_what_is_printed(program, monkeypatch, encoding):
    make_weights("weights/w(k=10).pt")
    for words, shown in (("--help", "inner loop, ?"), ("--test", "?SSE")):
        terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", terminal)
            assert program(words).code == 0
        assert shown in terminal.buffer.getvalue().decode(encoding)


def test_every_flag_has_a_help_text_and_shows_its_default(program, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    output = program("--help")
    for flag, default in vars(main.parse([])).items():
        (line,) = (line for line in output.out if line.startswith(f"  --{flag} "))
        assert re.search(rf"  [a-zA-Z].*[a-z]{{3}}.* \(default: {re.escape(str(default))}\)$", line)


SETTINGS = [
    "",
    "--seed 3 --outer_lr 1e-300",  # which leaves the initial weights
    "--k_shot 5 --batch_size 25 --inner_lr 0.02 --outer_lr 0.01 --loss mse",
    "--seed 3 --inner_steps 2",
    "--first_order",
]


@pytest.mark.parametrize("words", SETTINGS)
def test_training_is_the_sum_of_its_parts(program, monkeypatch, words):
    """Initial weights and tasks of the seed, steps on them, and the best on the validation tasks is kept."""
    monkeypatch.setattr(main, "CHUNK", 7)  # the last chunk of the validation has 6 tasks
    output, args, lowest = program(f"--epochs 12 {words}"), main.parse(words.split()), math.inf
    torch.manual_seed(args.seed)
    meta = Meta(args.inner_lr, args.outer_lr, args.loss, args.inner_steps, args.first_order)
    held_out = Sinusoid(args.k_shot, num_tasks=20, seed=(main.VALIDATION,)).batch(range(20))
    batches = meta_batches(Sinusoid(args.k_shot, seed=(main.TRAIN, args.seed)), args.batch_size)
    for iteration, batch in zip(range(1, 13), batches, strict=False):
        meta(*batch)
        if iteration in (5, 10, 12):
            loss = meta.query_loss(*held_out).mean().item()
            if loss < lowest:
                lowest, kept = loss, {name: w.detach().clone() for name, w in meta.net.Param.items()}
    assert f"best validation loss: {lowest:.5g}" in output.out[-2]
    (path,) = Path("weights").iterdir()
    torch.testing.assert_close(torch.load(path), kept, rtol=0, atol=0)


def test_the_default_run_learns_with_the_losses_of_other_machines():
    """Each loss is that of tasks that are new to the net."""
    torch.manual_seed(0)
    meta, batches = Meta(), meta_batches(Sinusoid(10, seed=(main.TRAIN, 0)), 10)
    losses = [meta(*next(batches)) for _ in range(1000)]
    known = {1: 13.493226833995, 2: 12.891548881196, 10: 10.350103507709, 100: 7.294842305821, 1000: 4.019852016439}
    assert [losses[iteration - 1] for iteration in known] == pytest.approx(list(known.values()), rel=1e-9)


def test_one_thread_unless_the_environment_says_otherwise(program, monkeypatch):
    """Two runs at once, each with a thread for every core, take many times as long as with one each."""
    try:
        for threads in (1, 2):
            torch.set_num_threads(2)
            assert program("--epochs 3").code == 0
            assert torch.get_num_threads() == threads
            monkeypatch.setenv("OMP_NUM_THREADS", "2")
    finally:
        torch.set_num_threads(1)


def test_a_gpu_is_used_if_there_is_one(program, monkeypatch):
    monkeypatch.setattr(main, "train", lambda args, device: print(device))
    for available, device in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda value=available: value)
        first, given = program("--epochs 3").out
        assert (first.rsplit("device=")[-1], given) == (device, device)


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_is_resumed_bit_for_bit_and_may_go_on_without_the_compiler(program):
    weights, checkpoint = Path("weights/w(k=10,epochs=30).pt"), Path("weights/checkpoint(k=10,epochs=30).pt")
    assert "compiling …" in program("--epochs 30 --compile").out
    whole, compiled = contents(), torch.load(weights)
    for path in whole:
        Path(path).unlink()
    assert program("--epochs 30 --compile", interrupt_at=7).code == 130
    first_part = checkpoint.read_bytes()
    assert " 30/30 " in program("--epochs 30 --compile --resume").err[-1]
    assert contents() == whole
    checkpoint.write_bytes(first_part)
    assert program("--epochs 30 --resume").code == 0
    changed = torch.load(weights)
    assert program("--epochs 30").code == 0
    assert contents() != whole  # as the compiler rounds in other places
    for other in (compiled, changed):
        torch.testing.assert_close(other, torch.load(weights), rtol=0, atol=1e-9)


@pytest.mark.parametrize("script", [[3.0, 1.0, 2.0, 1.0], [math.nan, 1.0, math.nan, 2.0], [math.inf, 1.0, 1.5, 1.0]])
def test_the_weights_kept_are_those_of_the_best_validation(program, figures, monkeypatch, script):
    """The second, in all of these: a validation that is not finite is not the best, and is recorded as inf."""
    query_loss, weights = Meta.query_loss, []

    def scripted(meta, k_x, *rest):
        if len(k_x) != 20:  # a training batch
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
    shown = curves(figures[0].axes[0])
    assert shown["validation, 20 tasks"] == ([1, 2, 3, 4], [math.inf if math.isnan(loss) else loss for loss in script])
    assert shown["weights kept, iteration 2"] == ([2], [1.0])


def test_only_training_takes_second_derivatives(program, monkeypatch):
    """Else the graphs of all tasks and steps would fill the memory."""
    grad, taken = torch.autograd.grad, set()

    def recorded_grad(outputs, inputs, create_graph=False):
        taken.add((len(inputs[0]), create_graph))
        return grad(outputs, inputs, create_graph=create_graph)

    monkeypatch.setattr(torch.autograd, "grad", recorded_grad)
    for words in ("--epochs 6", "--epochs 6 --test"):  # the first validates after 5 iterations, and goes on
        assert program(words).code == 0
    meta_gradient, drawn_task, validation_tasks, test_tasks = (40, False), (1, False), (20, False), (50, False)
    assert taken == {(10, True), meta_gradient, drawn_task, validation_tasks, test_tasks}


def test_random_streams_are_independent_of_each_other():
    """Training tasks and the drawn task never are the validation or the test tasks, whatever the seed."""
    seeded = [(stream, seed) for stream in (main.DRAWN, main.TRAIN) for seed in range(99)]
    streams = [(main.VALIDATION,), (main.TEST,), *seeded]
    firsts = {Sinusoid(10, num_tasks=1, seed=stream).amplitude.item() for stream in streams}
    assert len(firsts) == len(streams)


SCORES = ("rsse", "rsse_ci", "mse", "mse_ci", "median")
MEASUREMENTS = {
    "": "K = 10",
    "--loss mse --inner_lr 0.004": "K = 10, inner lr = 0.004, loss = mse",
    "--k_shot 5": "K = 5",
    "--test_shots 5": "K = 10, test shots = 5",
    "--seed 1": "K = 10, seed = 1",
}


def by_parts(meta, tasks):
    """Support points; the grid and the truth there; after 0 to 10 steps, predictions and sums of squared errors."""
    k_x, k_y, _, _ = tasks.batch(range(len(tasks)))
    x = torch.linspace(-5, 5, 50, dtype=torch.float64).reshape(1, 50, 1).expand(len(tasks), -1, -1)
    y = torch.from_numpy(tasks.amplitude) * torch.sin(x + torch.from_numpy(tasks.phase))
    pred = torch.stack([meta.net.predict(x, meta.adapt(k_x, k_y, steps)) for steps in range(11)]).detach()
    return (k_x, k_y), (x, y), pred, (pred - y).square().sum((2, 3))


@pytest.mark.parametrize("words", MEASUREMENTS)
def test_what_is_printed_and_drawn_is_what_weights_and_baseline_do(program, figures, monkeypatch, words):
    """On the drawn task of the seed, and on test tasks that are the same for every seed."""
    monkeypatch.setattr(main, "CHUNK", 7)  # the last chunk of the evaluation has one task
    args, baseline = (main.parse(["--test", *words.split(), *more]) for more in ((), ("--inner_steps", "0")))
    paths = [f"weights/w({main.run_name(settings)}).pt" for settings in (args, baseline)]
    for path in paths:
        make_weights(path, scale=0.5)
    output, shots = program(f"--test {words}"), args.test_shots or args.k_shot
    graph, axes = figures[0], figures[1].axes[0]
    rows = [re.findall(r"[\d.]+", line) for line in output.out if re.match(r" +\d+ ", line)]
    assert graph.get_suptitle() == MEASUREMENTS[words]
    assert axes.get_title() == f"{MEASUREMENTS[words]}\n50 test tasks, mean and 95 % confidence interval"
    assert (axes.get_ylim()[0], graph.axes[0].get_autoscaley_on()) == (0, False)  # the first panel sets the frame
    assert graph.axes[0].get_ylim() == graph.axes[1].get_ylim()
    assert graph.axes[0].get_position().width == pytest.approx(graph.axes[1].get_position().width)
    heads = [index for index, line in enumerate(output.out) if "on a drawn task" in line]
    for path, head, panel, line, band in zip(paths, heads, graph.axes, axes.get_lines(), axes.collections, strict=True):
        meta = Meta(args.inner_lr, loss=args.loss)
        main.load(path, meta.net.Param)
        points, (x, y), pred, sse = by_parts(meta, Sinusoid(shots, 0, 1, seed=(main.DRAWN, args.seed)))
        pre, post, last = sse[[0, 1, 10], 0].sqrt().tolist()
        assert output.out[head].endswith(f", {path}, on a drawn task and 50 test tasks with K = {shots}:")
        assert output.out[head + 1] == f"| pre loss: {pre:.3f} | post loss: {post:.3f} |"
        assert panel.get_title().endswith(f"\n√SSE after 0 → 1 → 10 steps: {pre:.2f} → {post:.2f} → {last:.2f}")
        expected = {"Ground Truth": (x, y), "Pre Update": (x, pred[0]), "One Grad Step": (x, pred[1])}
        expected |= {"10 Grad Steps": (x, pred[10]), f"K = {shots} Support Points": points}
        assert list(curves(panel)) == list(expected) == texts(graph.legends[0].get_texts())
        for label, shown in curves(panel).items():
            assert np.allclose(shown, [values.flatten() for values in expected[label]], rtol=0, atol=1e-9), label

        scores = main.summarize(by_parts(meta, Sinusoid(shots, 0, 50, seed=(main.TEST,)))[3])
        for step in (0, 1, 2, 3, 5, 10):
            assert rows.pop(0) == [str(step), *(f"{scores[name][step]:.3f}" for name in SCORES)]
        assert np.allclose(line.get_data(), [range(11), scores["mse"]], rtol=0, atol=1e-9)
        edges = band.get_paths()[0].vertices[:, 1:]
        for bound in (scores["mse"] - scores["mse_ci"], scores["mse"] + scores["mse_ci"]):
            assert np.abs(edges - bound.numpy()).min(axis=0).max() < 1e-9


def test_scores_by_hand():
    """Four tasks with MSE 1, 4, 4, 9, so √SSE = √50 · (1, 2, 2, 3): means 4.5 and 2 √50, standard deviations
    √11 (of 1, 4, 4, 9 around 4.5: squares 12.25 + 0.25 + 0.25 + 20.25 = 33, over 3) and √50 · √(2/3)."""
    scores = main.summarize(50 * torch.tensor([[1.0, 4.0, 4.0, 9.0]], dtype=torch.float64))
    by_hand = (2 * math.sqrt(50), 1.96 * math.sqrt(50 * 2 / 3 / 4), 4.5, 1.96 * math.sqrt(11 / 4), 4.0)
    assert [scores[name].item() for name in SCORES] == pytest.approx(by_hand, abs=1e-10)
    assert scores["worst"].item() == 0


@pytest.mark.parametrize("mse", [math.nan, math.inf, 101.0, 100.0])
def test_an_mse_from_100_on_or_not_a_number_counts_as_100_and_is_counted(mse):
    """The standard deviation of 0, 0 and a is a / √3."""
    scores = main.summarize(50 * torch.tensor([[0.0, 0.0, mse], [mse, mse, 99.0]], dtype=torch.float64))
    assert scores["mse"].tolist() == pytest.approx([100 / 3, 299 / 3])
    assert scores["mse_ci"].tolist() == pytest.approx([1.96 * 100 / 3, 1.96 * 1 / 3])
    assert scores["rsse"].tolist() == pytest.approx([math.sqrt(5000) / 3, (2 * math.sqrt(5000) + math.sqrt(4950)) / 3])
    assert scores["median"].tolist() == [0, 100]
    assert scores["worst"].tolist() == [1, 2]


def test_a_table_of_diverged_tasks_stays_a_table(program):
    make_weights("w.pt", scale=1e50)  # every √SSE counts as √(100 · 50)
    head, *rows = program("--test --weights w.pt").out[4:11]
    assert head.startswith("gradient steps ")
    assert {" ".join(row.split()[1:]) for row in rows} == {"70.711 ± 0.000 100.000 ± 0.000 100.000"}
    assert {len(row) for row in rows} == {len(head)}


def test_the_number_of_the_worst_is_the_largest_of_all_steps_in_print_and_in_the_graph(program, figures, monkeypatch):
    scripts = [torch.ones(11, 50), torch.ones(11, 50)]
    scripts[0][4, :7], scripts[0][10, 5:9] = 5000.0, math.nan  # step 4 has no row in the table
    monkeypatch.setattr(main, "evaluate", lambda meta, tasks: scripts.pop(0))
    for name in ("k=10", "k=10,inner_steps=0"):
        make_weights(f"weights/w({name}).pt")
    lines = [line for line in program("--test").out if line.startswith("MSE ≥ 100")]
    assert [re.search(r"at most (\d+) of 50 tasks", line)[1] for line in lines] == ["7", "0"]
    assert texts(figures[1].legends[0].get_texts()) == ["MAML, MSE ≥ 100: 7 tasks", "pretrained on all tasks"]


PRETRAINED = "pretrained on all tasks, weights/w(k=10,inner_steps=0).pt"
LABELS = {
    "": ["MAML, weights/w(k=10).pt", PRETRAINED],
    "--first_order": ["FOMAML, weights/w(k=10,first_order).pt", PRETRAINED],
    "--inner_steps 0": [PRETRAINED],
    "--seed 1": ["MAML, weights/w(k=10,seed=1).pt"],
    "--inner_steps 0 --weights 'weights/w(k=10).pt'": ["'w(k=10).pt', weights/w(k=10).pt"],
    "--weights 'weights/original(k=10).pt'": ["the original's weights, weights/original(k=10).pt", PRETRAINED],
    "--seed 1 --first_order --weights 'weights/√$^$.pt'": [r"'\u221a$^$.pt', weights/√$^$.pt"],
}


def test_weights_are_called_what_they_are_known_to_be(program, figures):
    """In print and in both graphs. Of a file of the user's nothing is known but its name."""
    for name in ("w(k=10)", "w(k=10,inner_steps=0)", "w(k=10,first_order)", "w(k=10,seed=1)", "original(k=10)", "√$^$"):
        make_weights(f"weights/{name}.pt", scale=0.1)
    for words, expected in LABELS.items():
        output = program(f"--test {words}")
        assert [line.split(", on a drawn")[0] for line in output.out if ", on a drawn" in line] == expected
        labels = [label.split(", weights/")[0] for label in expected]
        assert [axes.get_title().split("\n")[0] for axes in figures[-2].axes] == labels
        assert list(curves(figures[-1].axes[0])) == labels


@pytest.mark.parametrize(
    ("words", "title", "unit", "window", "validated"),
    [
        ("", "K = 10", "√SSE", 10_000, range(10_000, 70_001, 10_000)),
        ("--epochs 12 --loss mse", "K = 10, epochs = 12, loss = mse", "MSE", 5, (5, 10, 12)),
        ("--epochs 2", "K = 10, epochs = 2", "√SSE", 1, (2,)),
        ("--epochs 1", "K = 10, epochs = 1", "√SSE", 1, (1,)),
    ],
)
def test_the_loss_graph_of_any_run(program, figures, monkeypatch, words, title, unit, window, validated):
    """Losses of a script rise to where the legend is: a legend without a place of its own would flee."""
    losses = np.linspace(9.6, 13, validated[-1])  # around the only 1, 2, 3 or 5 there
    script = iter(losses.tolist())
    monkeypatch.setattr(Meta, "__call__", lambda meta, *batch: next(script))
    monkeypatch.setattr(main, "VALIDATE_EVERY", max(5, window))
    monkeypatch.setattr(main, "CHECKPOINT_EVERY", math.inf)
    assert program(words).code == 0
    assert Path("res/loss_final.png").exists() == (not words)
    (axes,) = figures[0].axes
    labels = (axes.get_title(), axes.get_ylabel(), axes.get_yscale())
    assert labels == (f"Training, {title}", f"query loss ({unit})", "log")
    lines, legend = axes.get_lines(), axes.get_legend()
    mean, kept = f"mean of the last {window:,} iterations", f"weights kept, iteration {validated[0]:,}"
    assert list(curves(axes)) == ["each meta-batch", mean, "validation, 20 tasks", kept] == texts(legend.get_texts())
    assert np.array_equal(lines[0].get_data(), [range(1, len(losses) + 1), losses])
    means = (losses[window - 1 :] + losses[: len(losses) - window + 1]) / 2  # as the losses rise evenly
    assert np.allclose(lines[1].get_data(), [range(window, len(losses) + 1), means], rtol=1e-9, atol=0)
    assert list(lines[2].get_xdata()) == list(validated)
    assert lines[3].get_data() == ([validated[0]], [lines[2].get_ydata()[0]])
    assert lines[3].get_marker() == "*"
    assert all(len(line.get_xdata()) > 1 or line.get_marker() != "None" for line in lines)
    assert legend.get_lines()[0].get_linewidth() > lines[0].get_linewidth()
    assert np.abs(legend.get_window_extent().max - axes.bbox.max).max() < 20  # pixels from the upper right corner
    ticks = zip(axes.get_xticks(), texts(axes.get_xticklabels()), strict=True)
    assert all(tick == round(tick) and label == f"{tick:,.0f}" for tick, label in ticks if tick >= 0)
    low, high = axes.get_ylim()
    in_view = [label for label in axes.get_yticklabels(which="both") if low < label.get_position()[1] < high]
    assert len(set(texts(in_view)) - {""}) > 1
