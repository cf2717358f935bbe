"""Invariant: a credential in CONFIG is refused, and no message repeats it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from tests.integration.lorif import run
from tests.integration.planted import CONFIG_SECRET, secrets_in
from tests.integration.s3 import BUCKET, s3_config

Mistake = Callable[[dict[str, Any]], None]


def keys(**sections: Any) -> Mistake:
    def change(raw: dict[str, Any]) -> None:
        for name, section in sections.items():
            raw[name] = {**raw.get(name, {}), **section} if isinstance(section, dict) else section

    return change


SIGNED = f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature={CONFIG_SECRET}"
MISTAKES: dict[str, Mistake] = {
    "a key of its own": keys(storage={"secret_key": CONFIG_SECRET}),
    "a key at the top": keys(aws_secret_access_key=CONFIG_SECRET),
    "a section of text": keys(storage=CONFIG_SECRET),
    "a value of another kind": keys(storage={"allow_http": CONFIG_SECRET}),
    "below the profile": keys(storage={"profile": {"aws_secret_access_key": CONFIG_SECRET}}),
    "below the index": lambda raw: raw.update(index={"uri": "s3://b/x", "secret": CONFIG_SECRET}),
    "endpoint": keys(storage={"endpoint": f"https://key:{CONFIG_SECRET}@host"}),
    "endpoint, quoted": keys(storage={"endpoint": f"https://key:{quote(CONFIG_SECRET, safe='')}@host"}),
    "endpoint without scheme": keys(storage={"endpoint": f"key:{CONFIG_SECRET}@host"}),
    "endpoint with a query": keys(storage={"endpoint": f"https://host/?{SIGNED}"}),
    "endpoint that nothing needs": keys(
        index="./index",
        corpus={"uri": "./corpus"},
        model={"path": "./model"},
        storage={"endpoint": f"https://key:{CONFIG_SECRET}@host"},
    ),
    "index": keys(index=f"s3://key:{CONFIG_SECRET}@{BUCKET}/index"),
    "index, by its key alone": keys(index=f"s3://{quote(CONFIG_SECRET, safe='')}@{BUCKET}/index"),
    "corpus": keys(corpus={"uri": f"s3://key:{CONFIG_SECRET}@{BUCKET}/corpus"}),
    "model": keys(model={"path": f"s3://key:{CONFIG_SECRET}@{BUCKET}/model"}),
    "presigned corpus": keys(corpus={"uri": f"https://{BUCKET}.s3.amazonaws.com/corpus.jsonl?{SIGNED}"}),
    "presigned corpus, as s3": keys(corpus={"uri": f"s3://{BUCKET}/corpus.jsonl?{SIGNED}"}),
    "presigned model": keys(model={"path": f"https://{BUCKET}.s3.amazonaws.com/model?{SIGNED}"}),
    "presigned in the old way": keys(index=f"s3://{BUCKET}/x?AWSAccessKeyId=k&Signature={CONFIG_SECRET}"),
}
WORDS = {
    "override": f"storage.secret_key={CONFIG_SECRET}",
    "override of the endpoint": f"storage.endpoint=https://key:{CONFIG_SECRET}@host",
    "override that is not YAML": f"storage.secret_key=[{CONFIG_SECRET}",
    "override below a value": f"index.secret_key={CONFIG_SECRET}",
    "override without a key": f"={CONFIG_SECRET}",
    "an unknown option": f"--secret-key={CONFIG_SECRET}",
}
TEXTS = {
    "an open quote": f"storage:\n  secret_key: '{CONFIG_SECRET}\n",
    "two colons": f"storage:\n  secret_key: {CONFIG_SECRET}: x\n",
    "a tab": f"storage:\n\tsecret_key: {CONFIG_SECRET}\n",
}


def check_refused(capsys: pytest.CaptureFixture[str], path: Path, *words: str) -> None:
    code, out, err = run(capsys, "check", "-c", str(path), "--json", *words)
    assert code == 2 and err.startswith("lorif: error: ") and len(err) > 40
    assert secrets_in(out + err) == []


@pytest.fixture
def raw(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A config with an endpoint where nothing listens: it must be refused before any request to the store."""
    monkeypatch.setenv("LORIF_DEBUG", "1")
    return s3_config("http://127.0.0.1:9", "refused", "corpus").model_dump(exclude_unset=True)


@pytest.mark.parametrize("case", MISTAKES)
def test_a_secret_in_the_config_is_refused_and_not_repeated(
    case: str, raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    MISTAKES[case](raw)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    check_refused(capsys, tmp_path / "config.yaml")


@pytest.mark.parametrize("case", WORDS)
def test_a_secret_on_the_command_line_is_not_repeated(
    case: str, raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    check_refused(capsys, tmp_path / "config.yaml", WORDS[case])


@pytest.mark.parametrize("case", TEXTS)
def test_an_error_about_an_unparsable_config_does_not_repeat_it(
    case: str, raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(f"index: ./index\n{TEXTS[case]}")
    check_refused(capsys, tmp_path / "config.yaml")


def test_an_endpoint_in_the_environment_is_refused_too(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://key:{CONFIG_SECRET}@host")
    del raw["storage"]["endpoint"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    check_refused(capsys, tmp_path / "config.yaml")
