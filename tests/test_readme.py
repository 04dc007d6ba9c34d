"""The Python blocks of the documents run, one after the other; what they point to is there."""

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


@pytest.mark.parametrize("path", [README, ROOT / "docs" / "using.md"], ids=lambda path: path.name)
def test_python_blocks_run(path, capsys):
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
    names = {}
    for block in blocks:
        exec(compile(block, str(path), "exec"), names)
    assert np.isfinite(names["y"]).all()
    assert np.isfinite(names["dx"]).all()
    if path != README:
        assert len(blocks) >= 4
        assert names["dx"].shape == names["images"].shape
        assert "instruction set in use" in capsys.readouterr().out


def test_the_readme_is_read_in_a_minute():
    prose = re.sub(r"^\|.*\n", "", README.read_text(), flags=re.MULTILINE)
    assert len(prose.split()) < 650
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len([line for line in block.splitlines() if line]) <= 10


def test_the_benchmark_is_there():
    assert "](docs/speed.svg)" in README.read_text()
    assert (ROOT / "docs" / "speed.svg").read_text().startswith("<?xml")
    assert (ROOT / "docs" / "benchmarks.md").read_text().count("\n| ") > 10


def test_links_within_the_documents_lead_somewhere():
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
