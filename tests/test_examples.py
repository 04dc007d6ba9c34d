"""The examples show what they say; the benchmark's naive NumPy computes what fastnorm computes."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import assert_close

import fastnorm
from fastnorm.bench import cases as bench
from fastnorm.bench.peers import naive_numpy, ours

ROOT = Path(__file__).parent.parent

SMALL = {"image": (4, 32, 6, 5), "rows": (12, 40)}


@pytest.mark.long
def test_the_demo_learns_in_five_epochs(tmp_path):
    for name in ("matplotlib", "rich", "sklearn", "tqdm"):
        pytest.importorskip(name)
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/train_digits.py"), "--quick", "--output",
         str(tmp_path / "curves.png")],
        capture_output=True, text=True, timeout=600, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "no progress bar where there is no terminal"
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    cells = [line.split("│")[1:4] for line in done.stdout.splitlines() if "│ of 64" in line]
    accuracies = {name.strip(): float(value.strip(" %")) for _, name, value in cells}
    assert accuracies.keys() == {"none", "BN", "BRN", "GN", "LN"}
    assert accuracies["BN"] > 90
    assert min(accuracies[name] for name in ("BRN", "GN", "LN")) > 50, "chance is 10"


@pytest.mark.parametrize(
    "case",
    [
        bench.Case(norm, layout, direction, SMALL["rows" if layout == "rows" else "image"])
        for norm in bench.NORMS
        for layout in (["rows"] if norm in bench.ROW_NORMS else ["NCHW", "NHWC"])
        for direction in bench.PASSES
        if direction != "inference" or norm in bench.WITH_INFERENCE
    ],
    ids=lambda case: case.id,
)
def test_benchmark_cases_compute_the_same(case):
    # r and d of the renorms depend on running statistics, which each call updates: two preparations
    got = ours.prepare(case.prepare())()
    want = naive_numpy.prepare(case.prepare())()
    if case.direction == "backward":
        assert_close(got.x, want[0], 1e-4, "dx")
        assert_close(got.weight, want[1], 1e-4, "dweight")
        if case.norm != "rms_norm":
            assert_close(got.bias, want[2], 1e-4, "dbias")
        if case.norm == "switchable_norm":
            assert_close(got.mean_logits, want[3], 1e-3, "logits of the means")
            assert_close(got.var_logits, want[4], 1e-3, "logits of the variances")
    else:
        assert_close(got, want, 1e-5, "y")


def test_the_named_sets_have_every_combination():
    every = bench.cases()
    assert {case.norm for case in every} == set(bench.NORMS)
    assert len({case.id for case in every}) == len(every)
    for case in every:
        if case.norm in bench.CHANNEL_NORMS:
            assert any(c.layout != case.layout and c.shape == case.shape for c in every)
    assert all(hasattr(fastnorm, name) for name in bench.NORMS)
    assert np.prod(every[0].shape) * 4 == every[0].bytes


@pytest.mark.long
@pytest.mark.parametrize("size", [4, 8])
def test_batch_renorm_mends_what_batches_of_two_classes_break(example, size):
    module = example("train_digits")
    data = module.load()
    reached = {name: [] for name in ("BN", "BRN", "GN")}
    for name, values in reached.items():
        for seed in range(3):
            curve, *_ = module.train(name, size, True, data, 10, seed)
            values.append(100 * curve[-1])
    mean = {name: np.mean(values) for name, values in reached.items()}
    assert mean["BN"] < mean["GN"] - 5, "batch norm's inference breaks"
    assert mean["BRN"] > mean["GN"] - 3


def test_batches_of_pairs_hold_two_of_each(example):
    module = example("train_digits")
    labels = np.arange(1000) % 10
    drawn = list(module.batches(np.random.default_rng(0), labels, 4, True))
    assert len(drawn) == 250
    for index in drawn:
        first, second = np.unique(labels[index])
        assert second == first + 5
        assert len(set(index)) == 4
        assert (labels[index] == first).sum() == 2


@pytest.fixture
def example(monkeypatch):
    """Import an example by its name."""
    for name in ("matplotlib", "rich", "sklearn", "tqdm"):
        pytest.importorskip(name)
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module


@pytest.mark.long
def test_small_batches_do_what_theory_says(example, tmp_path):
    module = example("small_batches")
    results, relu_kurtosis = module.main(["--output", str(tmp_path / "figure.png")])
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert [r.size for r in results][:3] == [2, 3, 4]
    for r in results:
        b = r.size
        assert r.variance_error == pytest.approx(2 / (b - 1), rel=0.05)
        assert r.mismatch == pytest.approx(1.5 / b + 7 / (16 * b * b), rel=0.05)
        if b >= 8:
            assert r.mismatch == pytest.approx(1.5 / b, rel=0.05)
        by_kurtosis = (relu_kurtosis - 1) / b + 2 / (b * (b - 1))
        assert r.relu_variance_error == pytest.approx(by_kurtosis, rel=0.05)
        assert r.relu_variance_error > 1.5 * r.variance_error, "the two are told apart"


def test_the_doc_of_choices_has_the_figures_of_small_batches(example):
    module = example("small_batches")
    doc = (ROOT / "docs/choosing.md").read_text()
    lines = [line.strip("| ").split(" | ") for line in doc.splitlines() if line.startswith("| ")]
    (sizes,) = (cells for cells in lines if cells[0] == "B")
    for title, formula in (
        ("error of the variance, %", module.variance_error),
        ("training to inference, %", module.mismatch),
    ):
        (said,) = (cells for cells in lines if cells[0] == title)
        for size, value in zip(sizes[1:], said[1:], strict=True):
            assert 100 * formula(int(size)) == pytest.approx(float(value), abs=0.051)


def test_the_doc_of_choices_has_the_table_of_whitening(example):
    module = example("whitening")
    results = module.measure(module.features())
    lines = (ROOT / "docs/choosing.md").read_text().splitlines()
    for row in module.rows(results):
        assert row in lines
    left = [group for _, group, *_ in results]
    assert left[1] == pytest.approx(left[0], rel=1e-3), "batch norm leaves it"
    assert left[1:] == sorted(left[1:], reverse=True), "each step takes some"
    assert left[-1] < 1e-3


@pytest.mark.long
def test_batch_effects_are_removed(example, tmp_path):
    module = example("batch_effects")
    results = module.main(["--output", str(tmp_path / "figure.png")])
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    before, plain, kept = results.values()
    assert before["batch"] == pytest.approx(0.186, abs=0.001)
    assert before["batch, of two components"] > 0.25
    assert abs(plain["batch"]) < 1e-9
    assert plain["tissue"] < before["tissue"] < kept["tissue"]
    assert before["batch beyond tissue"] > 0.15
    assert kept["batch beyond tissue"] < 0.001

    x, batch, _ = module.load()
    assert x.shape == (57, 2000)
    y = module.normalize_batches(x, batch)
    within = np.sqrt(sum(x[batch == b].var(0) * (batch == b).mean() for b in np.unique(batch)))
    for b in np.unique(batch):
        assert_close(y[batch == b].mean(0), x.mean(0), 1e-12, f"means of batch {b}")
        assert_close(y[batch == b].std(0), within, 1e-6, f"standard deviations of batch {b}")


@pytest.mark.long
def test_r_squared_is_that_of_scikit_learn(example):
    module = example("batch_effects")
    from sklearn.linear_model import LinearRegression
    from sklearn.metrics import r2_score

    x, batch, tissue = module.load()
    for labels in ((batch,), (tissue,), (batch, tissue)):
        design = np.hstack([module.indicators(each) for each in labels])
        predicted = LinearRegression().fit(design, x).predict(design)
        want = r2_score(x, predicted, multioutput="raw_values").mean()
        assert module.explained(x, *labels) == pytest.approx(want, abs=1e-9)


# of the examples of fused calls, in a second
FUSED = {
    "resnet_block": ["--size", "16", "--batch", "16", "--blocks", "1"],
    "transformer_block": ["--size", "32", "--batch", "4", "--length", "16", "--blocks", "1"],
}


@pytest.mark.parametrize("name", FUSED)
def test_fused_and_separate_calls_learn_the_same(name, example, tmp_path, capsys):
    module, path = example(name), tmp_path / "fused.png"
    measured = module.main([*FUSED[name], "--steps", "25", "--picture", str(path)])
    assert path.read_bytes().startswith(b"\x89PNG")
    fused, separate = measured["fused"], measured["separate"]
    assert fused.losses == separate.losses
    assert np.mean(fused.losses[-5:]) < 0.9 * np.mean(fused.losses[:5])
    assert 0 < fused.kept < separate.kept, "fused calls keep less for backward"
    assert fused.peak <= separate.peak
    for m in measured.values():
        norms, steps = m.milliseconds()
        assert 0 < norms < steps
    said = capsys.readouterr().out
    assert "25 steps: losses and parameters of both are the same, bit for bit" in said
    assert f"{fused.losses[-1]:.3f}" in said


@pytest.mark.parametrize("name", FUSED)
def test_gradients_of_the_fused_examples_are_those_of_finite_differences(name, example, capsys):
    example(name).main([*FUSED[name], "--steps", "1", "--check"])
    assert capsys.readouterr().out.count("differ by") == 2


def test_other_bits_and_wrong_gradients_are_told(example, monkeypatch):
    module = example("transformer_block")
    right = fastnorm.rms_norm
    arguments = [*FUSED["transformer_block"], "--steps", "2"]

    def wrong(x, *args, residual=None, **kwargs):
        """Differ in the last bit where there is a residual."""
        if residual is not None:
            residual = np.nextafter(residual, np.inf, dtype=residual.dtype)
            return right(x, *args, residual=residual, **kwargs)
        return right(x, *args, **kwargs)

    monkeypatch.setattr(fastnorm, "rms_norm", wrong)
    with pytest.raises(SystemExit, match="different bits"):
        module.main(arguments)
    monkeypatch.undo()
    backward = module.Network.swiglu_backward
    monkeypatch.setattr(module.Network, "swiglu_backward", lambda *args: 1.001 * backward(*args))
    with pytest.raises(SystemExit, match="gradients are wrong"):
        module.main([*arguments, "--check"])
