"""The command `leaf`, with the packages that were installed with it, whatever lies beside the user's own files.

The library's packages are called `pipeline` and `stages`, and so are directories in many repositories. Where one of
those is on PYTHONPATH it would be imported in their place; so the directory of this file comes first.
"""

import sys
from pathlib import Path


def main() -> None:
    """Run `leaf` with the arguments of the process."""
    sys.path.insert(0, str(Path(__file__).absolute().parent))
    from stages.leaf import main as leaf

    leaf()


if __name__ == "__main__":
    main()
