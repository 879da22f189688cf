"""Start a project: `leaf init DIR` looks at texts, asks what it needs to know, and writes the project's files."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import click

from pipeline.base import LeafError, glob_root, near, parse_yaml
from pipeline.corpus import TEXT_KINDS, Fields, Preview, guess_sources, has_fields, left_out, preview
from pipeline.params import (
    ApiParams,
    CorpusParams,
    EncodeParams,
    EvaluateParams,
    FitParams,
    SourceParams,
    TeacherParams,
    load_section,
    parse,
    section_classes,
)
from stages import suggested
from stages.common import command, echo
from stages.estimate import model_size
from stages.project import EVALUATION, RECIPES, SECTIONS, SOURCES, Project, evaluation_paths, source_paths
from stages.shown import show_run, show_source

T = TypeVar("T")
HUB_RECORDS = 1000  # that are read of a data set on the hub


@dataclass(frozen=True)
class Answers:
    """What the options say; what they leave out is asked on a terminal, and guessed or refused elsewhere."""

    texts: tuple[str, ...]
    query_field: str | None
    document_field: str | None
    text_field: str | None
    title_field: str | None
    id_field: str | None
    role: Literal["query", "document"] | None
    encoding: str | None
    teacher: str | None
    api: str | None
    student: str | None
    heldout: float | None
    evaluation: tuple[str, ...]

    def check_role(self) -> None:
        """Refuse a role of texts that have one by their field."""
        if self.role and (self.query_field or self.document_field):
            raise LeafError("--role: is that of --text-field; --query-field and --document-field say it themselves")

    def check_used(self, sources: Sequence[SourceParams]) -> None:
        """Refuse options that no source can have, as texts of a person who gave them would be read otherwise."""
        kinds = ", ".join(dict.fromkeys(source.kind for source in sources))
        if self.fields.names_any and not any(map(has_fields, sources)):
            raise LeafError(f"kind {kinds} has no fields to name: leave out --query-field, --text-field and the like")
        if self.encoding and not any(source.kind in TEXT_KINDS for source in sources):
            raise LeafError(f"--encoding: kind {kinds} knows its own; leave it out")

    @property
    def fields(self) -> Fields:
        """What the files and fields of the texts are."""
        return Fields(
            self.query_field,
            self.document_field,
            self.text_field,
            self.title_field,
            self.id_field,
            self.role,
            self.encoding,
        )


@command
@click.argument("directory", type=Path)
@click.option(
    "--texts", multiple=True, help="File, directory, glob in quotes, or data set on the hub; may be given again."
)
@click.option("--query-field", help="Field of the texts that holds queries.")
@click.option("--document-field", help="Field that holds documents; with --query-field as well, records are pairs.")
@click.option("--text-field", help="Field that holds texts of one --role.")
@click.option("--title-field", help="Field whose text is put before a document's.")
@click.option("--id-field", help="Field that holds ids.")
@click.option("--role", type=click.Choice(["query", "document"]), help="Of all texts, where they are no pairs.")
@click.option("--encoding", help="Of files of text that are not UTF-8 (cp1252, gb18030), if it is guessed wrong.")
@click.option("--teacher", help="Hub id or directory of the large model, or with --api its name there.")
@click.option("--api", help="URL of an OpenAI-compatible API that runs the teacher (https://api.openai.com/v1).")
@click.option("--student", help="Hub id or directory of the model that the student starts from.")
@click.option("--heldout", type=click.FloatRange(0, 1), help="Share of the records to test with.")
@click.option(
    "--evaluation", multiple=True, help="BEIR directory, or file of sentence pairs or labels; more than once."
)
@click.option("--recipe", help="Start from a recipe: leaf-ir, leaf-mt, mpnet-minilm.")
def main(*, directory: Path, recipe: str | None, **options: Any) -> None:
    """Make a project in DIRECTORY: dvc.yaml, params.yaml, what git and DVC ignore. Nothing is overwritten.

    Without options it asks. Where nobody can be asked, --texts (or --recipe) is enough, and the rest is guessed and
    shown. The models are taken from the hub when the first stage runs, not before.
    """
    draft = _Draft(Project(directory), Answers(**options), recipe)
    draft.choose_texts()
    draft.choose_models()
    draft.choose_tests()
    if draft.previews:
        show_run(
            draft.get(TeacherParams),
            draft.get(FitParams),
            draft.get(CorpusParams).heldout,
            draft.previews,
            has_collections=bool(draft.get(EvaluateParams).beir),
        )
    for sentence in draft.project.write(draft.sections, draft.head):
        echo(sentence)
    _show_next_steps(directory, draft)


class _Draft:
    """The sections of a `params.yaml` in the making."""

    def __init__(self, project: Project, answers: Answers, recipe: str | None) -> None:
        self.project, self.answers, self.recipe = project, answers, recipe
        self.asks = _is_terminal() and recipe is None
        self.head, self.sections = _read_recipe(recipe) if recipe else ("", _empty_sections())
        self.previews: list[Preview] = []
        """What was seen of each source."""

    def get(self, cls: type[T]) -> T:
        """The section of this class."""
        return next(section for section in self.sections.values() if isinstance(section, cls))

    def set(self, section: object) -> None:
        """Take another section of its class."""
        name = next(name for name, old in self.sections.items() if type(old) is type(section))
        self.sections[name] = section

    def choose_texts(self) -> None:
        """Guess what the texts are, and show it; those of a recipe are taken on trust."""
        paths = list(self.answers.texts)
        if not paths and self.recipe:
            return
        if not paths and not self.asks:
            raise LeafError("--texts: name a file, a directory or a data set on the hub")
        paths = paths or [_ask("Where are the texts (file, directory, data set on the hub)?")]
        corpus, sources = self.get(CorpusParams), list[SourceParams]()
        self.answers.check_role()
        for path in paths:
            for source, seen in self._seen_sources(path, [source.name for source in sources]):
                is_local = source.kind != "huggingface"
                place = self.project.place(cast(str, source.path), SOURCES) if is_local else source.path
                sources.append(replace(source, path=place))
                self.previews.append(seen)
        self.answers.check_used(sources)
        self.set(replace(corpus, sources=tuple(sources)))

    def _seen_sources(self, path: str, taken: Sequence[str]) -> list[tuple[SourceParams, Preview]]:
        """The sources at a path and what was seen of them; on a terminal the guess may be corrected."""
        fields = self.answers.fields
        is_given = fields != Fields()
        while True:
            seen = self._look_at_all(guess_sources(path, fields, taken, echo))
            may_ask = self.asks and not is_given and any(has_fields(source) for source, _ in seen)
            if not may_ask or click.confirm("Is that right?", default=True):
                return seen
            typed = {part: _ask(f"Field of the {part} (empty for none):", "") or None for part in _PARTS}
            role = _ask("Its role, query or document?", "document") if typed["text"] else None
            fields = Fields(**typed, role=cast(Any, role))

    def _look_at_all(self, sources: Sequence[SourceParams]) -> list[tuple[SourceParams, Preview]]:
        """Those that can be read, with what was seen of them; the others of a directory are left out with a word."""
        seen, errors = list[tuple[SourceParams, Preview]](), list[tuple[str, LeafError]]()
        for source in sources:
            try:
                seen.append((source, self._look_at(source)))
            except LeafError as error:
                errors.append((source.kind, error))
        if not seen:
            raise errors[0][1]
        for kind, reason in errors:
            echo(left_out(kind, reason))
        return seen

    def _look_at(self, source: SourceParams) -> Preview:
        """Read a source, of a data set on the hub only the beginning, and show it."""
        is_local = source.kind != "huggingface"
        seen = preview(source if is_local else replace(source, limit=HUB_RECORDS), self.get(CorpusParams))
        seen.whole = seen.whole and is_local
        show_source(source, seen)
        return seen

    def choose_models(self) -> None:
        """Teacher and student, and how to fit; a recipe keeps what the options do not say."""
        answers, teacher, fit = self.answers, self.get(TeacherParams), self.get(FitParams)
        if answers.api and not answers.teacher:
            raise LeafError("--api: needs --teacher, the API's name for the model")
        suggestion = suggested.models(self.previews)
        name = answers.teacher or teacher.model or self._choose("Teacher, the large model:", suggestion[0])
        start = answers.student or fit.student.model or self._choose("The student starts from:", suggestion[1])
        for option, given in (("--teacher", None if answers.api else answers.teacher), ("--student", answers.student)):
            _check_local(option, given or "")
        if name != teacher.model:
            api = ApiParams(answers.api) if answers.api else None
            place = name if api else self.project.model(name)
            self.set(replace(teacher, model=place, api=api, sha256=None, revision=None, max_length=None))
        if self.recipe is None:
            large = None if answers.api else model_size(name)
            self.set(suggested.fit(self.project.model(start), model_size(start), large, self.previews))
        elif start != fit.student.model:
            student = replace(fit.student, model=self.project.model(start), sha256=None, revision=None)
            self.set(replace(fit, student=student))

    def choose_tests(self) -> None:
        """What is held out, and what else the student is measured on."""
        corpus, heldout = self.get(CorpusParams), self.answers.heldout
        if heldout is None and self.previews:
            suggestion = suggested.heldout(sum(seen.records for seen in self.previews))
            question = "Share of the records to hold out and test with:"
            heldout = _ask_share(question, suggestion) if self.asks else suggestion
        if heldout is not None:
            self.set(replace(corpus, heldout=heldout))
        paths = list(self.answers.evaluation)
        if not paths and self.asks:
            paths = list(filter(None, [_ask("File or collection to evaluate on (empty for none):", "")]))
        for path in paths:
            evaluate = self.get(EvaluateParams)
            kind = suggested.evaluation_kind(Path(path).expanduser())
            listed = (*getattr(evaluate, kind), self.project.place(path, EVALUATION))
            self.set(replace(evaluate, **cast(Any, {kind: listed})))

    def _choose(self, question: str, suggestion: str) -> str:
        return _ask(question, suggestion) if self.asks else suggestion


def _check_local(option: str, name: str) -> None:
    """Refuse a model that is named as a package's or a directory and is none; the hub is not asked."""
    if name.startswith(("package:", ".", "/", "~")):
        from pipeline.model import resolve_model  # only now: it imports PyTorch

        try:
            resolve_model(os.path.expanduser(name))  # noqa: PTH111  a Path would lose the `./`
        except LeafError as error:
            raise LeafError(f"{option}: {error}") from None


