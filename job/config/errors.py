"""What ends a process: the errors that say why, and the exit statuses."""

from __future__ import annotations

import errno
import re

FAILED = 1
"""Exit status for a failure while running."""
BAD_INPUT = 2
"""Exit status for a mistake in configuration, data, weights or run directory."""
PREEMPTED = 75
"""Exit status for "stopped early, state saved, run me again" (EX_TEMPFAIL of sysexits.h)."""
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EBADF)
"""What a file system answers that knows no locks, as Lustre does when mounted without them: that ends nothing."""


class UserError(Exception):
    """Something the user can mend. Printed as ``error: <what>: <mend>``, exit status 2.

    One line, and nothing in it is obeyed wherever it is shown: files, keys and values are other people's.
    """

    def __init__(self, what: str, mend: str = "") -> None:
        # One text, so that it travels from rank to rank.
        super().__init__(printable(f"{what}: {mend}" if mend else what))


class FailedError(Exception):
    """The run cannot go on. The message says why, and is all that is shown. Exit status 1."""

    recurs = False
    """whether the same command would come to the same end, so that no scheduler need try"""


class DivergedError(FailedError):
    """A loss, weight or moment is not finite: the same steps would end the same way."""

    recurs = True


class StoppedEarlyError(Exception):
    """All ranks agreed to stop, and the state is saved. The message is the reason. Exit status 75."""


# Controls, marks that turn the direction of writing or are not seen, breaks of lines, and halves of characters: what
# Python makes of a name that is no UTF-8.
_NOT_PRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def printable(text: str, keep: str = "") -> str:
    """``text`` with all escaped that a terminal, a page or a reader would obey, but for the characters in ``keep``.

    Everything shown comes through here: names of classes, images and runs are other people's.
    """
    return _NOT_PRINTABLE.sub(lambda c: c[0] if c[0] in keep else c[0].encode("unicode_escape").decode(), text)


def first_line(error: BaseException) -> str:
    """What an error says, without its backtrace."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
