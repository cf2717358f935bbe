"""The command `lorif init`: a first CONFIG from what is in a folder."""

import os
import shlex
from pathlib import Path

from flows.commands.early_checks import require_file
from flows.commands.result import Result
from lorif_core.errors import UserError
from tasks.environment import fast_imports


def run_init(folder: str, model: str | None, corpus: str | None, out: str) -> Result:
    """`lorif init`: writes one new file, and starts nothing."""
    require_file(folder, "folder")
    if Path(out).exists():
        raise UserError(f"{out} exists already; name a new file with --out")
    if not os.access(Path(out).parent, os.W_OK):
        raise UserError(f"{out} cannot be written: its folder does not exist or is read-only; name another file")
    if corpus is not None and not any(character in corpus for character in "*?["):
        require_file(corpus, "corpus")
    with fast_imports():
        from lorif_core.lifecycle.first_look import look

    found = look(folder, model, corpus)
    text = found.config_text()
    with Path(out).open("x", encoding="utf-8") as file:
        file.write(text)
    data = {
        "config": out, "model": found.model, "corpus": found.corpus, "columns": found.columns,
        "roles": found.roles,
    }  # fmt: skip
    return Result(data, f"{text}\nwritten to {out}\nnext: lorif check -c {shlex.quote(out)}")
