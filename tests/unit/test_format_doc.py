"""The code blocks of docs/format.md read a store with zarr and polars alone."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.store_helpers import publish

DOCUMENT = Path(__file__).parents[2] / "docs/format.md"


def blocks() -> str:
    return "\n".join(
        re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    )


def run(directory: Path) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-c", blocks()], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_a_reader_with_zarr_and_polars_reads_every_kind_of_store(tmp_path: Path, dtype: str) -> None:
    assert "pipeline" not in blocks()
    publish(tmp_path, (1500, 40), dtype).path.rename(tmp_path / "embeddings")
    result = run(tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"1540 vectors of 8 {dtype} in 2 shards\n"


def test_the_checks_of_the_document_find_damage(tmp_path: Path) -> None:
    publish(tmp_path).path.rename(tmp_path / "embeddings")
    file = next(tmp_path.glob("embeddings/rows/*.parquet"))
    raw = bytearray(file.read_bytes())
    raw[9] ^= 1  # inside the first page's header or data, before the footer
    file.write_bytes(raw)
    assert run(tmp_path).returncode != 0
