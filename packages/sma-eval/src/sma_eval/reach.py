"""Whether anything answers at an address, asked before a library would try for minutes."""

import socket

from sma_eval.errors import StudyError

_CONNECT_SECONDS = 10.0


def require_answer(address: str, host: str, port: int | str) -> None:
    """Raise StudyError, in the words of the option ``--address``, unless something listens."""
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise StudyError(f"--address {address}: nothing answers there: {error}") from error
