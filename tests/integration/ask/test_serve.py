"""Invariant: a server answers like `lorif query`, loses no question, and reports errors as one JSON sentence."""

import asyncio
import json
import re
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks

import lorif_core as lc
from flows.serve import limits
from flows.serve.app import create_app
from flows.serve.errors import failure_text
from flows.serve.limits import BODY_BYTES, Access
from flows.serve.live_index import LiveIndex
from flows.serve.question import TEXT_MAX
from flows.serve.request_queue import MAX_WAITING, RequestQueue
from lorif_core.config import Config
from lorif_core.errors import LorifError
from lorif_core.tables.filters import MAX_CHARACTERS
from lorif_core.tables.store import Store
from tests.conftest import WORDS
from tests.integration.lorif import run
from tests.integration.serving import RunningServer, running_server
from tests.patience import patience

TEXT = "the cat sees it"
SECRET = "0123456789abcdef-secret"
CHECKS = [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]


@pytest.fixture(scope="module")
def index(built: Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A copy of an index, so that this module can publish generations."""
    copy = tmp_path_factory.mktemp("served") / "index"
    shutil.copytree(built.index, copy)
    return str(copy)


@pytest.fixture(scope="module")
def server(index: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(index, tmp_path_factory.mktemp("log") / "stderr") as started:
        yield started


def ids_of(hits: list[dict[str, Any]]) -> list[str]:
    return [hit["example_id"] for hit in hits]


def publish_again(index: str, **changes: Any) -> int:
    """Publish the newest generation again under the next number, with some fields changed; returns the number."""
    store = Store(index)
    newest = store.latest()
    return store.publish(replace(newest, generation=newest.generation + 1, **changes)).generation


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ({"text": TEXT, "explain": True, "totals": "uri"}, ["--text", TEXT, "--explain", "--totals", "uri"]),
        ({"prompt": "the dog ", "completion": "runs"}, ["--text", "the dog ", "--completion", "runs"]),
        (
            {"text": TEXT, "where": "tokens > 20", "normalise": "cosine", "top_k": 3},
            ["--text", TEXT, "--where", "tokens > 20", "--normalise", "cosine", "--top-k", "3"],
        ),
    ],
)
def test_answers_equal_those_of_the_query_command(
    server: RunningServer,
    index: str,
    question: dict[str, Any],
    options: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, out, _ = run(capsys, "query", index, *options, "--json")
    expected, answer = json.loads(out.splitlines()[-1]), server.ask(question).json()
    assert answer["generation"] == expected["generation"]
    for hit, other in zip(
        *([*ranking["proponents"], *ranking["opponents"]] for ranking in (answer, expected)), strict=True
    ):
        for key in ("rank", "example_id", "text", "uri", "row"):
            assert hit[key] == other[key]
        assert hit["score"] == pytest.approx(other["score"], rel=1e-4)
        if "tokens" in other:
            tokens, values = zip(*other["tokens"], strict=True)
            assert answer["tokens"] == list(tokens)
            assert hit["tokens"] == pytest.approx(values, rel=1e-3, abs=1e-6)
    if "totals" in expected:
        assert answer["totals"][0]["rows"] == expected["totals"][0]["rows"] == 1099


@pytest.mark.parametrize("normalisation", ["none", "cosine", "self"])
def test_both_spellings_of_normalise_give_the_same_answer(server: RunningServer, normalisation: str) -> None:
    answers = [server.ask({"text": TEXT, name: normalisation}).json() for name in ("normalise", "normalize")]
    assert [answer.pop("seconds") >= 0 for answer in answers] == [True, True]
    assert answers[0] == answers[1] and answers[0]["proponents"]


def test_the_openapi_document_describes_every_field_and_both_spellings(server: RunningServer) -> None:
    schemas = server.get("openapi.json").json()["components"]["schemas"]
    fields = {
        (name, field): value.get("description", "")
        for name, schema in schemas.items()
        for field, value in schema["properties"].items()
    }
    assert not [field for field, description in fields.items() if not description.endswith(".")]
    question = schemas["Question"]["properties"]
    assert question["normalize"]["enum"] == question["normalise"]["enum"] == ["none", "cosine", "self"]


def test_groups_contrasts_and_tokens_can_be_asked(server: RunningServer, index: str) -> None:
    for query in (
        {"group": [TEXT, {"prompt": "the dog ", "completion": "runs"}]},
        {"contrast": [TEXT, "a bird"]},
        {"tokens": [5, 6, 7, 8], "labels": [-100, 6, -100, 8]},
    ):
        (expected,) = lc.open_index(index).top_k([query], 4)
        answer = server.ask({**query, "top_k": 4, "explain": True}).json()
        assert ids_of(answer["opponents"]) == [hit.example_id for hit in expected.opponents]
        assert (answer["tokens"] is None) == ("group" in query)
        assert (answer["unexplained"] == "it consists of several queries") == ("group" in query)


def test_pages_load_no_resources_and_run_only_their_own_script(server: RunningServer) -> None:
    for path in ("", "docs"):
        page = server.get(path)
        policy = page.headers["content-security-policy"]
        nonces = set(re.findall(r'nonce="([^"]+)"', page.text))
        assert "default-src 'none'" in policy
        assert [f"script-src 'nonce-{nonce}'" in policy for nonce in nonces] == [True]
        assert not re.search(r'(?:src|href)="(?:https?:)?//', page.text)
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["referrer-policy"] == "no-referrer"
    fragment = server.ask({"text": "<script>alert(1)</script>"}, Accept="text/html")
    assert fragment.headers["content-type"].startswith("text/html")
    assert fragment.headers["x-lorif-generation"] == "1"
    assert "<script>" not in fragment.text and "&lt;" in fragment.text
    facts = server.get("index").json()
    assert facts["rows"] == facts["memory"]["resident_rows"] == 1099 and "tokens" in facts["columns"]


@pytest.mark.parametrize(
    ("question", "status", "code"),
    [
        (b'{"text": "the', 400, "no_json"),
        (b"[" * 100_000, 400, "no_json"),
        (b'{"text": "a", "top_k": ' + b"9" * 5000 + b"}", 400, "no_json"),
        (b"\xff\xfe", 400, "no_json"),
        (b'{"text": "half a pair: \\ud800"}', 422, "invalid"),
        ([], 422, "invalid"),
        ({}, 422, "invalid"),
        ({"text": 3}, 422, "invalid"),
        ({"text": TEXT, "tokens": [1, 2]}, 422, "invalid"),
        ({"prompt": TEXT}, 422, "invalid"),
        ({"text": TEXT, "unknown": 1}, 422, "invalid"),
        ({"text": TEXT, "top_k": 0}, 422, "invalid"),
        ({"text": TEXT, "top_k": True}, 422, "invalid"),
        ({"text": TEXT, "normalise": "max"}, 422, "invalid"),
        ({"text": TEXT, "normalize": "max"}, 422, "invalid"),
        ({"text": TEXT, "normalise": "self", "normalize": "self"}, 422, "invalid"),
        ({"text": "x" * (TEXT_MAX + 1)}, 422, "invalid"),
        ({"text": "x" * BODY_BYTES}, 413, "too_large"),
        ({"text": ""}, 422, "unanswerable"),
        ({"tokens": [1, 10**6]}, 422, "unanswerable"),
        ({"text": TEXT, "where": "no such column"}, 422, "unanswerable"),
        ({"text": TEXT, "where": "tokens > 1; DROP TABLE factors"}, 422, "unanswerable"),
        ({"text": TEXT, "where": "tokens > 10000"}, 422, "unanswerable"),
        ({"text": TEXT, "where": "length(repeat(text, 1000000)) > 1"}, 422, "unanswerable"),
        ({"text": TEXT, "where": "length(uri" + " || uri" * 40 + ") > 1"}, 422, "unanswerable"),
        ({"text": TEXT, "where": "$$a$$ = uri"}, 422, "unanswerable"),
        ({"text": TEXT, "where": "tokens / 0 = 1"}, 422, "unanswerable"),
        ({"text": TEXT, "where": "cast(text as int) > 0"}, 422, "unanswerable"),
        ({"text": TEXT, "where": "uri.x = 1"}, 422, "unanswerable"),
        ({"text": TEXT, "where": "\ud83d\ude00 = \u0000"}, 422, "unanswerable"),
        ({"text": TEXT, "totals": "no such column"}, 422, "unanswerable"),
        ({"text": TEXT, "explain": True, "normalise": "self"}, 422, "unanswerable"),
    ],
)
def test_a_question_without_an_answer_gets_one_sentence(
    server: RunningServer, question: Any, status: int, code: str
) -> None:
    reply = server.ask(question)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (status, code), error
    assert error["message"] and "\n" not in error["message"] and "Traceback" not in error["message"]
    assert reply.headers["x-lorif-generation"] == "1"


@pytest.mark.parametrize("mebibytes", [5, 50])
def test_a_client_that_sends_too_much_gets_the_answer_and_no_reset(server: RunningServer, mebibytes: int) -> None:
    """The server reads what it refuses; a socket that is closed with unread bytes would lose the answer."""
    request = server.start_request({"text": "x" * (mebibytes * BODY_BYTES)})
    time.sleep(0.5)  # by now the server has refused the announced length
    request.send_body()
    assert request.status() == 413


def test_a_client_that_waits_to_be_told_to_send_is_refused_before_it_sends(server: RunningServer) -> None:
    assert server.start_request({"text": "x" * (5 * BODY_BYTES)}, Expect="100-continue").status() == 413
    small = server.start_request({"text": TEXT}, Expect="100-continue")
    assert small.status() == 100


def test_the_server_survives_the_longest_conditions(server: RunningServer) -> None:
    """Chains of a thousand operators would end the process, if they reached Lance."""
    for start, link, end in (
        ("tokens>1", "+1", ""),
        ("text", "||'a'", " > 'a'"),
        ("tokens", "::int", " > 1"),
        ("tokens", " IS NULL", ""),
        ("tokens", "[1]", " > 1"),
        ("tokens>1", " OR tokens>1", ""),
        ("", "(", "tokens>1"),
    ):
        condition = start + link * ((MAX_CHARACTERS - len(start) - len(end)) // len(link)) + end
        assert server.ask({"text": TEXT, "where": condition}).status_code == 422, condition[:30]
    assert server.ask({"text": TEXT, "where": " " * (MAX_CHARACTERS + 1)}).status_code == 422
    assert server.get("health").json()["status"] == "ok"


def test_unknown_methods_paths_types_and_hosts_are_refused(server: RunningServer) -> None:
    address = f"{server.address}answers"
    plain = httpx.post(address, content=b'{"text": "a"}', headers={"Content-Type": "text/plain"}, trust_env=False)
    for reply, status, code in (
        (plain, 415, "not_json"),
        (httpx.put(address, json={"text": TEXT}, trust_env=False), 405, "no_such_method"),
        (server.get("nothing"), 404, "no_such_path"),
        (server.get("index", Host="rebound.example"), 421, "wrong_host"),
        (server.ask({"text": TEXT}, Host="127.0.0.1.rebound.example"), 421, "wrong_host"),
    ):
        assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    for name in ("LOCALHOST:1", "[::1]:1", "127.0.0.2"):
        assert server.get("health", Host=name).status_code == 200


def test_a_full_queue_is_reported_and_a_disconnect_frees_a_place(server: RunningServer) -> None:
    requests = [server.start_request({"text": f"{TEXT} {number}"}) for number in range(MAX_WAITING)]
    while (refused := server.ask({"text": TEXT})).status_code != 429:
        pass  # until all requests have arrived
    assert refused.json()["error"]["code"] == "busy" and int(refused.headers["retry-after"]) > 0
    requests.pop().disconnect()
    while server.ask({"text": TEXT}).status_code == 429:
        pass
    for request in requests:
        request.send_body()
    assert {request.status() for request in requests} == {200}


def test_200_concurrent_questions_are_answered_and_a_new_generation_takes_over(
    server: RunningServer, index: str
) -> None:
    texts = [f"{WORDS[number % len(WORDS)]} tree {number}" for number in range(200)]

    async def ask_all() -> list[httpx.Response]:
        async with server.client() as client:
            requests = [
                client.post("answers", json={"text": text, "top_k": 1 + number % 3})
                for number, text in enumerate(texts)
            ]
            replies = list(await asyncio.gather(*requests))
            published = publish_again(index)
            while replies[-1].status_code == 200 and replies[-1].json()["generation"] < published:
                replies.append(await client.post("answers", json={"text": texts[0], "top_k": 2}))
            return replies

    expected = lc.open_index(index).top_k(texts, 3)
    replies = asyncio.run(ask_all())
    assert {reply.status_code for reply in replies} == {200}
    for number, (reply, top) in enumerate(zip(replies[:200], expected, strict=True)):
        requested = [hit.example_id for hit in top.proponents[: 1 + number % 3]]
        assert ids_of(reply.json()["proponents"]) == requested, "as many as it asked for, whatever shared its scan"
    assert server.get("health").json() == {"status": "ok", "generation": 2}
    assert TEXT not in server.log.read_text(), "texts must not be logged"


def test_a_two_stage_server_reports_its_search_and_refuses_normalised_scores(index: str, tmp_path: Path) -> None:
    with running_server(index, tmp_path / "stderr", "--two-stage") as server:
        answer, facts = server.ask({"text": TEXT, "top_k": 3, "explain": True}).json(), server.get("index").json()
        refused = server.ask({"text": TEXT, "normalise": "self"})
        page = server.get("").text
    (expected,) = lc.open_index(index).top_k([TEXT], 3, two_stage=True)
    assert answer["search"] == facts["search"] == "two-stage"
    assert ids_of(answer["proponents"]) == [hit.example_id for hit in expected.proponents]
    memory = facts["memory"]
    assert memory["resident_rows"] == 0 < memory["resident_bytes"]
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "unanswerable")
    assert "cannot rank normalised scores" in refused.json()["error"]["message"]
    assert "searches in two stages" in page and "cosine: over" not in page


def test_requests_that_schemathesis_generates_get_no_5xx(server: RunningServer) -> None:
    schema = schemathesis.openapi.from_url(f"{server.address}openapi.json")
    operations = {operation.ok().label: operation.ok() for operation in schema.get_all_operations()}
    answers = operations["POST /answers"]
    statuses: set[int] = set()

    @settings(
        max_examples=100, deadline=None, database=None, derandomize=True, suppress_health_check=[*HealthCheck]
    )
    @given(case=answers.as_strategy() | answers.as_strategy(GenerationMode.NEGATIVE))
    def send(case: schemathesis.Case) -> None:
        reply = case.call(timeout=patience(60))
        statuses.add(reply.status_code)
        assert reply.status_code < 500, reply.text
        case.validate_response(reply, checks=CHECKS)

    send()
    assert 422 in statuses
    assert answers.Case(body={"text": "the cat"}).call_and_validate(checks=CHECKS).status_code == 200
    for label in ("GET /index", "GET /health"):
        operations[label].Case().call_and_validate(checks=CHECKS)


def test_a_generation_that_cannot_be_opened_does_not_replace_the_current_one(index: str, tmp_path: Path) -> None:
    copy = str(tmp_path / "index")
    shutil.copytree(index, copy)
    live_index = LiveIndex(copy, [], None, 0.5)
    first = live_index.current.index.generation
    encoder = live_index.current.index.encoder(live_index.current.checkpoint)
    parts = json.loads(first.parts_json)
    broken = publish_again(copy, parts_json=json.dumps([{**part, "curvature": "gone"} for part in parts]))
    live_index.refresh()
    assert live_index.current.index.generation == first
    assert live_index.failure is not None and live_index.failure.generation == broken
    assert "curvature" in live_index.failure.message
    repaired = publish_again(copy, parts_json=first.parts_json)
    live_index.refresh()
    assert live_index.failure is None and live_index.current.index.generation.generation == repaired
    again = live_index.current.index.encoder(live_index.current.checkpoint)
    assert again is encoder, "the model must be loaded only once"

    async def get(path: str, **headers: str) -> int:
        app = create_app(live_index, RequestQueue(live_index), Access(SECRET, is_loopback=False))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://anywhere") as client:
            return (await client.get(path, headers=headers)).status_code

    assert asyncio.run(get("/health")) == asyncio.run(get("/index", Authorization=f"Bearer {SECRET}")) == 200
    for authorization in ("", f"Bearer {SECRET[:-1]}", f"Basic {SECRET}", "Bearer"):
        assert asyncio.run(get("/index", Authorization=authorization)) == 401


def test_an_index_that_is_deleted_under_the_server_gives_503(index: str, tmp_path: Path) -> None:
    copy = tmp_path / "index"
    shutil.copytree(index, copy)
    with running_server(str(copy), tmp_path / "stderr") as server:
        assert server.ask({"text": TEXT}).status_code == 200
        for data in copy.glob("*.lance/data"):  # as far as a slow deletion has come
            shutil.rmtree(data)
        half_gone = server.ask({"text": TEXT, "where": "tokens > 20"})
        shutil.rmtree(copy)
        gone = server.ask({"text": TEXT, "where": "tokens > 20", "totals": "uri"})
        for reply in (half_gone, gone, server.ask({"text": TEXT})):
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "index_gone"), reply.text
            assert int(reply.headers["retry-after"]) > 0 and "can no longer be read" in reply.text
        assert server.get("health").status_code == 200


def test_a_failure_is_logged_without_the_texts_that_its_message_quotes() -> None:
    secret = "a text of the corpus"
    for error in (
        ValueError(f"invalid literal: {secret}"),
        LorifError(f"x cannot be read: cast error: cannot cast string '{secret}' and '{secret}s'' to Int32"),
    ):
        assert secret not in failure_text(error)
        assert type(error).__name__ in failure_text(error)
    assert "x cannot be read: cast error" in failure_text(error)


def test_a_body_that_does_not_arrive_times_out(index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process to shorten the limit of 30 seconds."""
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.05)

    async def halting() -> AsyncIterator[bytes]:
        yield b'{"text": '
        await asyncio.Event().wait()

    async def ask() -> httpx.Response:
        live_index = LiveIndex(index, [], None, 0)
        app = create_app(live_index, RequestQueue(live_index), Access(None, is_loopback=True))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            memory = (await client.get("/index")).json()["memory"]
            assert memory["resident_rows"] == 0, "without memory, codes are read from disk"
            return await client.post("/answers", content=halting(), headers={"Content-Type": "application/json"})

    reply = asyncio.run(ask())
    assert (reply.status_code, reply.json()["error"]["code"]) == (408, "too_slow")


