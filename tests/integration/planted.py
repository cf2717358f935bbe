"""Planted credentials in the environment, in a profile and in a config, and a search for them in any encoding."""

import base64
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from urllib.parse import quote, quote_plus

from tests.servers.proxy import Fault, FaultProxy

PROFILE = "planted"
ENVIRONMENT_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDENVIRON01",
    "AWS_SECRET_ACCESS_KEY": "planted-secret/Env+7q9ZkW2xTb",
    "AWS_SESSION_TOKEN": "planted-token/Env+FwoGZXIvYXdzEJr==",
    "HF_TOKEN": "hf_plantedTokenOfTheHubQ7w9Zk",
    "RAY_AUTH_TOKEN": "5ec2e7a11ed" + "c0ffee" * 8,
}
PROFILE_CREDENTIALS = {
    "aws_access_key_id": "AKIAPLANTEDPROFILE01",
    "aws_secret_access_key": "planted-secret/Profile+3mXc8Rv1Lp",
    "aws_session_token": "planted-token/Profile+IQoJb3JpZ2luX2==",
}
CONFIG_SECRET = "planted-secret/Config+Jd84nQz0sY"
MARK = "told/by-the-store"  # not a secret: it must appear wherever text of a store is shown
SECRETS = [*ENVIRONMENT_CREDENTIALS.values(), *PROFILE_CREDENTIALS.values(), CONFIG_SECRET]


def encodings(secret: str) -> set[bytes]:
    """A secret as it is, quoted for URLs, and the parts of its base64 that do not depend on the text around it."""
    texts = {secret, quote(secret), quote(secret, safe=""), quote_plus(secret)}
    for offset in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            texts.add(encode(b"\0" * offset + secret.encode())[4:-4].decode())
    return {text.encode() for text in texts}


ENCODINGS = {text: encodings(text) for text in (*SECRETS, MARK)}


def contains(content: str | bytes, text: str) -> bool:
    """Whether a content contains a text in any encoding."""
    content = content.encode() if isinstance(content, str) else content
    return any(encoded in content for encoded in ENCODINGS.get(text) or encodings(text))


def secrets_in(content: str | bytes) -> list[str]:
    """The planted secrets that a content contains in any encoding."""
    return [secret for secret in SECRETS if contains(content, secret)]


def error_page(code: str, quoted: Collection[str]) -> str:
    """An error page of S3, which quotes the request; here the message also quotes it, as other servers may do."""
    quotes = "; ".join([MARK, *quoted])
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>refused: {quotes}</Message>'
        f"<AWSAccessKeyId>{quotes}</AWSAccessKeyId><StringToSign>AWS4-HMAC-SHA256\n{quotes}</StringToSign>"
        f"<CanonicalRequest>PUT\nx-amz-security-token:{quotes}</CanonicalRequest></Error>"
    )


def quoting_fault(code: str, profile: str | None, but_first_contact: bool = False) -> Fault:
    """An error page as the response to all requests, or to all but the first listing of a bucket.

    It quotes the credentials in use: those of the profile if there is one, else those of the environment.
    """
    match = r"^(?!.*max-keys=1(&|$))" if but_first_contact else ""
    statuses = {"OddRefusal": 400, "SlowDown": 503}
    quoted = PROFILE_CREDENTIALS.values() if profile else ENVIRONMENT_CREDENTIALS.values()
    return Fault("answer", match=match, status=statuses.get(code, 403), page=error_page(code, quoted))


@contextmanager
def active_fault(proxy: FaultProxy, fault: Fault) -> Iterator[None]:
    """Let the proxy inject a fault for the length of the block."""
    proxy.fault, proxy.injected = fault, 0
    try:
        yield
    finally:
        proxy.fault = None


class KeyRecordingProxy(FaultProxy):
    """A proxy that records the access keys of requests, to show whose credentials are used."""

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self.keys: set[str] = set()
        keys, handler = self.keys, self._server.RequestHandlerClass

        class Handler(handler):
            def _body(self) -> bytes:
                keys.add(self.headers.get("Authorization", "").partition("Credential=")[2].partition("/")[0])
                return super()._body()

        self._server.RequestHandlerClass = Handler
