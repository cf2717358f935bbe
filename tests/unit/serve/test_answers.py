"""Invariant: answers over HTTP state their parts, stream what the model says, and keep to a pinned generation."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.serve import generations
from flows.serve.app import create_app
from flows.serve.limits import Access
from flows.serve.live_index import LiveIndex
from flows.serve.request_queue import RequestQueue
from lorif_core.model.generation import generate
from lorif_core.tables.store import Store
from tests.patience import patience
from tests.small_index import add_column, build_small, save_model
from tests.tiny_tokenizer import byte_tokenizer

TEXTS = ["the old dog likes the red tree", "a bird runs and sees the cat", "the cat likes the old tree"]
ANSWER = {"prompt": "the dog ", "completion": "likes the tree"}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An index of three generations, of which the first is gone."""
    folder = tmp_path_factory.mktemp("served")
    rows = [{"id": f"s{i}", "text": f"{TEXTS[i % 3]} {i}"} for i in range(30)]
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = {"uri": str(folder / "c.jsonl"), "id": "id", "max_length": 48}
    built = build_small(folder / "index", save_model(folder / "model"), corpus, preset="quality")
    version = add_column(built, "topic", "concat('animals of ', example_id)")
    for number in (2, 3):
        built.store.publish(replace(built.generation, generation=number, factors_version=version))
    built.store.retire([1], [])
    return built.store.uri


@asynccontextmanager
async def client(index: str) -> AsyncIterator[httpx.AsyncClient]:
    live_index = LiveIndex(index, [], None, 0.5)
    queue = RequestQueue(live_index)
    app = create_app(live_index, queue, Access(None, is_loopback=True))
    working = asyncio.create_task(queue.work())
    transport = httpx.ASGITransport(app)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as opened:
            yield opened
    finally:
        working.cancel()
        with suppress(asyncio.CancelledError):
            await working