def test_a_server_that_cannot_start_prints_one_sentence(
    index: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for options, fragment in (
            ([index, "--host", "0.0.0.0"], "LORIF_SERVE_TOKEN"),
            ([index, "--port", port], "is in use"),
            ([index, "--model", str(tmp_path / "none")], "none"),
            ([str(tmp_path / "none"), "--port", port], "does not exist"),
        ):
            code, _, err = run(capsys, "serve", *options)
            last = err.splitlines()[-1]
            assert code == 2 and last.startswith("lorif: error:") and fragment in last, err
    monkeypatch.setenv("LORIF_SERVE_TOKEN", "short")
    code, _, err = run(capsys, "serve", index, "--port", "0")
    assert code == 2 and "16" in err and "short" not in err
    monkeypatch.setenv("LORIF_SERVE_TOKEN", "long-enough-but-spaced ")
    code, _, err = run(capsys, "serve", index, "--port", "0")
    assert code == 2 and "begins or ends with a space" in err and "spaced" not in err


def test_a_stopping_server_answers_waiting_questions_and_exits_with_0(server: RunningServer) -> None:
    async def ask_and_stop() -> list[int]:
        async with server.client() as client:
            requests = [
                asyncio.create_task(client.post("answers", json={"text": f"{TEXT} {number}"}))
                for number in range(60)
            ]
            await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)
            server.process.send_signal(signal.SIGTERM)
            return [reply.status_code for reply in await asyncio.gather(*requests)]

    assert set(asyncio.run(ask_and_stop())) == {200}
    assert server.process.stdout is not None
    last = json.loads(server.process.stdout.read().splitlines()[-1])
    assert server.process.wait(patience(30)) == 0 and last["answered"] >= 260 and last["generation"] == 2
    with pytest.raises(httpx.ConnectError):
        server.get("health")
