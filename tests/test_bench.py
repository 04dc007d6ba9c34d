"""`fastnorm bench`: its reports agree, its errors are told, and it leaves nothing half-done."""

import contextlib
import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import termios
import threading
import time

import numpy as np
import pytest
from click.testing import CliRunner

import fastnorm
from fastnorm import cli
from fastnorm.bench import command, fused, fused_calls, measure, peers, report
from fastnorm.bench.cases import CHANNEL_NORMS, DTYPES, LAYOUTS, NORMS, SHAPES, cases
from fastnorm.bench.peers import naive_numpy

TINY = ["--shape", "2x16x4x4", "--rounds", "1", "--peers", "numpy"]
ONE = [*TINY, "--norms", "batch_norm", "--passes", "forward", "--layouts", "NCHW"]
CONSOLE = [sys.executable, "-c", "from fastnorm.cli import main; main()", "bench"]


def bench(*arguments):
    return CliRunner().invoke(command.command, [str(a) for a in arguments])


@pytest.fixture
def fast(monkeypatch):
    for name in ("LEAST_SECONDS", "WARM_UP_SECONDS", "LEARN_SECONDS", "REST_SECONDS"):
        monkeypatch.setattr(measure, name, 1e-5)


@pytest.mark.usefixtures("fast")
def test_all_reports_tell_the_same(tmp_path):
    files = {kind: tmp_path / f"report.{kind}" for kind in ("json", "png", "html", "md", "svg")}
    done = bench(*TINY, "--threads", "1,2", "--json", files["json"], "--plot", files["png"],
                 "--html", files["html"], "--markdown", files["md"],
                 "--picture", files["svg"])  # fmt: skip
    assert done.exit_code == 0, done.output
    data = json.loads(files["json"].read_text())
    results = data["results"]
    assert len(results) == 2 * len(cases([(2, 16, 4, 4)], layouts=LAYOUTS))
    assert {r["norm"] for r in results} == set(CHANNEL_NORMS)
    for r in results:  # naive NumPy has no blocks
        others = set() if r["layout"] == "NCHW16c" else {"numpy"}
        assert r["seconds"].keys() == {"fastnorm", "limit", *others}
    page, text = files["html"].read_text(), files["md"].read_text()
    for r in results:
        assert f">{r['seconds']['fastnorm'] * 1e3:.3g}</td>" in page
        if "numpy" in r["seconds"]:
            assert f"{r['seconds']['numpy'] / r['seconds']['fastnorm']:.2f}" in done.output
    for row in data["summary"]:
        cells = f"| {row['x the limit']} | {row['worst of limit']} |"
        assert f"| {row['normalizer']} | {row['pass']} | {row['layout']} |" in text
        assert cells in text
    assert text.startswith("# Benchmarks\n")
    assert all(f"\n- {name}: {value}\n" in text for name, value in data["conditions"].items())
    assert files["svg"].read_text().startswith("<?xml")
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    figures = json.loads(re.search(r"const figures = (.*);\n", page)[1])
    assert [f["title"] for f in figures] == ["forward", "inference", "backward"] * 2
    dots = [len(trace["text"]) for f in figures for trace in f["figure"]["data"] if "text" in trace]
    assert sum(dots) == sum(len(r["seconds"]) for r in results)
    assert "https://" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert data["conditions"]["processor"] in page


def test_the_overview_is_one_row_for_each_normalizer_in_one_setting():
    def result(layout, direction, threads, seconds, shape=(2, 16, 4, 4)):
        (case,) = cases([shape], ["group_norm"], [layout], [direction])
        seconds = {"limit": 1e-3, "fastnorm": seconds, "numpy": 3 * seconds}
        return measure.Result(case, threads, "avx2", seconds)

    found = report.Report(["numpy"], {}, [], [
        result("NCHW", "forward", 1, 2e-3), result("NCHW", "forward", 1, 8e-3, (2, 16, 8, 8)),
        result("NCHW", "backward", 1, 5e-3),
        result("NHWC", "forward", 1, 1.0), result("NCHW", "backward", 2, 1.0),
    ])  # fmt: skip
    assert found.overview_header() == [
        "normalizer", "forward, ms", "x the limit", "x NumPy",
        "backward, ms", "x the limit", "x NumPy",
    ]  # fmt: skip
    assert found.overview_rows() == [["group_norm", "4", "4.00", "3.0", "5", "5.00", "3.0"]]


