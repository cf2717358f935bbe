"""Invariant: a mistake of the user leads to one sentence on stderr and exit code 2, and nothing is written."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from lorif_core.config import Config
from lorif_core.lifecycle.plan import make_plan
from lorif_core.tables.store import Store
from tests.integration.lorif import run


@pytest.fixture
def raw(tmp_path: Path, model_folder: Path, corpus_file: Path) -> dict[str, Any]:
    """A valid config; every case breaks one thing in it."""
    return {
        "index": str(tmp_path / "index"),
        "model": {"path": str(model_folder)},
        "corpus": {"uri": str(corpus_file), "id": "id", "max_length": 64},
        "projection": {"kind": "random", "factor": 4},
        "code": {"kind": "rank", "rank": 1, "dtype": "float16"},
        "curvature": {"kind": "woodbury"},
        "compute": {"workers": 1},
    }


Mistake = Callable[[dict[str, Any], Path], None]


def with_corpus(name: str, content: bytes, **keys: Any) -> Mistake:
    def change(raw: dict[str, Any], folder: Path) -> None:
        path = folder / name
        path.write_bytes(content)
        raw["corpus"].update(uri=str(path), **keys)

    return change


def with_keys(**sections: dict[str, Any]) -> Mistake:
    def change(raw: dict[str, Any], folder: Path) -> None:
        for section, keys in sections.items():
            raw.setdefault(section, {}).update(keys)

    return change


def parquet_without_text(raw: dict[str, Any], folder: Path) -> None:
    path = folder / "data.parquet"
    pq.write_table(pa.table({"body": ["x"], "name": ["y"]}), path)
    raw["corpus"].update(uri=str(path), id=None)


def pickled_model(raw: dict[str, Any], folder: Path) -> None:
    (folder / "pickled").mkdir()
    (folder / "pickled" / "config.json").write_text('{"model_type": "gpt2"}')
    (folder / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x02")
    raw["model"]["path"] = str(folder / "pickled")


def empty_folder(raw: dict[str, Any], folder: Path) -> None:
    (folder / "nothing").mkdir()
    raw["corpus"]["uri"] = str(folder / "nothing")


def only_other_files(raw: dict[str, Any], folder: Path) -> None:
    (folder / "others").mkdir()
    (folder / "others" / "a.csv").write_text("text\nx\n")
    (folder / "others" / "b.json").write_text('[{"text": "x"}]')
    raw["corpus"]["uri"] = str(folder / "others")


def two_columns_of_one_name(raw: dict[str, Any], folder: Path) -> None:
    path = folder / "data.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], ["text", "text"]), path)
    raw["corpus"].update(uri=str(path), id=None)


def in_the_metric_of_adam(state: Any = None, **keys: Any) -> Mistake:
    """A config with that metric, and a file of the optimiser's state."""

    def change(raw: dict[str, Any], folder: Path) -> None:
        raw.update(projection={}, curvature={"kind": "adam", **keys})
        if state is not None:
            import torch

            torch.save(state, folder / "optimizer.pt")
            raw["curvature"]["optimizer_state"] = str(folder / "optimizer.pt")

    return change


