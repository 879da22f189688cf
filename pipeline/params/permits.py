"""What a person may allow a parameter file beyond what any such file may do.

A file from somebody else could have texts and keys sent to a place of its choice. So a key is read only from a variable
with the name of an API key, and sent in clear to no other machine, unless whoever runs the command says so there.
"""

import re
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from pipeline.base import LeafError
from pipeline.params.sections import ApiParams

_NAME_OF_A_KEY = re.compile(r"(?i)([A-Z0-9]+_)*API_?KEY(_[A-Z0-9]+)*")


@dataclass(frozen=True)
class Permits:
    """What the command line allows (`--key-env`, `--plain-http`)."""

    key_env: str | None = None
    """A variable that `teacher.api.key_env` may name although its name is not that of an API key."""
    plain_http: str | None = None
    """A host to which `teacher.api.base_url` may lead by http although it is another machine."""

    def check(self, api: ApiParams) -> None:
        """Refuse what neither every parameter file may do nor this object allows.

        Raises:
            LeafError: says which option allows it.
        """
        if not _NAME_OF_A_KEY.fullmatch(api.key_env) and api.key_env != self.key_env:
            raise LeafError(
                f"teacher.api.key_env: {api.key_env} is not the name of an API key (OPENAI_API_KEY, MY_API_KEY), and "
                f"its content is not sent: if it shall be, add `--key-env {api.key_env}`, or set "
                f"LEAF_KEY_ENV={api.key_env}"
            )
        url = urlsplit(api.base_url)
        host = url.hostname or ""
        if url.scheme != "https" and not is_this_machine(host) and host != self.plain_http:
            raise LeafError(
                f"teacher.api.base_url: http:// sends texts and key in clear to {host}: use https://; or, if the way "
                f"there is safe, add `--plain-http {host}`, or set LEAF_PLAIN_HTTP={host}"
            )


def is_this_machine(host: str) -> bool:
    """Whether a host's name or address is that of the machine itself."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
