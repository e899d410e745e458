"""What eecompile raises.

Every error says what was found, what was expected, and what to do next, in one
sentence. The tree::

    EecompileError
    |-- UsageError            a call's arguments do not fit together
    |   |-- ScheduleError     an exit schedule is malformed, or names a depth that is no exit
    |   `-- ConditionError    a condition is unknown, out of range, or wrongly shaped
    |-- RecipeError           an export recipe or a target is malformed
    |-- CheckpointError       a checkpoint is missing, or does not fit the network
    |-- TraceError            the network cannot be traced to ONNX
    |-- VerificationError     a graph's outputs differ from the network's
    |-- BundleError           a bundle or an engine set cannot be read
    |   |-- DigestError       a file is missing, truncated or altered
    |   |-- FormatError       the folder's format is not that of this eecompile
    |   `-- SignatureError    a folder is not signed by the key that was asked for
    |-- OutputExistsError     an output folder exists and holds something else
    |-- BusyError             another process is writing the same output
    |-- DiskFullError         there is no room for what is written
    |-- BackendError          a backend is missing, or refuses an engine
    |-- QueueFullError        a scheduler has too many samples waiting
    |-- DeadlineError         a request was not done in time
    |-- StoppedError          a scheduler is closing
    `-- NonFiniteError        an engine returned NaN or infinity
"""

from __future__ import annotations

from functools import partial

_LONG = 2000  # characters
_SAID = 400  # characters, of another library's sentence
_SAYS_LITTLE = 3  # words, such as "Attention():"


def one_line(message: object) -> str:
    """What another library says, in one line of at most 300 characters."""
    return " ".join(str(message).split())[:300]


def summary(error: BaseException) -> str:
    """What another library raised: the error's type, and the first lines that say anything."""
    said, kind = "", type(error).__name__
    for line in str(error).strip().splitlines():
        said = f"{said} {line.strip()}".strip()
        if len(said.split()) > _SAYS_LITTLE and not said.endswith(":"):
            break
    return f"{kind}: {said if len(said) <= _SAID else said[:_SAID] + ' ...'}" if said else kind


def printable(text: str) -> str:
    """Text whose lines a terminal shows as they are: what it would obey instead is written out.

    Names in files may hold escape sequences, and marks that turn the direction of writing.
    """
    return "".join(
        each if each.isprintable() or each == "\n" else each.encode("unicode_escape").decode()
        for each in text
    )


def shortened(text: str) -> str:
    """A text that can be shown: without its middle, if it repeats very much of what was given."""
    text = printable(text)
    return text if len(text) <= _LONG else f"{text[: _LONG // 2]} ... {text[-_LONG // 4 :]}"


class EecompileError(Exception):
    """The root of everything that eecompile raises on purpose.

    Attributes:
        found: what is there.
        expected: what should be there.
        remedy: what to do next, in the imperative.
    """

    def __init__(self, *, found: str, expected: str, remedy: str) -> None:
        super().__init__(found, expected, remedy)
        self.found = shortened(found)
        self.expected = shortened(expected)
        self.remedy = shortened(remedy)

    def __reduce__(self) -> tuple[object, ...]:
        told = {"found": self.found, "expected": self.expected, "remedy": self.remedy}
        return partial(type(self), **told), ()

    def __str__(self) -> str:
        return f"found {self.found}; expected {self.expected}; {self.remedy}."


class UsageError(EecompileError):
    """A call's arguments do not fit together."""


class ScheduleError(UsageError):
    """An exit schedule is malformed, or names a depth that is no exit."""


class ConditionError(UsageError):
    """A condition is unknown, out of range, or wrongly shaped."""


class RecipeError(EecompileError):
    """An export recipe or a target is malformed."""


class CheckpointError(EecompileError):
    """A checkpoint is missing, or does not fit the network."""


class TraceError(EecompileError):
    """The network cannot be traced to ONNX."""


class VerificationError(EecompileError):
    """A graph's outputs differ from the network's by more than the tolerance."""


class BundleError(EecompileError):
    """A bundle or an engine set cannot be read."""


class DigestError(BundleError):
    """A file of a bundle or an engine set is missing, truncated or altered."""


class FormatError(BundleError):
    """A folder's format is newer or older than this eecompile understands."""


class SignatureError(BundleError):
    """A folder is not signed by the key that was asked for."""


class OutputExistsError(EecompileError):
    """An output folder exists and holds something else."""


class BusyError(EecompileError):
    """Another process is writing the same output."""


class DiskFullError(EecompileError):
    """A disk is full, or a quota or a limit of file sizes is reached."""


class BackendError(EecompileError):
    """A backend is missing, or refuses an engine."""


class QueueFullError(EecompileError):
    """A scheduler has too many samples waiting."""


class DeadlineError(EecompileError):
    """A request was not done in time."""


class StoppedError(EecompileError):
    """A scheduler is closing."""


class NonFiniteError(EecompileError):
    """An engine returned NaN or infinity."""