DUPLICATES = b'{"id": "a", "text": "one"}\n{"id": "b", "text": "two"}\n{"id": "a", "text": "three"}\n'
CASES: dict[str, tuple[Mistake, list[str]]] = {
    "misspelt key": (with_keys(projection={"facter": 4}), ["projection.facter", "projection.factor"]),
    "unknown section": (lambda raw, _: raw.update(modell={}), ["'modell'", "'model'"]),
    "missing key": (lambda raw, _: raw.pop("model"), ["'model'", "missing"]),
    "out of range": (with_keys(code={"rank": 0}), ["code.rank", "greater than or equal to 1"]),
    "wrong choice": (with_keys(curvature={"damping": "auto"}), ["curvature.damping", "retained"]),
    "budget below length": (with_keys(compute={"tokens_per_batch": 10}), ["tokens_per_batch", "max_length"]),
    "length above the model": (with_keys(corpus={"max_length": 100}), ["corpus.max_length", "64 positions"]),
    "no files": (empty_folder, ["nothing", ".jsonl", ".parquet"]),
    "only other files": (only_other_files, ["files that end in .csv: 1 (a.csv)", "not JSON lines", "1 (b.json)"]),
    "two columns of one name": (two_columns_of_one_name, ["data.parquet", "several columns named 'text'"]),
    "a key twice": (with_corpus("x.jsonl", b'{"text": "a", "text": "b"}\n', id=None), ["line 1", "'text' twice"]),
    "missing corpus": (with_keys(corpus={"uri": "/nowhere/at/all"}), ["/nowhere/at/all"]),
    "not a parquet file": (with_corpus("x.parquet", b'{"text": "a"}\n', id=None), ["x.parquet"]),
    "not gzip": (with_corpus("x.jsonl.gz", b'{"text": "a"}\n', id=None), ["x.jsonl.gz"]),
    "not json lines": (with_corpus("x.jsonl", gzip.compress(b"{}"), id=None), ["x.jsonl"]),
    "no text column": (parquet_without_text, ["'text'", "body, name"]),
    "empty corpus": (with_corpus("x.jsonl", b"", id=None), ["no rows"]),
    "duplicate ids": (with_corpus("x.jsonl", DUPLICATES), ["'a'", "row 0", "row 2"]),
    "no such layer": (with_keys(model={"layers": "q_proj"}), ["'q_proj'", "transformer.h.0.attn.c_attn"]),
    "bad regex": (with_keys(model={"layers": "("}), ["model.layers", "regular expression"]),
    "all layers excluded": (with_keys(model={"exclude": "."}), ["model.exclude = '.'", "c_attn"]),
    "whitening above the memory": (
        with_keys(projection={"kind": "random", "whiten": True, "factor": 1}, compute={"memory_gb": 1e-4}),
        ["the covariances of the whitening", "compute.memory_gb = 0.0001", "projection.factor to 2"],
    ),
    "curvature rank above the data": (with_keys(curvature={"rank": 1101}), ["curvature.rank = 1101", "1100"]),
    "missing model": (with_keys(model={"path": "./no-such-model"}), ["./no-such-model", "does not exist"]),
    "pickled model": (pickled_model, ["pickled", "allow_pickle"]),
    "no optimiser": (in_the_metric_of_adam(), ["curvature.kind adam", "no file optimizer.pt or", "_state to"]),
    "missing optimiser": (in_the_metric_of_adam(optimizer_state="/no/o.pt"), ["/no/o.pt does not exist"]),
    "an optimiser with other objects": (
        in_the_metric_of_adam({"state": {}, "param_groups": [Path("x")]}),
        ["optimizer.pt cannot be read as the state of an optimiser", "without other objects"],
    ),
    "the optimiser of another model": (
        in_the_metric_of_adam({"state": {}, "param_groups": [{"params": [0, 1, 2]}]}),
        ["in groups of 3", "those of the model are in groups of 28", "model.named_parameters()"],
    ),
    "negative gpus": (with_keys(compute={"gpus_per_worker": -1}), ["compute.gpus_per_worker"]),
    "more gpus than there are": (with_keys(compute={"gpus_per_worker": 2}), ["compute.gpus_per_worker", "0 GPUs"]),
    "curvature too large": (with_keys(compute={"memory_gb": 1e-6}), ["compute.memory_gb", "projection.factor"]),
    "chunked, rank above the layers": (
        with_keys(corpus={"chunk": True}, curvature={"rank": 9999}),
        ["curvature.rank = 9999"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_check_prints_one_sentence_exits_with_2_and_writes_nothing(
    case: str, raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, expected = CASES[case]
    change(raw, tmp_path)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(raw))
    code, out, err = run(capsys, "check", "-c", str(config), "--json")
    assert code == 2
    message = json.loads(out.splitlines()[-1])["error"]
    assert "Traceback" not in err and "\n" not in message
    for part in expected:
        assert part in message
    assert not (tmp_path / "index").exists()


def test_build_refuses_before_prefect_or_ray_start(
    raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(raw))
    code, _, err = run(capsys, "build", "-c", str(config), "corpus.text=body")
    assert code == 2 and "'body'" in err and "id, text" in err
    assert not (tmp_path / "index").exists()


def test_an_index_of_another_spec_is_refused_and_the_message_names_the_keys(
    built: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(built.model_dump(exclude_unset=True)))
    version = Store(built.index).rows.version()
    code, _, err = run(capsys, "build", "-c", str(config), "projection.seed=5", "code.dtype=float16")
    assert code == 2 and "projection.seed (0 there, 5 here)" in err and "code.dtype (float32 there" in err
    assert Store(built.index).rows.version() == version


def test_what_is_not_read_and_what_is_not_text_is_told_by_check_and_build(
    raw: dict[str, Any],
    tmp_path: Path,
    prefect_server: None,
    ray_session: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    corpus.mkdir()
    lines = "".join(json.dumps({"text": f"the cat sees the dog {n}"}) + "\n" for n in range(40))
    (corpus / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (corpus / "b.json.gz").write_bytes(gzip.compress(lines.replace("cat", "\\ud800", 1).encode(), mtime=0))
    (corpus / "c.csv").write_text("text")
    (corpus / "copy.jsonl.gz").write_bytes((corpus / "a.jsonl.gz").read_bytes())
    (corpus / "README.md").write_text("# Data")
    elsewhere.mkdir()
    (elsewhere / "d.jsonl").write_text(lines.replace("cat", "bird"))
    (corpus / "link").symlink_to(elsewhere)
    raw["corpus"] = {"uri": str(corpus), "max_length": 64}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(raw))
    expected = {
        "not_read": [
            {"reason": "companions of a dataset, which hold no rows", "files": 1, "first": ["README.md"]},
            {"reason": "files that end in .csv", "files": 1, "first": ["c.csv"]},
        ],
        "copies": {"files": 1, "first": [["a.jsonl.gz", "copy.jsonl.gz"]]},
    }
    code, out, _ = run(capsys, "check", "-c", str(config), "--json")
    checked = json.loads(out.splitlines()[-1])
    assert code == 0 and checked["records"] == 160 and checked["corpus"] == expected
    told = ("not read: files that end in .csv: 1 (c.csv)", "README.md", "1 (a.jsonl.gz = copy.jsonl.gz)")
    assert all(part in checked["checks"]["corpus"] for part in told)
    code, out, _ = run(capsys, "build", "-c", str(config))
    assert code == 0 and all(part in out for part in told)
    assert Store(raw["index"]).latest().changes["corpus"] == expected
    code, out, _ = run(capsys, "build", "-c", str(config), "--json")
    built = json.loads(out.splitlines()[-1])
    assert built["corpus"] == expected and built["rows"] == 159 and built["generation"] == 1
    ((skipped),) = built["skipped"]
    assert skipped["example_id"] == "b.json.gz#0" and "surrogate pair" in skipped["reason"]


QUERY_CASES = {
    "neither text nor pair": ('{"body": "x"}\n', ["text", "prompt", "body"]),
    "empty file": ("", ["q.jsonl"]),
    "not json": ("what?\n", ["q.jsonl"]),
    "duplicate ids": ('{"id": 1, "text": "a b"}\n{"id": 1, "text": "c d"}\n', ["1"]),
}


@pytest.mark.parametrize("case", QUERY_CASES)
def test_a_bad_queries_file_is_refused(
    case: str, built: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, expected = QUERY_CASES[case]
    (tmp_path / "q.jsonl").write_text(content)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(built.model_dump(exclude_unset=True)))
    arguments = ["attribute", "-c", str(tmp_path / "config.yaml"), "--queries", str(tmp_path / "q.jsonl")]
    code, _, err = run(capsys, *arguments, "--out", str(tmp_path / "out"))
    assert code == 2 and all(part in err for part in expected)
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_is_not_empty_is_refused(
    built: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(built.model_dump(exclude_unset=True)))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    (tmp_path / "q.jsonl").write_text('{"text": "the cat"}\n')
    arguments = ["attribute", "-c", str(tmp_path / "config.yaml"), "--queries", str(tmp_path / "q.jsonl")]
    code, _, err = run(capsys, *arguments, "--out", str(tmp_path / "out"))
    assert code == 2 and "not empty" in err
    code, _, err = run(capsys, "demo", "--out", str(tmp_path / "out"))
    assert code == 2 and "not empty" in err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "arguments",
    [["query", "/no/index", "--text", "x"], ["status", "/no/index"], ["build"], ["nonsense"],
     ["query", "/no/index", "--text", "x", "--top-k", "0"], ["build", "-c", "/no/config.yaml"], ["update"],
     ["update", "-c", "/no/config.yaml"], ["rollback", "/no/index", "1"], ["rollback", "/no/index", "last"],
     ["remove", "/no/index"], ["remove", "/no/index", "--where", "row < 5"], ["gc", "/no/index", "--apply"],
     ["remove", "/no/index", "--where", "row < 5", "--ids", "x"], ["gc", "/no/index", "--keep", "0"]],
    ids=" ".join,
)  # fmt: skip
def test_command_line_mistakes(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 2 and len(err.strip().splitlines()) == 1 and err.startswith("lorif: error: ")
    assert not Path("/no").exists()


def test_query_and_status_answer(built: Config, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "query", built.index, "--text", "the cat", "--top-k", "2", "--json")
    answer = json.loads(out.splitlines()[-1])
    assert code == 0 and [hit["rank"] for hit in answer["proponents"]] == [1, 2]
    code, out, _ = run(capsys, "query", built.index, "--text", "the ", "--completion", "dog")
    assert code == 0 and "\nproponents\n" in out
    code, out, _ = run(capsys, "status", built.index, "--json")
    (row,) = json.loads(out.splitlines()[-1])["generations"]
    layout = make_plan(built).layout
    assert code == 0 and row["rows"] == 1099
    assert row["bytes_per_example"] == pytest.approx(layout.bytes_per_example, rel=0.03)


def test_another_checkpoint_is_refused_by_fingerprint(
    built: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.models import gpt2
    from tests.tiny_tokenizer import VOCAB, byte_tokenizer

    gpt2(seed=1, vocab_size=VOCAB).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    code, _, err = run(capsys, "query", built.index, "--text", "the cat", "--model", str(tmp_path))
    assert code == 2 and "fingerprint" in err and Store(built.index).latest().checkpoint in err
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(built.model_dump(exclude_unset=True)))
    (tmp_path / "q.jsonl").write_text('{"text": "the cat"}\n')
    arguments = ["attribute", "-c", str(tmp_path / "config.yaml"), f"model.path={tmp_path}"]
    code, _, err = run(capsys, *arguments, "--queries", str(tmp_path / "q.jsonl"), "--out", str(tmp_path / "out"))
    assert code == 2 and "fingerprint" in err and not (tmp_path / "out").exists()


def test_overrides_may_stand_anywhere(
    raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(raw))
    arguments = ["check", "corpus.id=null", "-c", str(config), "--json", "projection.factor=0"]
    code, _, err = run(capsys, *arguments)
    assert code == 2 and "projection.factor" in err
