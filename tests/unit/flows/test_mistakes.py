"""Invariant: a mistake in the words of a command is answered at once, in a sentence that names what was meant."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.lorif import LORIF, run

CONFIG = "index: i\nmodel: {path: m}\ncorpus: {uri: c}\n"
MISTAKES: dict[str, tuple[list[str], str]] = {
    "a misspelt command": (["biuld"], "unknown command 'biuld' (did you mean build?)"),
    "a misspelt option": (["gc", "FOLDER", "--kep", "3"], "unknown option --kep (did you mean --keep?)"),
    "a misspelt option that is required": (
        ["attribute", "-c", "GOOD", "--qeuries", "q", "--out", "o"],
        "unknown option --qeuries (did you mean --queries?)",
    ),
    "two misspelt options": (
        ["serve", "FOLDER", "--prt", "1", "--hots", "x"],
        "--prt (did you mean --port?); unknown",
    ),
    "a misspelt choice": (
        ["query", "FOLDER", "x", "--normalise", "cosin"],
        "'cosin' is not a choice (did you mean cosine?)",
    ),
    "no choice": (["evaluate", "x", "-c", "GOOD", "--out", "o"], "the choices are lds, recall, tail-patch"),
    "no number": (["query", "FOLDER", "x", "--top-k", "ten"], "'ten' is not a whole number"),
    "a number out of range": (["gc", "FOLDER", "--keep", "0"], "0 is not a positive number"),
    "a share out of range": (
        ["select", "FOLDER", "--self-influence", "--fraction", "2", "--out", "o"],
        "the fraction is 2",
    ),
    "no config": (["build"], "give a CONFIG (-c FILE), or INDEX with --model and --corpus"),
    "a config without -c": (["check", "GOOD"], "name the config with -c: lorif check -c GOOD"),
    "half of what replaces a config": (["build", "i", "--model", "m"], "--corpus must be given, too"),
    "a missing config": (["build", "-c", "no.yaml"], "the config file no.yaml cannot be read"),
    "an override without =": (
        ["build", "-c", "GOOD", "model"],
        "the override 'model' must have the form key.sub=value",
    ),
    "three misspelt keys": (
        ["check", "-c", "GOOD", "corpus.txet=a", "corpus.max_lenght=3", "modell.path=x"],
        "3 mistakes: (1) unknown key 'corpus.txet'; did you mean 'corpus.text'? "
        "(2) unknown key 'corpus.max_lenght'; did you mean 'corpus.max_length'? "
        "(3) unknown key 'modell'; did you mean 'model'?",
    ),
    "a misspelt key and a wrong value": (
        ["check", "-c", "GOOD", "preset=best", "code.rnk=3"],
        "(1) unknown key 'code.rnk'; did you mean 'code.rank'? (2) preset",
    ),
    "a missing corpus": (
        ["build", "i", "--model", "m", "--corpus", "nowhere"],
        "the corpus nowhere cannot be read: it does not exist",
    ),
    "a missing index": (["query", "nowhere", "x"], "the index nowhere does not exist; run lorif build first"),
    "a file for an index": (["status", "GOOD"], "GOOD is a file; name the folder or URI of an index"),
    "a missing queries file": (
        ["attribute", "-c", "GOOD", "--queries", "q.jsonl", "--out", "o"],
        "the queries file q.jsonl cannot be read: it does not exist",
    ),
    "no text": (["query", "FOLDER"], 'give a text: lorif query INDEX "the text"'),
    "a text without quotes": (
        ["query", "FOLDER", "what", "is", "it"],
        "there are 3 texts, 'what' and 'is'; put one",
    ),
    "two things that exclude each other": (
        ["remove", "FOLDER", "--ids", "GOOD", "--where", "row < 5"],
        "not allowed with",
    ),
    "an output that exists": (
        ["select", "FOLDER", "--self-influence", "--fraction", "1", "--out", "GOOD"],
        "exists already",
    ),
    "a folder for init that does not exist": (
        ["init", "FOLDER", "--out", "missing/config.yaml"],
        "missing/config.yaml cannot be written: its folder does not exist",
    ),
    "a file for the output of the demo": (["demo", "--out", "GOOD"], "GOOD is a file; name a new or empty folder"),
    "a file that init would overwrite": (
        ["init", "FOLDER", "--out", "GOOD"],
        "GOOD exists already; name a new file",
    ),
    "a section that the command does not take": (
        ["status", "FOLDER", "storge.region=x"],
        "storge cannot be set here; did you mean 'storage'?",
    ),
}
HEAVY = ("torch", "transformers", "ray", "prefect", "lance", "pyarrow", "numpy")
LATE = ("a section that the command does not take",)
"""Mistakes that a command finds after it has imported what it needs."""


@pytest.fixture
def words_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    (tmp_path / "GOOD").write_text(CONFIG)
    (tmp_path / "GOOD.yaml").write_text(CONFIG)
    (tmp_path / "FOLDER").mkdir()
    monkeypatch.chdir(tmp_path)
    return lambda case: ["GOOD.yaml" if word == "GOOD" else word for word in MISTAKES[case][0]]


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_gets_one_sentence(
    case: str, words_of: Callable[[str], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *words_of(case))
    assert code == 2 and out == ""
    assert len(err.splitlines()) == 1 and err.startswith("lorif: error: ")
    assert MISTAKES[case][1].replace("GOOD", "GOOD.yaml") in err


def test_no_mistake_waits_for_a_large_import(words_of: Callable[[str], list[str]]) -> None:
    commands = [words_of(case) for case in MISTAKES if case not in LATE]
    script = (
        "import json, sys\nfrom flows.cli import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    try:\n        main(words)\n"
        "    except SystemExit as stopped:\n        assert stopped.code == 2, words\n"
        f"    assert not [name for name in {HEAVY!r} if name in sys.modules], words\n"
    )
    subprocess.run([sys.executable, "-c", script, json.dumps(commands)], check=True, capture_output=True)


@pytest.mark.parametrize(
    "words", [["--version"], ["build", "-c", "no.yaml"], ["query", "nowhere", "x"]], ids=" ".join
)
def test_an_answer_takes_less_than_half_a_second_of_cpu(words: list[str], tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*LORIF, *words], cwd=tmp_path, check=False, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
