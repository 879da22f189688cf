"""`leaf`: what people do with the results of the stages."""

import click

from stages import index, push_hub, search


@click.group()
def main() -> None:
    """Search, index and publish what the pipeline made."""


main.add_command(search.main, "search")
main.add_command(index.main, "index")
main.add_command(push_hub.main, "push-hub")


if __name__ == "__main__":
    main()