_PARTS = ("query", "document", "text", "title", "id")


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _ask(question: str, default: str | None = None) -> str:
    return str(click.prompt(question, default=default, prompt_suffix=" ", show_default=bool(default))).strip()


def _ask_share(question: str, suggestion: float) -> float:
    return float(click.prompt(question, default=suggestion, type=click.FloatRange(0, 1), prompt_suffix=" "))


def _empty_sections() -> dict[str, object]:
    """Every section that the stages depend on, with what must be given left empty."""
    given: dict[str, Any] = {
        "corpus": {"sources": [], "heldout": suggested.HELDOUT},
        "teacher": {"model": ""},
        "fit": {"student": {"model": ""}},
    }
    return {name: parse(section_classes()[name], name, given.get(name, {})) for name in SECTIONS}


def _read_recipe(name: str) -> tuple[str, dict[str, object]]:
    """The comment at a recipe's head, and its sections."""
    known = sorted(entry.name.removesuffix(".yaml") for entry in RECIPES.iterdir() if entry.name.endswith(".yaml"))
    if name not in known:
        raise LeafError(
            f"--recipe {name}: there is none of this name{near(name, known)}; the recipes are {', '.join(known)}"
        )
    file = Path(str(RECIPES.joinpath(f"{name}.yaml")))
    head = "".join(f"{line}\n" for line in file.read_text(encoding="utf-8").partition("\n\n")[0].splitlines())
    echo(head.replace("# ", ""))
    written = parse_yaml(file.read_text(encoding="utf-8"))
    classes = {section: cls for section, cls in section_classes().items() if section in (*SECTIONS, *written)}
    return head, {section: load_section(file, section, cls) for section, cls in classes.items()}


def _show_next_steps(directory: Path, draft: _Draft) -> None:
    """Print what is still missing, and the command to type."""
    named = [*source_paths(draft.sections), *evaluation_paths(draft.sections), *draft.get(EncodeParams).reuse]
    missing = [path for path in named if "://" not in path and not glob_root(draft.project.directory / path).exists()]
    if missing:
        echo(f"bring what is not there yet, or change params.yaml: {', '.join(missing)}")
    if api := draft.get(TeacherParams).api:
        echo(f"put the API's key into the environment variable {api.key_env}")
    is_here = draft.project.directory == Path.cwd()
    echo(f"now type:  {'' if is_here else f'cd {directory} && '}leaf repro")


if __name__ == "__main__":
    main()
