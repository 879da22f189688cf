"""Wrong parameters are refused with the key's full name and what would be right."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.base.errors import LeafError
from pipeline.params.file import load_section
from pipeline.params.parsing import parse
from pipeline.params.sections import CorpusParams, EncodeParams, EvaluateParams, FitParams, TeacherParams

ROOT = Path(__file__).parents[2]
STUDENT = {"student": {"model": "m"}}
SECTIONS: dict[str, type] = {
    "corpus": CorpusParams,
    "teacher": TeacherParams,
    "encode": EncodeParams,
    "fit": FitParams,
    "evaluate": EvaluateParams,
}


@pytest.mark.parametrize(
    ("cls", "raw", "message"),
    [
        (
            FitParams,
            {**STUDENT, "bach_size": 32},
            r"fit\.bach_size: unknown key \(did you mean `batch_size`\?\); known keys: ",
        ),
        (FitParams, {**STUDENT, "colour": 32}, r"fit\.colour: unknown key; known keys: "),
        (
            CorpusParams,
            {"sources": [{"name": "n", "kind": "markdwon"}], "heldout": 0.1},
            r"kind: 'markdwon' \(str\) is impossible \(did you mean `markdown`\?\); it must be one of ",
        ),
        (FitParams, {**STUDENT, "batch_size": "many"}, r"fit\.batch_size: must be a whole number, not 'many' \(str\)"),
        (FitParams, {**STUDENT, "batch_size": True}, r"fit\.batch_size: must be a whole number, not True"),
        (FitParams, {**STUDENT, "batch_size": 1.5}, r"fit\.batch_size: must be a whole number"),
        (
            FitParams,
            {**STUDENT, "batch_size": 0},
            r"fit\.batch_size: 0 \(int\) is impossible; .* greater than 0",
        ),
        (FitParams, {**STUDENT, "dropout": 1}, r"fit\.dropout: 1\.0 .* between 0 and 0\.9"),
        (FitParams, {**STUDENT, "learning_rate": float("nan")}, r"fit\.learning_rate: nan is impossible; .* finite"),
        (FitParams, {**STUDENT, "loss": "hinge"}, r"fit\.loss: 'hinge' .* one of l2, mse, cosine"),
        (FitParams, {"student": {}}, r"fit\.student\.model: missing; it has no default"),
        (FitParams, {"student": {"model": "m", "layers": [1, "x"]}}, r"fit\.student\.layers\[1\]: must be a whole"),
        (FitParams, {"student": "m"}, r"fit\.student: must be a mapping"),
        (FitParams, {"student": {"model": "m", "layers": 3}}, r"fit\.student\.layers: must be a list"),
        (CorpusParams, {"sources": [{"kind": "csv"}], "heldout": 0.1}, r"corpus\.sources\[0\]\.name: missing"),
        (CorpusParams, {"sources": [], "heldout": 2}, r"corpus\.heldout: 2\.0 .* between 0 and 1"),
        (TeacherParams, {"model": "m", "prompts": {"qery": ""}}, r"teacher\.prompts\.qery: unknown key"),
        (EncodeParams, {"dtype": "float8"}, r"encode\.dtype: 'float8' .* float16, float32, int8"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_would_be_right(cls: type, raw: dict[str, Any], message: str) -> None:
    section = next(name for name, known in SECTIONS.items() if known is cls)
    with pytest.raises(LeafError, match=message):
        parse(cls, section, raw)


def test_a_learning_rate_written_1e_minus_4_is_a_number() -> None:
    raw = yaml.safe_load("{student: {model: m}, learning_rate: 1e-4}")
    assert parse(FitParams, "fit", raw).learning_rate == 1e-4


def test_a_missing_file_or_section_and_broken_yaml_are_named(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    with pytest.raises(LeafError, match="no such parameter file"):
        load_section(file, "fit", FitParams)
    file.write_text("a: [1")
    with pytest.raises(LeafError, match=r"is not YAML: .* in line 1"):
        load_section(file, "fit", FitParams)
    file.write_text("corpus:\n  sources:\n    - {name: s, text_field: data[].text}\n")
    with pytest.raises(LeafError, match=r"^\S+: is not YAML: .* in line 3, column 33; .* stands in quotes$"):
        load_section(file, "corpus", CorpusParams)
    file.write_text("corpus:\n  sources: [a: b\nteacher: {}\n")
    with pytest.raises(LeafError, match=r"in line 3, column 8, while parsing a flow sequence that begins in line 2;"):
        load_section(file, "corpus", CorpusParams)
    file.write_text("corpus:\n\tsources: []\n")
    with pytest.raises(LeafError, match=r"in line 2, column 1; lines are indented by spaces, not by tabs$"):
        load_section(file, "corpus", CorpusParams)
    file.write_text("encode: {}")
    with pytest.raises(LeafError, match="has no section `fit`"):
        load_section(file, "fit", FitParams)


def test_a_mistake_in_a_later_stage_s_section_is_found_by_every_stage_before(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("encode: {}\nteacher: {}\nfit: {student: {model: no/such/model}}\nown: {key: 1}\n")
    assert load_section(file, "encode", EncodeParams) == EncodeParams()  # what another stage lacks is its own concern
    for wrong, message in (
        ("bach_size: 1", r"fit\.bach_size: unknown key"),
        ("batch_size: x", r"fit\.batch_size: must"),
    ):
        file.write_text(f"encode: {{}}\nfit: {{student: {{model: m}}, {wrong}}}\n")
        with pytest.raises(LeafError, match=message):
            load_section(file, "encode", EncodeParams)


@pytest.mark.parametrize(
    "file", [ROOT / "params.yaml", *sorted((ROOT / "recipes").glob("*.yaml"))], ids=lambda f: f.name
)
def test_every_parameter_file_of_the_project_is_valid(file: Path) -> None:
    for section, cls in SECTIONS.items():
        load_section(file, section, cls)