@pytest.mark.usefixtures("fast")
def test_quick_prints_a_row_for_each_normalizer(monkeypatch):
    monkeypatch.setattr(command, "QUICK", [(2, 16, 4, 4), (8, 16)])
    done = bench("--quick", "--rounds", "1")
    assert done.exit_code == 0, done.output
    rows = [line.split("│")[1].strip() for line in done.output.splitlines() if "│" in line]
    assert rows == NORMS
    assert len(rows) <= 12
    assert "case/s" not in done.output, "CliRunner's stderr is no terminal"


@pytest.mark.usefixtures("fast")
def test_a_picture_has_a_dot_for_each_contestant(tmp_path, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figures = []
    monkeypatch.setattr(pyplot, "close", figures.append)
    done = bench(*TINY, "--shape", "8x16", "--picture", tmp_path / "speed.svg",
                 "--json", tmp_path / "o.json")  # fmt: skip
    assert done.exit_code == 0, done.output
    panels = figures[0].axes
    assert [panel.get_title() for panel in panels] == ["forward", "backward"]
    results = json.loads((tmp_path / "o.json").read_text())["results"]
    for panel in panels:
        lines = {line.get_label(): line for line in panel.lines if len(line.get_xdata()) > 2}
        assert lines.keys() == {"fastnorm", "NumPy"}
        seconds = [
            r["seconds"] for norm in NORMS for r in results
            if r["norm"] == norm and r["pass"] == panel.get_title()
            and r["layout"] in ("NCHW", "rows")
        ]  # fmt: skip
        for label, name in (("fastnorm", "fastnorm"), ("NumPy", "numpy")):
            want = [s[name] / s["limit"] for s in seconds]
            np.testing.assert_allclose(lines[label].get_xdata(), want)


@pytest.mark.usefixtures("fast")
def test_the_summary_is_the_geometric_mean_and_the_worst(tmp_path):
    path = tmp_path / "o.json"
    bench(*ONE, "--shape", "2x32x8x8", "--json", path)
    data = json.loads(path.read_text())
    (row,) = data["summary"]
    limit = [r["seconds"]["fastnorm"] / r["seconds"]["limit"] for r in data["results"]]
    peer = [r["seconds"]["numpy"] / r["seconds"]["fastnorm"] for r in data["results"]]
    assert row["cases"] == "2"
    assert row["x the limit"] == f"{math.sqrt(limit[0] * limit[1]):.2f}"
    assert row["worst of limit"] == f"{max(limit):.2f}"
    assert row["x the best peer"] == f"{math.sqrt(peer[0] * peer[1]):.2f}"
    assert row["worst of best peer"] == f"{min(peer):.2f}"
    assert row["x NumPy"] == row["x the best peer"]


def test_a_lost_case_is_large_and_lost_beyond_the_noise():
    def result(peer, shape):
        (case,) = cases([shape], ["layer_norm"], passes=["forward"])
        seconds = {"limit": 0.5, "fastnorm": 1.0, "numpy": 3.0, "torch": peer}
        return measure.Result(case, 1, "avx2", seconds)

    large, small = (100, 1000), (10, 100)
    results = [result(0.94, large), result(0.96, large), result(0.5, small), result(2.0, large)]
    found = report.Report(["numpy", "torch"], {}, [], results)
    assert found.lost() == [results[0]]
    assert "torch takes 0.94" in found.lost_lines()[0]


@pytest.mark.parametrize(
    ("option", "choices"),
    [("--peers", peers.PEERS), ("--set", SHAPES), ("--layouts", LAYOUTS), ("--dtypes", DTYPES),
     ("--norms", NORMS), ("--isas", fastnorm.available_isas())],
)  # fmt: skip
def test_bad_names_are_told_the_choices(option, choices):
    done = bench(option, f"{next(iter(choices))},nonsense")
    assert done.exit_code == 2
    assert "'nonsense' is not one of" in done.output
    assert all(f"'{name}'" in done.output for name in choices)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "3x4x5"], "'3x4x5' is not a shape"),
        (["--shape", "0x4"], "'0x4' is not a shape"),
        (["--threads", "1,0"], "expected positive numbers"),
        (["--json", "/nowhere/o.json"], "/nowhere is not a folder"),
        (["--plot", "o.gif"], "expected .png"),
        (["--picture", "o.gif"], "expected .png"),
        (["--markdown", "/nowhere/o.md"], "/nowhere is not a folder"),
        (["--shape", "8x8", "--norms", "batch_norm"], "no such case"),
    ],
)
def test_bad_input_is_refused_before_the_run(arguments, message, monkeypatch):
    monkeypatch.setattr(command, "_in_one_process", lambda *args: pytest.fail("it ran"))
    done = bench(*arguments)
    assert done.exit_code == 2
    assert message in done.output


