"""What can go wrong, as sentences: every error says what was found, what was wanted, and what to do next.

HotfixError
├── RecipeError          the recipe, or a picture it names, cannot be used
│   └── ForgetConflict   the base also draws the forget picture, perhaps rightly, for another caption
├── UnknownFamily        a pipeline class that no module here knows how to denoise with
├── PatchFormatError     not a patch: truncated, foreign, pickled, or with parts that a patch may not have
│   ├── UnsupportedSchema    written by a newer hotfix
│   └── DigestMismatch       the tensors are not the ones the manifest speaks of
├── SignatureError       not signed, not by whom it must be, or a key that cannot be used
├── BaseMismatch         a patch for other weights
├── StackError           patches that cannot be on together, or are not there
├── LedgerError          a record that is not as it was written, or is not there
├── HubError             the Hub has it not, does not allow it, or cannot be reached
├── ServerError          a running server does not answer, or refused
├── HostError            the host did something that would put a patch out of action
└── SaveError            the file could not be written; nothing half-written is left
"""

from collections.abc import Sequence


class HotfixError(Exception):
    """Root of the tree. `str(error)` is one sentence; `error.hint` is what to type or change next."""

    def __init__(self, found: str, *, wanted: str = "", hint: str) -> None:
        super().__init__(f"{found}; wanted {wanted}" if wanted else found)
        self.found, self.wanted, self.hint = found, wanted, hint


class RecipeError(HotfixError):
    """The recipe, or a picture it names, cannot be used."""


class ForgetConflict(RecipeError):
    """The base also draws the forget picture for another caption."""


class UnknownFamily(HotfixError):
    """A pipeline class that hotfix cannot denoise with."""


class PatchFormatError(HotfixError):
    """The file is not a patch."""


class UnsupportedSchema(PatchFormatError):
    """The manifest was written by a newer hotfix."""


class DigestMismatch(PatchFormatError):
    """The tensors are not the ones that the manifest speaks of."""


class SignatureError(HotfixError):
    """A signature is missing, or is not one that counts."""


class BaseMismatch(HotfixError):
    """The patch was made for other weights."""


class StackError(HotfixError):
    """Patches that cannot be on together, or are not there."""


class LedgerError(HotfixError):
    """The record of what was done is not as it was written."""


class HubError(HotfixError):
    """The Hub has it not, does not allow it, or cannot be reached."""


class HostError(HotfixError):
    """The host did something that would put a patch out of action."""


class ServerError(HotfixError):
    """A running server does not answer, or refused what it was asked."""


class SaveError(HotfixError):
    """A file could not be written."""


def printable(text: str) -> str:
    """Words of others on one line, without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def joined(problems: Sequence[HotfixError], kind: type[HotfixError]) -> HotfixError:
    """Several problems as one error: every sentence, and every hint once."""
    hints = dict.fromkeys(problem.hint for problem in problems if problem.hint)
    return kind("; ".join(map(str, problems)), hint="; ".join(hints))
