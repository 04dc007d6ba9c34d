"""recommend answers for every task, and docs/choosing.md says the same."""

import re
from pathlib import Path

import numpy as np
import pytest

import fastnorm
from fastnorm.guide import TASKS, num_groups_for

ARXIV = re.compile(r"arXiv:\d{4}\.\d{5}")
FIGURE = re.compile(r"(?<![\d.])\d\d\.\d(?![\d.])")  # errors in %, as 23.6
DOC = (Path(__file__).parent.parent / "docs" / "choosing.md").read_text()

# task, normalizer of large batches, of small ones: literature's choices, written by hand
EXPECTED = [
    ("classification", "BatchNorm", "GroupNorm"),
    ("style_transfer", "InstanceNorm", "InstanceNorm"),
    ("image_generation", "InstanceNorm", "InstanceNorm"),
    ("several_devices", "SyncBatchNorm", "SyncBatchNorm"),
    ("mobile", "BatchNorm", "BatchRenorm"),
    ("transformer", "LayerNorm", "LayerNorm"),
    ("multi_task", "SwitchableNorm", "SwitchableNorm"),
    ("gan", "BatchNorm", "InstanceNorm"),
    ("medical", "GroupNorm", "GroupNorm"),
]


def section(heading):
    return DOC.split(f"\n{heading}\n")[1].split("\n##")[0]


