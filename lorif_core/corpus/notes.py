"""What a listing leaves out and what it has twice, in a few lines for `lorif check` and the summary of a build."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lorif_core.storage.filesystem import UnreadFile

_NAMED = 3
_GROUPS = 20
_OTHERS = "files of further kinds"


@dataclass(frozen=True, slots=True)
class Group:
    """Files that are not read for the same reason: the reason, their number, and the names of the first."""

    reason: str
    files: int
    first: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CorpusNotes:
    """Remarks on a corpus that are no errors.

    Attributes:
        unread: the files that are not read, the largest groups first.
        copies: number of files that have the content of another file, whose rows an index has several times.
        first_copies: names of the first files with equal content.
    """

    unread: tuple[Group, ...] = ()
    copies: int = 0
    first_copies: tuple[tuple[str, ...], ...] = ()

    def sentences(self) -> list[str]:
        """One sentence for each kind of file that is not read, and one for copies."""
        told = [
            f"not read: {group.reason}: {group.files:,} ({_listed(group.first, group.files)})"
            for group in self.unread
        ]
        if self.copies:
            groups = "; ".join(" = ".join(names[:_NAMED]) for names in self.first_copies)
            told.append(
                f"files with the content of another, whose rows count each time: {self.copies:,} ({groups})"
            )
        return told

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "CorpusNotes":
        """The inverse of `as_dict`."""
        unread = tuple(Group(**{**group, "first": tuple(group["first"])}) for group in raw["not_read"])
        return cls(unread, raw["copies"]["files"], tuple(map(tuple, raw["copies"]["first"])))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, the same after a round trip through JSON."""
        return {
            "not_read": [{**asdict(group), "first": list(group.first)} for group in self.unread],
            "copies": {"files": self.copies, "first": [list(names) for names in self.first_copies]},
        }


def make_notes(unread: Sequence[UnreadFile], copies: Sequence[Sequence[str]]) -> CorpusNotes:
    """Summarise files that are not read and groups of names of equal content."""
    by_reason: defaultdict[str, list[str]] = defaultdict(list)
    for file in unread:
        by_reason[file.reason].append(file.name)
    reasons = sorted(by_reason, key=lambda reason: (-len(by_reason[reason]), reason))
    for reason in reasons[_GROUPS:]:
        by_reason[_OTHERS] += by_reason[reason]
    reasons = [*reasons[:_GROUPS], *([_OTHERS] if reasons[_GROUPS:] else [])]
    groups = (Group(reason, len(by_reason[reason]), tuple(by_reason[reason][:_NAMED])) for reason in reasons)
    surplus = sum(len(names) - 1 for names in copies)
    return CorpusNotes(tuple(groups), surplus, tuple(tuple(names[:_NAMED]) for names in copies[:_NAMED]))


def _listed(names: Sequence[str], count: int) -> str:
    return ", ".join([*names, *(["..."] if count > len(names) else [])])
