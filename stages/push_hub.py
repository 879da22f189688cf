"""Upload an exported model to the model hub: `leaf push-hub student --repo NAME/MODEL --upload`."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import click

from pipeline.base import LeafError, first_line, read_listing, regular_size, sha256
from pipeline.store import MODEL_KIND
from stages.common import command, echo

CARD = "README.md"


@command
@click.argument("model")
@click.option("--repo", required=True, help="Hub id, NAME/MODEL.")
@click.option("--models", type=Path, default=Path("models"), show_default=True, help="Parent of the models.")
@click.option("--private", is_flag=True, help="Make the repository private if it is new.")
@click.option("--upload", is_flag=True, help="Upload; without it, only what would be uploaded is shown.")
def main(*, model: str, repo: str, models: Path, private: bool, upload: bool) -> None:
    """Upload MODEL with its card and measured results. A dry run unless --upload is given.

    MODEL is a directory below --models: student, asymmetric, asymmetric-named, onnx. The token comes from HF_TOKEN or
    from `hf auth login`.
    """
    source = models / model
    with tempfile.TemporaryDirectory() as folder:
        staged = _copy_files(source, models / "cards" / f"{model}.md", Path(folder) / "model")
        license_ = _check_card(staged / CARD)
        files = sorted(path for path in staged.rglob("*") if path.is_file())
        listed = [f"{file.stat().st_size / 1e6:9.2f} MB  {file.relative_to(staged)}" for file in files]
        done = _upload(staged, repo, private) if upload else f"dry run: nothing was sent to {repo}; add --upload"
        echo("\n".join([*listed, f"licence on the card: {license_ or 'none'}", done]))


def _copy_files(source: Path, card: Path, folder: Path) -> Path:
    """Copy the files to upload into `folder`; `card` with the measured results replaces the one that fit wrote."""
    if not source.is_dir():
        raise LeafError(f"{source}: no such model; run the export stage first")
    listed = _listed(source)
    if list(listed) == [CARD]:
        raise LeafError(f"{source}: holds no model; its README.md says why")
    for name, digest in listed.items():
        _copy(source / name, folder / name, digest)
    if card.is_file():
        _copy(card, folder / CARD, _listed(card.parent).get(card.name))
    return folder


def _listed(directory: Path) -> Mapping[str, str]:
    """The files of a model and their SHA-256, as they were written; what else lies there is nobody's to publish."""
    listed = read_listing(directory, MODEL_KIND.name)
    if listed is None or any(".." in Path(name).parts or Path(name).is_absolute() for name in listed):
        raise LeafError(
            f"{directory}: does not say which files belong to the model (an earlier version wrote it, or another "
            "program): run the stage that wrote it again, or upload it with `hf upload`"
        )
    return listed


def _copy(file: Path, target: Path, digest: str | None) -> None:
    """Copy one file; LeafError unless it is the one that was written there, or a card that was edited since.

    A model that DVC has linked to its cache is copied through the links, which the digests vouch for.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    regular_size(file, "belongs to the model")
    edited = file.suffix == ".md" and not file.is_symlink()
    shutil.copyfile(file, target)  # without modes: what DVC has linked is read-only, and the card is replaced
    if sha256(target) == digest:
        return
    if not edited:
        raise LeafError(f"{file}: is not the file that was written there: run the stage again; nothing was sent")
    echo(f"{file}: was changed by hand since it was written, and is sent as it is")


def _check_card(card: Path) -> str | None:
    """The licence that the card tells the hub; LeafError where the hub could not read it."""
    from huggingface_hub import ModelCard

    if not card.is_file():
        raise LeafError(f"{card.name}: the model has no card; run the export stage first")
    try:
        return cast("str | None", ModelCard.load(card).data.license)
    except ValueError as error:
        raise LeafError(f"{card.name}: the hub would not read its front matter: {error}") from None


def _upload(folder: Path, repo: str, private: bool) -> str:
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if not get_token():
        raise LeafError("no token for the model hub: set HF_TOKEN or run `hf auth login`")
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Exported model"))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise LeafError(f"{repo}: the hub refused the upload: {first_line(error)}") from None


if __name__ == "__main__":
    main()
