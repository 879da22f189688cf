"""Run what is out of date: `leaf repro` is `dvc repro`, with the commands of this environment first on the PATH."""

import os
import sys
from pathlib import Path

import click

from pipeline.base import LeafError
from pipeline.params import check_file
from stages.common import command


@command
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def main(arguments: tuple[str, ...]) -> None:
    """Run the stages that are out of date, and no others. All ARGUMENTS are those of `dvc repro`.

    `leaf repro fit` runs the pipeline up to fit, `leaf repro -s -f fit` that stage alone and in any case. The stages
    find the `leaf` of this environment, whether it is activated or not. A mistake in any section of params.yaml is told
    before DVC begins.
    """
    if not Path("dvc.yaml").is_file():
        raise LeafError("there is no dvc.yaml in this directory: go to a project's, or make one with `leaf init DIR`")
    if (params := Path("params.yaml")).exists():
        check_file(params)  # DVC removes a stage's outputs before the stage could refuse its parameters
    own = [str(Path(program).absolute().parent) for program in (sys.argv[0], sys.executable)]
    path = os.pathsep.join([*dict.fromkeys(own), os.environ.get("PATH", os.defpath)])
    sys.stdout.flush()
    # DVC takes the place of this process and so gets the signals. -P: no file of the user's shadows its modules.
    os.execve(sys.executable, [sys.executable, "-P", "-m", "dvc", "repro", *arguments], {**os.environ, "PATH": path})


main.context_settings = {"ignore_unknown_options": True}

if __name__ == "__main__":
    main()
