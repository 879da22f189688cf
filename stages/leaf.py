"""`leaf`: what people do with the results of the stages."""

import click

from stages import index, push_hub, search, store


@click.group()
def main() -> None:
    """Search, index and publish what the pipeline made; look into, check and share embedding stores."""


main.add_command(search.main, "search")
main.add_command(index.main, "index")
main.add_command(push_hub.main, "push-hub")
main.add_command(store.main, "store")


if __name__ == "__main__":
    main()
