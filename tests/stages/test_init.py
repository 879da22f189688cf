"""`leaf init` looks at texts, writes a project that says what it saw, and overwrites nothing."""

import json
import subprocess
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from click.testing import CliRunner, Result

import stages.init
import stages.shown
from pipeline.params import CorpusParams, FitParams, load_section, section_classes
from stages.estimate import Machine
from stages.init import main
from tests.conftest import ROOT, sentence

PAIRS = [{"nr": n, "question": f"{sentence(n)}?", "answer": f"{sentence(n + 500)}."} for n in range(40)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with an FAQ in it."""
    monkeypatch.chdir(tmp_path)
    pl.DataFrame(PAIRS).write_csv("faq.csv")
    return tmp_path


def init(*arguments: str, typed: str | None = None) -> Result:
    return CliRunner().invoke(main, list(arguments), input=typed)


def models(teacher: Path, student: Path) -> tuple[str, ...]:
    return ("--teacher", str(teacher), "--student", str(student))


def params(directory: str) -> dict[str, Any]:
    document = yaml.safe_load(Path(directory, "params.yaml").read_text())
    assert isinstance(document, dict)
    return document


def test_options_alone_are_enough(place: Path, tiny_teacher: Path, tiny_student: Path) -> None:
    result = init("new", "--texts", "faq.csv", *models(tiny_teacher, tiny_student))
    assert result.exit_code == 0, result.output
    assert {"dvc.yaml", "params.yaml", ".gitignore", ".dvcignore", ".dvc"} <= {
        path.name for path in Path("new").iterdir()
    }
    (source,) = params("new")["corpus"]["sources"]
    fields = {"id_field": "nr", "query_field": "question", "document_field": "answer"}
    assert source == {"name": "faq", "kind": "csv", "path": "data/sources/faq.csv"} | fields
    assert Path("new/data/sources/faq.csv").read_bytes() == Path("faq.csv").read_bytes()
    for name, cls in section_classes().items():
        if name in params("new"):
            load_section(Path("new/params.yaml"), name, cls)


def test_it_shows_five_texts_as_they_will_be_stored_and_the_one_command_to_type(
    place: Path, tiny_teacher: Path, tiny_student: Path
) -> None:
    Path("notes.txt").write_text("\n".join(f"{sentence(n)}\t  and \x1b[2J more" for n in range(30)))
    output = init("new", "--texts", "notes.txt", *models(tiny_teacher, tiny_student)).output
    assert output.count("and \\u001b[2J more") == 5  # white space is cleaned, and the terminal is not
    assert "30 documents" in output
    assert output.rstrip().endswith("cd new && leaf repro")


def test_what_is_a_default_is_not_written_and_what_is_written_is_explained(
    place: Path, tiny_teacher: Path, tiny_student: Path
) -> None:
    init("new", "--texts", "faq.csv", *models(tiny_teacher, tiny_student))
    lines = Path("new/params.yaml").read_text().splitlines()
    written = params("new")
    assert "batch_size" not in written["fit"] and written["encode"] == {} == written["export"]
    defaults = FitParams(load_section(Path("new/params.yaml"), "fit", FitParams).student)
    assert all(written["fit"][key] != getattr(defaults, key) for key in written["fit"] if key != "student")
    rate = next(number for number, line in enumerate(lines) if "learning_rate:" in line)
    assert "at the start of each cycle" in lines[rate - 1]


def test_nothing_is_overwritten(place: Path, tiny_teacher: Path, tiny_student: Path) -> None:
    options = ("--texts", "faq.csv", *models(tiny_teacher, tiny_student))
    Path("new").mkdir()
    Path("new/.gitignore").write_text("mine")
    assert init("new", *options).exit_code == 0
    assert Path("new/.gitignore").read_text().startswith("mine\n/.cache/*\n!/.cache/dvc/\n")
    before = {path: path.stat().st_mtime_ns for path in Path("new").rglob("*")}
    refused = init("new", *options)
    assert refused.exit_code == 1 and "dvc.yaml: is there already, and nothing is overwritten" in refused.output
    assert {path: path.stat().st_mtime_ns for path in Path("new").rglob("*")} == before


def test_texts_in_the_same_repository_stay_where_they_are_and_are_watched(
    place: Path, tiny_teacher: Path, tiny_student: Path
) -> None:
    subprocess.run(["git", "init", "-q"], check=True)
    assert init("search/model", "--texts", "faq.csv", *models(tiny_teacher, tiny_student)).exit_code == 0
    assert params("search/model")["corpus"]["sources"][0]["path"] == "../../faq.csv"
    pipeline = yaml.safe_load(Path("search/model/dvc.yaml").read_text())["stages"]
    assert pipeline["corpus"]["deps"] == ["../../faq.csv"]
    inside = init("faqs", "--texts", ".", *models(tiny_teacher, tiny_student))
    assert inside.exit_code == 1 and "holds the project itself" in inside.output


def test_a_folder_with_two_kinds_of_files_is_two_sources_and_one_copy(
    place: Path, tiny_teacher: Path, tiny_student: Path
) -> None:
    Path("texts").mkdir()
    Path("faq.csv").rename("texts/faq.csv")
    Path("texts/notes.md").write_text("\n\n".join(sentence(n) for n in range(9)))
    result = init("new", "--texts", "texts", *models(tiny_teacher, tiny_student))
    assert result.exit_code == 0, result.output
    sources = params("new")["corpus"]["sources"]
    assert {(source["kind"], source["path"]) for source in sources} == {
        ("csv", "data/sources/texts"),
        ("markdown", "data/sources/texts"),
    }
    assert result.output.count("copied ") == 1


def test_without_a_terminal_and_texts_it_says_what_to_name(place: Path) -> None:
    refused = init("new")
    assert refused.exit_code == 1 and "--texts: name a file" in refused.output
    assert not Path("new").exists()


def test_on_a_terminal_it_asks_and_a_wrong_guess_can_be_corrected(
    place: Path, tiny_teacher: Path, tiny_student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages.init, "_is_terminal", lambda: True)
    fields = ["n", "answer", "question", "", "", "nr", "y"]
    answers = ["faq.csv", *fields, str(tiny_teacher), str(tiny_student), "0.25", ""]
    result = init("new", typed="\n".join([*answers, ""]))
    assert result.exit_code == 0, result.output
    written = load_section(Path("new/params.yaml"), "corpus", CorpusParams)
    assert (written.sources[0].query_field, written.sources[0].document_field) == ("answer", "question")
    assert written.heldout == 0.25


def test_what_to_evaluate_on_is_told_by_its_columns(place: Path, tiny_teacher: Path, tiny_student: Path) -> None:
    pl.DataFrame({"sentence1": ["a b"], "sentence2": ["b c"], "score": [1.0]}).write_csv("pairs.csv")
    options = ("--texts", "faq.csv", *models(tiny_teacher, tiny_student), "--evaluation")
    assert init("new", *options, "pairs.csv").exit_code == 0
    assert params("new")["evaluate"] == {"sts": ["data/evaluation/pairs.csv"]}
    assert "data/evaluation" in yaml.safe_load(Path("new/dvc.yaml").read_text())["stages"]["evaluate"]["deps"]
    refused = init("other", *options, "faq.csv")
    assert refused.exit_code == 1 and "must have the columns" in refused.output


def test_an_api_is_named_without_a_key(place: Path, tiny_student: Path) -> None:
    api = ("--teacher", "text-embedding-3-small", "--api", "https://api.example.org/v1")
    result = init("new", "--texts", "faq.csv", *api, "--student", str(tiny_student))
    assert result.exit_code == 0, result.output
    assert params("new")["teacher"] == {
        "model": "text-embedding-3-small",
        "api": {"base_url": "https://api.example.org/v1"},
    }
    assert "OPENAI_API_KEY" in result.output and "tokens go to the API" in result.output


def test_the_pipeline_of_a_project_is_that_of_this_repository(
    place: Path, tiny_teacher: Path, tiny_student: Path
) -> None:
    ours = yaml.safe_load((ROOT / "dvc.yaml").read_text().replace("python -m stages.", "leaf "))
    Path("evaluated").mkdir()
    init("new", "--texts", "faq.csv", *models(tiny_teacher, tiny_student), "--evaluation", "evaluated")
    assert yaml.safe_load(Path("new/dvc.yaml").read_text()) == ours


def test_many_texts_get_a_bounded_fit_and_a_smaller_share_is_held_out(
    place: Path, tiny_teacher: Path, tiny_student: Path
) -> None:
    pl.DataFrame({"text": [f"{sentence(n)} {n}" for n in range(60_000)]}).write_parquet("many.parquet")
    init("new", "--texts", "many.parquet", *models(tiny_teacher, tiny_student))
    written = params("new")
    assert written["fit"]["max_steps"] == 31_250
    assert written["corpus"]["heldout"] == pytest.approx(0.03)
    assert written["corpus"]["sources"][0] == {
        "name": "many",
        "kind": "parquet",
        "path": "data/sources/many.parquet",
        "role": "document",
        "text_field": "text",
    }


def test_a_recipe_is_a_project_and_its_head_says_what_to_bring(place: Path) -> None:
    result = init("new", "--recipe", "mpnet-minilm")
    assert result.exit_code == 0, result.output
    assert params("new")["fit"]["snapshots"] == [0, 3125, 9375]
    assert (
        "bring what is not there yet, or change params.yaml: data/sources/broad.parquet, data/sources/debian.parquet"
        in result.output
    )
    assert Path("new/params.yaml").read_text().startswith("# leaf-ir's size ratio on two CPU cores")
    unknown = init("other", "--recipe", "leaf")
    assert "the recipes are leaf-ir, leaf-mt, mpnet-minilm" in unknown.output


def test_json_with_its_records_in_a_document_is_read(place: Path, tiny_teacher: Path, tiny_student: Path) -> None:
    Path("faq.json").write_text(json.dumps({"version": 1, "entries": PAIRS}))
    result = init("new", "--texts", "faq.json", *models(tiny_teacher, tiny_student))
    assert result.exit_code == 0, result.output
    source = params("new")["corpus"]["sources"][0]
    assert source["query_field"] == "entries[].question" and source["id_field"] == "entries[].nr"


def test_a_folder_of_notes_is_read_though_other_files_lie_in_it(
    place: Path, tiny_teacher: Path, tiny_student: Path
) -> None:
    Path("notes").mkdir()
    Path("notes/one.md").write_text(f"# {sentence(1)}\n\n{sentence(2)}")
    Path("notes/settings.json").write_text('{"a": 1}')
    pl.DataFrame(PAIRS).write_csv("notes/a.csv")
    Path("notes/b.csv").write_text("other,columns\n1,2\n")
    result = init("new", "--texts", "notes", *models(tiny_teacher, tiny_student))
    assert result.exit_code == 0, result.output
    assert [source["kind"] for source in params("new")["corpus"]["sources"]] == ["markdown"]
    left_out = [line for line in result.output.splitlines() if line.startswith("left out")]
    assert "settings.json" in left_out[0] and "b.csv: has no column" in left_out[1]
    assert f"one.md#{sentence(1).replace(' ', '-')}" in result.output


def test_the_files_of_a_glob_are_copied_where_they_match_and_dvc_watches_their_folder(
    place: Path, tiny_teacher: Path, tiny_student: Path
) -> None:
    for name in ("notes/one.md", "notes/deep/two.md", "notes/three.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(f"# {name}\n\n{sentence(len(name))}")
    result = init("new", "--texts", "notes/**/*.md", *models(tiny_teacher, tiny_student))
    assert result.exit_code == 0, result.output
    assert params("new")["corpus"]["sources"][0]["path"] == "data/sources/notes/**/*.md"
    assert "bring what is not there yet" not in result.output
    copied = sorted(str(file.relative_to("new/data/sources")) for file in Path("new/data/sources").rglob("*.*"))
    assert copied == ["notes/deep/two.md", "notes/one.md"]
    subprocess.run(["git", "init", "-q"], check=True)
    assert init("inner", "--texts", "notes/*.md", *models(tiny_teacher, tiny_student)).exit_code == 0
    assert params("inner")["corpus"]["sources"][0]["path"] == "../notes/*.md"
    assert yaml.safe_load(Path("inner/dvc.yaml").read_text())["stages"]["corpus"]["deps"] == ["../notes"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--texts", "notes.txt", "--query-field", "q"), "kind text has no fields to name: leave out --query-field"),
        (("--texts", "faq.csv", "--query-field", "question", "--role", "query"), "--role: is that of --text-field"),
        (("--texts", "faq.csv", "--teacher", "package:nothing/model"), "--teacher: model `package:nothing/model`: the"),
        (("--texts", "faq.csv", "--student", "./nowhere"), "--student: model `./nowhere`: no such directory"),
        (("--texts", "pairs.parquet", "--encoding", "cp1252"), "--encoding: kind parquet knows its own"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_before_anything_is_written(
    options: tuple[str, ...], reason: str, place: Path
) -> None:
    Path("notes.txt").write_text(sentence(1))
    pl.DataFrame(PAIRS).write_parquet("pairs.parquet")
    refused = init("new", *options)
    assert refused.exit_code == 1 and reason in refused.output
    assert not Path("new").exists()


def test_too_little_to_test_with_is_said_with_the_share_that_would_do(
    place: Path, tiny_teacher: Path, tiny_student: Path
) -> None:
    options = ("--texts", "faq.csv", *models(tiny_teacher, tiny_student), "--heldout", "0")
    assert "none of 80 texts is held out: raise corpus.heldout from 0 to 0.5" in init("a", *options).output
    Path("beir").mkdir()
    output = init("c", *options, "--evaluation", "beir").output
    assert "leaf repro" in output and "is held out" not in output and "max_steps" not in output


def test_a_run_of_hours_is_shown_with_what_makes_it_shorter(
    place: Path, tiny_teacher: Path, tiny_student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages.shown, "measure", lambda: Machine("CPU", 1e4))
    output = init("new", "--texts", "faq.csv", *models(tiny_teacher, tiny_student)).output
    assert "presentations of 64 texts in" in output
    share = float(output.partition("`sample: ")[2].partition("`")[0])
    steps = int(output.partition("`max_steps: ")[2].partition("`")[0])
    whole = int(output.partition(" texts in ")[2].partition(" steps")[0].replace(",", ""))
    assert 0 < share < 1 and 0 < steps < whole