def run(index: str, test: Callable[[httpx.AsyncClient], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(patience(60)), client(index) as opened:
            await test(opened)

    asyncio.run(limited())


def error_of(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["error"]["code"]


def test_an_answer_states_its_parts_and_how_unusual_it_is(index: str) -> None:
    async def test(http: httpx.AsyncClient) -> None:
        answer = (await http.post("/answers", json={**ANSWER, "explain": True, "top_k": 4})).json()
        hits = [*answer["proponents"], *answer["opponents"]]
        for hit in hits:
            assert sum(token["share"] for token in hit["training_tokens"]) == pytest.approx(hit["score"], rel=0.01)
            assert sum(layer["share"] for layer in hit["layers"]) == pytest.approx(hit["score"], rel=0.01)
            assert {layer["kind"] for layer in hit["layers"]} == {"attention", "mlp"}
        shares = sum(layer["share"] for layer in answer["layers"])
        assert shares == pytest.approx(sum(hit["score"] for hit in answer["proponents"]), rel=0.01)
        assert max(abs(hit["relative"]) for hit in hits) == 1
        assert [hit["percentile"] for hit in answer["proponents"][:2]] == pytest.approx(
            [100 * 29 / 30, 100 * 28 / 30]
        )
        assert answer["opponents"][0]["percentile"] == 0
        assert sum(answer["distribution"]["counts"]) == 30
        assert "".join(token["text"] for token in answer["answer_tokens"]) == "the dog likes the tree"
        scored = [token["loss"] for token in answer["answer_tokens"] if token["loss"] is not None]
        assert sum(scored) == pytest.approx(answer["loss"], rel=1e-4)
        assert answer["likelihood"]["words"].startswith("the model")
        plain = (await http.post("/answers", json={**ANSWER, "top_k": 4})).json()
        assert plain["proponents"][0]["training_tokens"] is None and plain["layers"] is None
        assert plain["distribution"] == answer["distribution"]

    run(index, test)


def test_a_span_is_scored_like_its_labels(index: str) -> None:
    async def test(http: httpx.AsyncClient) -> None:
        text = "the dog likes the tree"
        ids = byte_tokenizer()(text)["input_ids"]
        labels = [token if 8 <= i < 13 else -100 for i, token in enumerate(ids)]
        questions: list[dict[str, Any]] = [
            {"tokens": ids, "labels": labels},
            {"text": text, "span": {"start": 8, "end": 13}},
            {**ANSWER, "span": {"start": 0, "end": 5}},
        ]
        answers = [(await http.post("/answers", json=question)).json() for question in questions]
        for answer in answers[1:]:
            assert answer["loss"] == pytest.approx(answers[0]["loss"])
            for hit, other in zip(answer["proponents"], answers[0]["proponents"], strict=True):
                assert hit["score"] == pytest.approx(other["score"], rel=1e-4)
        for wrong in ({"start": 3, "end": 3}, {"start": -1, "end": 3}, {"start": 0}):
            assert error_of(await http.post("/answers", json={"text": text, "span": wrong})) == (422, "invalid")
        beyond = await http.post("/answers", json={"text": text, "span": {"start": 3, "end": 99}})
        assert error_of(beyond) == (422, "unanswerable")
        assert error_of(await http.post("/answers", json={"tokens": ids, "span": {"start": 0, "end": 3}})) == (
            422, "invalid",
        )  # fmt: skip

    run(index, test)


def test_the_model_answers_and_its_answer_is_attributed(index: str) -> None:
    async def test(http: httpx.AsyncClient) -> None:
        question = {"text": "the dog ", "generate": {"max_new_tokens": 8}}
        answer = (await http.post("/answers", json=question)).json()
        repeated = {"prompt": "the dog ", "completion": answer["completion"]}
        same = (await http.post("/answers", json=repeated)).json()
        assert answer["completion"] and same["completion"] is None
        assert answer["proponents"] == same["proponents"]
        assert answer["likelihood"]["words"] == "the model says this by itself"
        for wrong in ({**ANSWER, "generate": {}}, {"text": "a", "generate": {"max_new_tokens": 10**6}}):
            assert error_of(await http.post("/answers", json=wrong)) == (422, "invalid")
        page = await http.post("/answers", json=question, headers={"Accept": "text/html"})
        assert page.headers["content-type"].startswith("text/html")

    run(index, test)


def test_a_continuation_is_streamed(index: str) -> None:
    async def test(http: httpx.AsyncClient) -> None:
        reply = await http.post("/generations", json={"prompt": "the dog ", "max_new_tokens": 8})
        assert reply.headers["content-type"].startswith("text/event-stream")
        *events, last = reply.text.strip().split("\n\n")
        texts = [json.loads(event.removeprefix("data: "))["text"] for event in events]
        name, data = last.split("\n")
        done = json.loads(data.removeprefix("data: "))
        assert name == "event: done" and done["text"] == texts[-1] and 1 <= done["tokens"] <= 8
        assert len(texts) == done["tokens"] and all(text.startswith(texts[0][:1]) for text in texts)
        answer = await http.post("/answers", json={"text": "the dog ", "generate": {"max_new_tokens": 8}})
        assert answer.json()["completion"] == done["text"]
        too_long = {"prompt": "the dog " * 50, "max_new_tokens": 8}
        assert error_of(await http.post("/generations", json=too_long)) == (422, "unanswerable")
        said = [{"role": "user", "content": "why?"}]
        for invalid in ({"prompt": ""}, {}, {"prompt": "why?", "messages": said}):
            assert error_of(await http.post("/generations", json=invalid)) == (422, "invalid")
        without_template = await http.post("/generations", json={"messages": said})
        assert error_of(without_template) == (422, "unanswerable")

    run(index, test)


def test_a_client_that_hangs_up_ends_the_continuation_and_frees_its_place(
    index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model would go on for ever, and later questions would wait for it."""
    steps: list[str] = []

    def endless(loaded: Any, prompt: str, more: int, seconds: float, goes_on: Callable[[str], bool]) -> Any:
        steps.append("step")
        while goes_on("x" * len(steps)):
            steps.append("step")
        return generate(loaded, prompt, 1)

    monkeypatch.setattr(generations, "generate", endless)

    async def test(http: httpx.AsyncClient) -> None:
        app = http._transport.app  # type: ignore[attr-defined]
        body = json.dumps({"prompt": "the dog"}).encode()
        begun = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if not requested.is_set():
                requested.set()
                return {"type": "http.request", "body": body, "more_body": False}
            await begun.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.body" and message.get("body"):
                begun.set()

        requested = asyncio.Event()
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {
            "type": "http", "method": "POST", "path": "/generations", "raw_path": b"/generations",
            "headers": headers, "query_string": b"", "scheme": "http", "http_version": "1.1", "root_path": "",
            "server": ("localhost", 80), "client": ("localhost", 1), "asgi": {"version": "3.0"},
        }  # fmt: skip
        await app(scope, receive, send)
        monkeypatch.undo()
        assert (await http.post("/answers", json=ANSWER)).status_code == 200

    run(index, test)
    assert steps


def test_a_pair_adds_up_to_what_the_span_adds(index: str) -> None:
    async def test(http: httpx.AsyncClient) -> None:
        answer = (await http.post("/answers", json={**ANSWER, "explain": True, "top_k": 1})).json()
        hit = answer["proponents"][0]
        pair = {"question": ANSWER, "example_id": hit["example_id"], "start": 4, "end": 12}
        result = (await http.post("/pairs", json=pair)).json()
        inside = [token for token in hit["training_tokens"] if token["start"] < 12 and token["end"] > 4]
        assert result["share"] == pytest.approx(sum(token["share"] for token in inside), rel=1e-3)
        assert result["tokens"] == answer["tokens"] and sum(result["shares"]) == pytest.approx(result["share"])
        assert error_of(await http.post("/pairs", json={**pair, "example_id": "x"})) == (422, "unanswerable")
        assert error_of(await http.post("/pairs", json={**pair, "end": 0})) == (422, "invalid")

    run(index, test)


def test_an_example_is_shown_with_its_neighbours(index: str) -> None:
    async def test(http: httpx.AsyncClient) -> None:
        record = (await http.get("/examples", params={"id": "s7"})).json()
        assert record["text"] == f"{TEXTS[1]} 7" and record["row"] == 7 and record["uri"].endswith("c.jsonl")
        assert [other["example_id"] for other in record["neighbours"]] == ["s5", "s6", "s8", "s9"]
        assert record["neighbours"][0]["beginning"] == f"{TEXTS[2]} 5"
        assert record["columns"] == {"topic": "animals of s7"} and record["turns"] is None
        assert error_of(await http.get("/examples", params={"id": "it's"})) == (404, "no_such_example")
        assert error_of(await http.get("/examples")) == (422, "invalid")

    run(index, test)


def test_a_pinned_generation_answers_or_says_why_not(index: str) -> None:
    async def test(http: httpx.AsyncClient) -> None:
        newest = await http.post("/answers", json=ANSWER)
        pinned = await http.post("/answers", json={**ANSWER, "generation": 2})
        assert (newest.json()["generation"], pinned.json()["generation"]) == (3, 2)
        assert pinned.headers["x-lorif-generation"] == "2"
        assert pinned.json()["proponents"] == newest.json()["proponents"]
        for number in (1, 99):
            assert error_of(await http.post("/answers", json={**ANSWER, "generation": number})) == (
                410, "generation_gone",
            )  # fmt: skip
        pair = {"question": ANSWER, "example_id": "s1", "start": 0, "end": 9, "generation": 2}
        assert (await http.post("/pairs", json=pair)).json()["generation"] == 2

    run(index, test)


def test_a_pinned_generation_that_was_asked_before_may_be_gone(index: str, tmp_path: Path) -> None:
    copy = str(shutil.copytree(index, tmp_path / "index"))

    async def test(http: httpx.AsyncClient) -> None:
        pinned = {**ANSWER, "generation": 2}
        assert (await http.post("/answers", json=pinned)).status_code == 200
        Store(copy).retire([2], [])
        assert error_of(await http.post("/answers", json=pinned)) == (410, "generation_gone")
        assert (await http.post("/answers", json=ANSWER)).status_code == 200

    run(copy, test)


def test_a_pinned_generation_of_another_checkpoint_is_refused(index: str) -> None:
    store = Store(index)
    generation = store.latest()
    parts = json.loads(generation.parts_json)
    spec = json.loads(parts[0]["spec_json"])
    spec_json = json.dumps({**spec, "checkpoint": "sha256:other"}, sort_keys=True, separators=(",", ":"))
    live_index = LiveIndex(index, [], None, 0.5)
    other = json.dumps([{**parts[0], "spec_json": spec_json, "checkpoint": "sha256:other"}])
    store.publish(replace(generation, generation=generation.generation + 1, parts_json=other))

    async def ask() -> httpx.Response:
        queue = RequestQueue(live_index)
        working = asyncio.create_task(queue.work())
        app = create_app(live_index, queue, Access(None, is_loopback=True))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
            reply = await http.post("/answers", json={**ANSWER, "generation": generation.generation + 1})
        working.cancel()
        return reply

    assert error_of(asyncio.run(ask())) == (409, "other_checkpoint")
