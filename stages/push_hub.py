"""Upload an exported model to the model hub: `leaf push-hub student --repo NAME/MODEL --upload`."""

import shutil
import tempfile
from pathlib import Path
from typing import cast

import click

from pipeline.base import LeafError, first_line
from stages.common import command, echo


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
        license_ = _check_card(staged / "README.md")
        files = sorted(path for path in staged.rglob("*") if path.is_file())
        listed = [f"{file.stat().st_size / 1e6:9.2f} MB  {file.relative_to(staged)}" for file in files]
        done = _upload(staged, repo, private) if upload else f"dry run: nothing was sent to {repo}; add --upload"
        echo("\n".join([*listed, f"licence on the card: {license_ or 'none'}", done]))


def _copy_files(source: Path, card: Path, folder: Path) -> Path:
    """Copy the files to upload into `folder`; `card` with the measured results replaces the one that fit wrote."""
    if not source.is_dir():
        raise LeafError(f"{source}: no such model; run the export stage first")
    if [file.name for file in source.iterdir()] == ["README.md"]:
        raise LeafError(f"{source}: holds no model; its README.md says why")
    # Contents without modes: a model that DVC has linked to its cache is read-only, and its card is replaced.
    ignored = shutil.ignore_patterns(".*", "__pycache__")
    shutil.copytree(source, folder, ignore=ignored, copy_function=shutil.copyfile)
    if card.is_file():
        shutil.copyfile(card, folder / "README.md")
    return folder


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
