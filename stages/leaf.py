"""The command `leaf`: search, indexes, the model hub and embedding stores, after the stages have run."""

import click

from stages import index, push_hub, search, soup, store


@click.group()
def main() -> None:
    """Search, index and publish what the pipeline made; inspect, check and share embedding stores."""


main.add_command(search.main, "search")
main.add_command(index.main, "index")
main.add_command(push_hub.main, "push-hub")
main.add_command(soup.main, "soup")
main.add_command(store.main, "store")


if __name__ == "__main__":
    main()