def rows(text):
    """Cells of the Markdown tables in a text, without the lines below headers."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [cells for cells in lines if set(cells) != {"---"}]


@pytest.mark.parametrize(("task", "large", "small"), EXPECTED)
def test_batch_size_decides(task, large, small):
    assert fastnorm.recommend(task).normalizer == large
    for batch_size in (16, 17, 1000):
        assert fastnorm.recommend(task, batch_size).normalizer == large
    for batch_size in (1, 2, 15):
        assert fastnorm.recommend(task=task, batch_size=batch_size).normalizer == small


def test_every_task_is_expected_and_told():
    assert list(TASKS) == [task for task, *_ in EXPECTED]
    assert re.findall(r"^### `(\w+)`$", DOC, re.MULTILINE) == list(TASKS)
    for task in TASKS:
        assert f'"{task}"' in fastnorm.recommend.__doc__


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("batch_size", [2, 64])
@pytest.mark.parametrize("channels", [12, 64])
def test_the_layer_can_be_made(rng, task, batch_size, channels):
    choice = fastnorm.recommend(task, batch_size, channels)
    if not hasattr(fastnorm, choice.normalizer):
        pytest.skip(f"no {choice.normalizer}")
    layer = choice.layer(dtype=np.float64)
    assert type(layer).__name__ == choice.normalizer
    assert layer.params["weight"].shape == (channels,)
    last = task == "transformer"
    x = rng.standard_normal((batch_size, 5, channels) if last else (batch_size, channels, 5))
    assert np.isfinite(layer(x)).all()


def test_the_code_of_the_doc():
    (block,) = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)
    names = {}
    exec(block, names)
    assert repr(names["norm"]).startswith("GroupNorm(32, 256")
    choice = names["choice"]
    assert f"# {choice.normalizer!r}, {choice.arguments!r}\n" in block


def test_the_table_of_the_doc():
    def call(choice):
        arguments = ", ".join(f"{k}={v!r}" for k, v in choice.arguments.items())
        return f"`{choice.normalizer}({arguments})`"

    table = rows(DOC.split("## Two questions")[0])[1:]
    want = []
    for task in TASKS:
        large, small = fastnorm.recommend(task), fastnorm.recommend(task, 2)
        same = call(large) == call(small)
        instead = ", ".join(f"`{name}`" for name in large.alternatives)
        want.append([f"`{task}`", call(large), "the same" if same else call(small), instead])
    assert table == want


@pytest.mark.parametrize("task", TASKS)
def test_the_doc_tells_the_same_reasons(task):
    text = section(f"### `{task}`").replace(" ", "")
    for choice in (fastnorm.recommend(task), fastnorm.recommend(task, 2)):
        assert ARXIV.search(choice.reason), "a reason names its paper"
        for name, why in {choice.normalizer: choice.reason, **choice.alternatives}.items():
            assert name in text
            assert why
            assert set(ARXIV.findall(why)) <= set(ARXIV.findall(text))
            assert set(FIGURE.findall(why)) <= set(FIGURE.findall(text)), "other figures"


def test_papers_have_one_name():
    """An arXiv number comes with the same authors and year wherever it is named."""
    reasons = " ".join(
        " ".join([entry.large.reason, entry.small.reason, *entry.alternatives.values()])
        for entry in TASKS.values()
    )
    text = " ".join(DOC.split())
    links = re.sub(r"\[(arXiv:[\d.]+)\]\(https://arxiv.org/abs/([\d.]+)\)", r"\1", text)
    assert all(f"arXiv:{a}" in links for a in re.findall(r"abs/([\d.]+)\)", DOC))
    names = {}
    pattern = r"([A-Z]\w+(?: & [A-Z]\w+| et al\.)? \d{4}),\s(arXiv:[\d.]+\d)"
    for name, paper in re.findall(pattern, f"{reasons} {links}"):
        names.setdefault(paper, set()).add(name)
    assert len(names) >= 15
    assert all(len(found) == 1 for found in names.values()), names


def test_groups():
    channels = np.arange(1, 2049)
    groups = np.array([num_groups_for(int(c)) for c in channels])
    assert not (channels % groups).any()
    assert groups.max() == 32
    assert (channels[groups > 1] // groups[groups > 1]).min() >= 2
    assert (groups[(channels % 32 == 0) & (channels >= 64)] == 32).all()
    assert (groups[(channels % 32 == 16) & (channels >= 48)] == 16).all()
    for c, n in zip(channels, groups, strict=True):  # no larger divisor was left, but for 32 and 16
        assert n in (16, 32) or not any(c % k == 0 for k in range(n + 1, min(32, c // 2) + 1))


def test_groups_in_the_doc_and_in_recommend():
    channels, groups = (cells[1:] for cells in rows(section("## How many groups")))
    for c, n in zip(channels, groups, strict=True):
        assert num_groups_for(int(c)) == int(n)
        arguments = fastnorm.recommend("medical", channels=int(c)).arguments
        assert arguments == {"num_groups": int(n), "num_channels": int(c)}


def test_advice_of_batch_sizes():
    assert "200 %" in fastnorm.recommend("multi_task", 2).batch_advice
    assert "100 %" in fastnorm.recommend("multi_task", 3).batch_advice
    assert "only its positions" in fastnorm.recommend("multi_task", 1).batch_advice
    assert "all devices together" in fastnorm.recommend("several_devices", 2).batch_advice
    assert "any batch size" in fastnorm.recommend("classification", 2).batch_advice


def test_answers_are_the_callers_own():
    first = fastnorm.recommend("medical", channels=64)
    first.alternatives.clear()
    first.arguments.clear()
    second = fastnorm.recommend("medical", channels=64)
    assert second.alternatives
    assert second.arguments
    with pytest.raises(AttributeError):
        second.normalizer = "BatchNorm"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("segmentation",), ValueError, r"^task: expected one of 'classification', .*'medical', "
         r"got 'segmentation'$"),
        ((3,), TypeError, r"^task: expected a str, got int$"),
        (("gan", 0), ValueError, r"^batch_size: expected at least 1, got 0$"),
        (("gan", 2.5), TypeError, r"^batch_size: expected an int, got float$"),
        (("gan", 2, -4), ValueError, r"^channels: expected at least 1, got -4$"),
        (("gan", 2, "64"), TypeError, r"^channels: expected an int, got str$"),
    ],
)  # fmt: skip
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        fastnorm.recommend(*arguments)
