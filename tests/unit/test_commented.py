"""Parameters are written with what differs from the defaults, and explained by the dataclasses' own words."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from click.testing import CliRunner

from pipeline.params import FitParams, StudentParams, commented, explained, load_section, section_classes, sections
from pipeline.params.parsing import positive
from stages.init import _read_recipe
from stages.params import main


@dataclass(frozen=True)
class MadeUpParams:
    """Section `made_up`: added by a test.

    With more to say.
    """

    size: int = field(default=3, metadata=positive())
    """How large it is.

    This is not for the file."""
    colour: Literal["red", "blue"] = "red"
    names: tuple[str, ...] = ()


@pytest.mark.parametrize("recipe", ["leaf-ir", "leaf-mt", "mpnet-minilm"])
def test_what_is_written_is_read_again_as_the_same(recipe: str, tmp_path: Path) -> None:
    _, values = _read_recipe(recipe)
    file = tmp_path / "params.yaml"
    file.write_text(commented(values), encoding="utf-8")
    for name, value in values.items():
        assert load_section(file, name, type(value)) == value


def test_only_what_differs_from_its_default_is_written_with_the_words_of_the_dataclass() -> None:
    text = commented({"fit": FitParams(StudentParams("m", layers=(1, 3)), learning_rate=2e-4, clip_norm=None)})
    written = yaml.safe_load(text)["fit"]
    assert written == {"student": {"model": "m", "layers": [1, 3]}, "learning_rate": 2e-4, "clip_norm": None}
    above = text.splitlines()[: text.splitlines().index("  clip_norm: null")]
    assert above[-1] == "  # Norm to which gradients are clipped; None clips none."


def test_a_new_section_is_written_and_explained_without_another_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "made_up" not in section_classes()
    monkeypatch.setattr(sections, "MadeUpParams", MadeUpParams, raising=False)
    assert section_classes()["made_up"] is MadeUpParams
    assert commented({"made_up": MadeUpParams()}) == "# Section `made_up`: added by a test.\nmade_up: {}\n"
    changed = replace(MadeUpParams(), size=4, names=("a: b", "c"))
    assert commented({"made_up": changed}).splitlines()[2:] == [
        "  # How large it is.",
        "  size: 4",
        "  names: ['a: b', c]",
    ]
    assert list(explained("made_up", MadeUpParams)) == [
        "made_up.size = 3",
        "    How large it is. Must be greater than 0.",
        "made_up.colour = red",
        "    One of red, blue.",
        "made_up.names = []",
    ]


def test_every_key_of_every_section_is_explained() -> None:
    output = CliRunner().invoke(main).output
    for name, cls in section_classes().items():
        for definition in fields(cls):
            assert f"\n{name}.{definition.name}" in output
    refused: Any = CliRunner().invoke(main, ["fitt"])
    assert refused.exit_code == 1 and "the sections are corpus, teacher" in refused.output
