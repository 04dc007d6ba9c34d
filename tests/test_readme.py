"""The README's Python blocks run, one after the other."""

import re
from pathlib import Path

import numpy as np

README = Path(__file__).parent.parent / "README.md"


def test_python_blocks_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 4
    names = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    assert names["dx"].shape == names["images"].shape
    assert np.isfinite(names["y"]).all()
    assert "instruction set in use" in capsys.readouterr().out


def test_the_benchmark_table_is_there():
    text = README.read_text()
    table = text.split("<!-- benchmark:start -->")[1].split("<!-- benchmark:end -->")[0]
    assert table.count("\n| ") > 10