def fails_in_preparation(arrays):
    raise ValueError("cannot prepare\nat all")


def fails_in_the_second_call(arrays, prepare=naive_numpy.prepare):
    results = iter([prepare(arrays)()])
    return lambda: next(results)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(
    ("prepare", "message"),
    [(fails_in_preparation, "cannot prepare"), (fails_in_the_second_call, "StopIteration")],
)
def test_a_failing_peer_is_reported_in_its_column(prepare, message, monkeypatch, tmp_path):
    monkeypatch.setattr(naive_numpy, "prepare", prepare)
    path, page = tmp_path / "o.json", tmp_path / "o.html"
    done = bench(*ONE, "--shape", "2x32x8x8", "--json", path, "--html", page)
    assert done.exit_code == 0, done.output
    assert f"numpy failed in {cases([(2, 16, 4, 4)])[0].id} and 1 more: {message}" in done.output
    rows = [line.split("│") for line in done.output.splitlines() if "2x" in line and "│" in line]
    assert [row[-2].strip() for row in rows] == ["failed", "failed"]
    results = json.loads(path.read_text())["results"]
    assert all(r["errors"] == {"numpy": message} for r in results)
    assert all(r["seconds"].keys() == {"fastnorm", "limit"} for r in results)
    assert '<td class="failed">failed</td>' in page.read_text()


@pytest.mark.usefixtures("fast")
def test_an_absent_peer_is_noted(monkeypatch):
    load = peers.load

    def without_torch(name):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return load(name)

    monkeypatch.setattr(peers, "load", without_torch)
    done = bench(*ONE, "--peers", "torch")
    assert done.exit_code == 0
    assert "torch is left out: No module named 'torch'" in done.output
    assert "x NumPy" in done.output
    assert "x torch" not in done.output


@pytest.mark.usefixtures("fast")
def test_an_interrupt_leaves_no_file(monkeypatch, tmp_path):
    def replace(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace)
    done = bench(*ONE, "--json", tmp_path / "o.json")
    assert done.exit_code == 1
    assert "Aborted" in done.output
    assert list(tmp_path.iterdir()) == []


def ended_by(number, run):
    """Send a signal until it ends `run`: Python may lose one, in a destructor or a callback.

    It does of 3 in 60; and the run, which takes minutes, must not end by itself meanwhile.
    """
    for _ in range(10):
        run.send_signal(number)
        try:
            return run.wait(timeout=60)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError("signals did not end it")


def collect(terminal, said):
    """Read a terminal until nobody writes to it."""
    with contextlib.suppress(OSError):  # EIO, when the other side is closed
        while piece := os.read(terminal, 1000):
            said.append(piece.decode())


