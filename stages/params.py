"""List and explain the keys of `params.yaml`: `leaf params fit`."""

import click

from pipeline.base import LeafError, near
from pipeline.params import explained, section_classes
from stages.common import command, echo


@command
@click.argument("section", required=False)
def main(section: str | None) -> None:
    """Explain every key of SECTION, or of all sections: its default, what it may be, what it does."""
    classes = section_classes()
    if section is not None and section not in classes:
        raise LeafError(
            f"{section}: no section of params.yaml{near(section, classes)}; the sections are {', '.join(classes)}"
        )
    for name, cls in classes.items():
        if section in (None, name):
            echo("\n".join([(cls.__doc__ or "").partition("\n")[0], "", *explained(name, cls), ""]))


if __name__ == "__main__":
    main()
