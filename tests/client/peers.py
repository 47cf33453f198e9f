"""coturn's server, as the tests of the clients start it."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

from pktstun.client import QueryError, query
from tests.lab import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from pktstun.stun import TransportAddress
    from tests.lab import Namespace


@contextlib.contextmanager
def turnserver(
    namespace: Namespace, directory: Path, options: list[str], targets: Iterable[TransportAddress]
) -> Iterator[None]:
    """Run coturn until the end of the block; it begins when all targets answer over UDP.

    Args:
        namespace: where it runs.
        directory: for its files.
        options: its own words.
        targets: its addresses and ports; where it wants credentials, an error is an answer.
    """
    files = ["--log-file=stdout", f"--pidfile={directory}/pid", f"--userdb={directory}/db"]
    command = ["turnserver", "-n", "--no-dtls", "--no-cli", *files, *options]
    with (directory / "coturn.log").open("w") as log:
        process = namespace.popen(command, stdout=log)
        with process:
            try:
                for target in targets:
                    is_up = partial(_answers, namespace, target)
                    wait_until(is_up, f"coturn answers at {target}", 20)
                yield
            finally:
                process.kill()


def _answers(namespace: Namespace, target: TransportAddress) -> bool:
    try:
        with namespace.enter():
            query(target, timeout=0.2, rto=0.1)
    except QueryError as error:
        return "401" in str(error)
    return True