def test_a_signal_ends_a_run_without_a_file(tmp_path):
    terminal, stderr = os.openpty()  # there is a progress bar on a terminal alone
    termios.tcsetwinsize(stderr, (24, 80))  # of no width it has room for none
    run = subprocess.Popen(
        [*CONSOLE, "--set", "resnet50", "--peers", "numpy", "--json", str(tmp_path / "o.json")],
        stderr=stderr, stdout=subprocess.DEVNULL,
        # a shell's job in the background inherits that it is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    os.close(stderr)
    said = []
    reader = threading.Thread(target=collect, args=(terminal, said))
    reader.start()
    try:
        while "case/s" not in "".join(said):
            assert run.poll() is None
            time.sleep(0.05)
        assert ended_by(signal.SIGINT, run) == 1
    finally:
        run.kill()
        reader.join()
        os.close(terminal)
    assert "Aborted!" in "".join(said)
    assert list(tmp_path.iterdir()) == []


def test_the_console_script_lets_all_threads_wait_alike(tmp_path):
    path = tmp_path / "o.json"
    own = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # of the tests
    environment = {k: v for k, v in os.environ.items() if k not in own}
    subprocess.run([*CONSOLE, *ONE, "--json", str(path)], check=True, env=environment,
                   capture_output=True, timeout=600)  # fmt: skip
    conditions = json.loads(path.read_text())["conditions"]
    assert conditions["waiting threads"].startswith("spin 300000 times")


@pytest.mark.parametrize(
    ("command", "given", "wanted"),
    [
        ("bench", {}, set(cli.ENVIRONMENT)),
        ("bench-fused", {}, set(cli.ENVIRONMENT)),
        ("bench", {"OMP_WAIT_POLICY": "passive"}, set(cli.ENVIRONMENT) - {"GOMP_SPINCOUNT"}),
        ("bench", cli.ENVIRONMENT, set()),
        ("scale", {}, set()),
    ],
)
def test_bench_starts_again_only_for_what_is_not_set(command, given, wanted, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(given))
    monkeypatch.setattr(sys, "argv", ["fastnorm", command, "--help"])
    started = []
    monkeypatch.setattr(os, "execv", lambda *command: started.append(command))
    with pytest.raises(SystemExit):
        cli.main()
    assert started == ([(sys.executable, sys.orig_argv)] if wanted else [])
    assert os.environ == {name: cli.ENVIRONMENT[name] for name in wanted} | given


def test_without_click_one_line_says_what_to_install():
    code = f"import sys; sys.modules['click'] = None; {CONSOLE[2]}"
    done = subprocess.run(
        [sys.executable, "-c", code, "bench"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 1
    assert done.stderr == 'fastnorm: click is missing: pip install "fastnorm-cpu[bench]"\n'


@pytest.mark.usefixtures("fast")
def test_as_installed_each_has_a_process_of_its_own(tmp_path):
    files = {kind: tmp_path / f"report.{kind}" for kind in ("json", "md")}
    done = bench(*ONE, "--as-installed", "--network", "--busy", "1", "--json", files["json"],
                 "--markdown", files["md"])  # fmt: skip
    assert done.exit_code == 0, done.output
    data = json.loads(files["json"].read_text())
    (result,) = data["results"]
    assert result["seconds"].keys() == {"fastnorm", "limit", "numpy"}
    assert (
        data["conditions"]["waiting threads"] == "each contestant in its own process, as it waits"
    )
    assert "384x384" in data["conditions"]["network"]
    assert data["conditions"]["other work"] == "1 processes that compute"
    # a product of two such matrices takes longer than a batch norm of 2 kB
    assert result["seconds"]["fastnorm"] > 2e-5


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--as-installed", "--threads", "1"], "--as-installed takes the defaults of threads"),
     (["--network"], "--network needs --as-installed"),
     (["--busy", "-1"], "-1 is not in the range")],
)  # fmt: skip
def test_options_that_do_not_go_together(options, said):
    done = bench(*ONE, *options)
    assert done.exit_code == 2
    assert said in done.output


FUSED = ["--shape", "2x8x4x4", "--shape", "4x16", "--rounds", "1"]


def fused_rows(*arguments):
    """Return the rows of the table by operation, layout and pass, and all that was printed."""
    done = CliRunner().invoke(fused.command, [*FUSED, "--markdown", *arguments])
    assert done.exit_code == 0, done.output
    lines = [line.strip("| ").split(" | ") for line in done.output.splitlines() if "|" in line]
    head, _, *rows = lines
    return [dict(zip(head, cells, strict=True)) for cells in rows], done.output


@pytest.mark.usefixtures("fast")
def test_fused_calls_are_compared_with_separate_ones():
    rows, said = fused_rows("--peers", "numpy", "--threads", "1,2")
    assert len(rows) == 2 * len(fused.cases([(2, 8, 4, 4), (4, 16)])) == 2 * 12
    assert {r["operation"] for r in rows} == set(fused.OPERATIONS)
    assert {r["threads"] for r in rows} == {"1", "2"}
    for r in rows:
        assert float(r["ms"]) > 0
        assert float(r["x the limit"]) > 0
        assert float(r["x separate"]) >= 0  # of a call of microseconds, on a busy machine
        assert r["x the best peer"] == f"{r['x numpy']} numpy"
    assert "- processor: " in said
    assert "differs" not in said


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("name", ["torch", "onnxruntime"])
def test_fused_calls_compute_what_others_compute(name):
    pytest.importorskip(name)
    if name == "onnxruntime":
        pytest.importorskip("onnx")
    rows, said = fused_rows("--peers", name, "--threads", "1")
    assert "failed" not in said
    there = [r for r in rows if r[f"x {name}"] != "-"]
    assert len(there) == (len(rows) if name == "torch" else 3), "it has skip norms and group norm"


@pytest.mark.long
@pytest.mark.usefixtures("fast")
def test_fused_calls_compute_what_torch_compiles():
    if peers.find(["torch.compile"])[2]:
        pytest.skip("no torch.compile")
    rows, said = fused_rows("--peers", "torch.compile", "--threads", "1")
    assert "failed" not in said
    assert all(float(r["x torch.compile"]) > 0 for r in rows)


@pytest.mark.usefixtures("fast")
def test_who_computes_another_sum_is_not_timed(monkeypatch):
    steps = fused_calls.numpy_steps()
    wrong = dataclasses.replace(steps, add=lambda a, b, out: np.subtract(a, b, out=out))
    monkeypatch.setitem(fused_calls.STEPS, "numpy", lambda: wrong)
    rows, said = fused_rows("--operations", "add + RMS norm", "--peers", "numpy", "--threads", "1")
    assert {r["pass"]: r["x numpy"] == "failed" for r in rows} == {
        "forward": True, "backward": False,
    }  # fmt: skip
    assert "add + RMS norm rows forward 4x16, numpy: its result differs from fastnorm's" in said


def test_no_fused_case_of_a_shape_is_told():
    arguments = ["--shape", "4x16", "--operations", "group norm + silu", "--peers", "numpy"]
    done = CliRunner().invoke(fused.command, arguments)
    assert done.exit_code == 2
    assert "no such case: add + norm takes ROWSxFEATURES" in done.output


def test_the_limit_of_fused_calls_moves_as_many_bytes(monkeypatch):
    moved = []
    monkeypatch.setattr(
        fused,
        "memory_limit",
        lambda *arrays: moved.append([a for a in arrays[:3] if a is not None]),
    )
    for case in fused.cases([(2, 6, 4, 4), (3, 16)]):
        for call in fused.limit_calls(case).values():
            call()
            assert sum(a.nbytes for a in moved[-1]) == sum(case.moved) * case.plain.bytes, case.id
