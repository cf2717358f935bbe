"""Artifacts of a run, which Prefect shows; without Prefect there are none."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from tasks.orchestration import runs_in_prefect


def show_table(key: str, table: Sequence[Mapping[str, Any]], description: str) -> None:
    """Show a table, a mapping per row."""
    if runs_in_prefect():
        from prefect.artifacts import create_table_artifact

        create_table_artifact(key=key, table=[dict(row) for row in table], description=description)


def show_markdown(key: str, markdown: str) -> None:
    """Show a text."""
    if runs_in_prefect():
        from prefect.artifacts import create_markdown_artifact

        create_markdown_artifact(key=key, markdown=markdown)


class ShownProgress:
    """A progress bar.

    Args:
        title: its title.
        percent: its first value, 0 to 100.
    """

    def __init__(self, title: str, percent: float) -> None:
        self._id: UUID | None = None
        if runs_in_prefect():
            from prefect.artifacts import create_progress_artifact

            key = title.replace(" ", "-")
            self._id = create_progress_artifact(progress=percent, key=key, description=title)

    def update(self, percent: float, description: str) -> None:
        """Show another value."""
        if self._id is not None:
            from prefect.artifacts import update_progress_artifact

            update_progress_artifact(self._id, progress=percent, description=description)
