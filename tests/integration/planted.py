"""Credentials that are planted, in the environment and in a profile, and finding them again in any form."""

import base64
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from urllib.parse import quote, quote_plus

from tests.servers.proxy import Fault, FaultProxy

PROFILE = "planted"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDENVIRON01",
    "AWS_SECRET_ACCESS_KEY": "planted-secret/Env+7q9ZkW2xTb",
    "AWS_SESSION_TOKEN": "planted-token/Env+FwoGZXIvYXdzEJr==",
    "HF_TOKEN": "hf_plantedTokenOfTheHubQ7w9Zk",
    "RAY_AUTH_TOKEN": "5ec2e7a11ed" + "c0ffee" * 8,
}
OF_PROFILE = {
    "aws_access_key_id": "AKIAPLANTEDPROFILE01",
    "aws_secret_access_key": "planted-secret/Profile+3mXc8Rv1Lp",
    "aws_session_token": "planted-token/Profile+IQoJb3JpZ2luX2==",
}
IN_CONFIG = "planted-secret/Config+Jd84nQz0sY"
MARK = "told/by-the-store"  # no secret, so it must be wherever the texts of a store come through
SECRETS = [*ENVIRONMENT.values(), *OF_PROFILE.values(), IN_CONFIG]


def forms(secret: str) -> set[bytes]:
    """A secret as it is, quoted for a URL, and what of its base64 does not depend on what stands around it."""
    found = {secret, quote(secret), quote(secret, safe=""), quote_plus(secret)}
    for offset in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            found.add(encode(b"\0" * offset + secret.encode())[4:-4].decode())
    return {form.encode() for form in found}


FORMS = {text: forms(text) for text in (*SECRETS, MARK)}


def shows(content: str | bytes, text: str) -> bool:
    """Whether a text is somewhere in a content, in any form."""
    content = content.encode() if isinstance(content, str) else content
    return any(form in content for form in FORMS.get(text) or forms(text))


def hits(content: str | bytes) -> list[str]:
    """The planted secrets that are somewhere in a content."""
    return [secret for secret in SECRETS if shows(content, secret)]


def page(code: str, quoted: Collection[str]) -> str:
    """An error page as S3 writes it, which quotes the request; and in its message too, as others might."""
    told = "; ".join([MARK, *quoted])
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>refused: {told}</Message>'
        f"<AWSAccessKeyId>{told}</AWSAccessKeyId><StringToSign>AWS4-HMAC-SHA256\n{told}</StringToSign>"
        f"<CanonicalRequest>PUT\nx-amz-security-token:{told}</CanonicalRequest></Error>"
    )


def refusal(code: str, profile: str | None, but_first_contact: bool = False) -> Fault:
    """A page in answer to all requests, or to all but the look at a bucket that comes before the others.

    It quotes the credentials that are in use: those of the profile, if there is one.
    """
    match = r"^(?!.*max-keys=1(&|$))" if but_first_contact else ""
    statuses = {"OddRefusal": 400, "SlowDown": 503}
    quoted = OF_PROFILE.values() if profile else ENVIRONMENT.values()
    return Fault("answer", match=match, status=statuses.get(code, 403), page=page(code, quoted))


@contextmanager
def served(proxy: FaultProxy, fault: Fault) -> Iterator[None]:
    """The fault is what the proxy does, for the length of the block."""
    proxy.fault, proxy.hit = fault, 0
    try:
        yield
    finally:
        proxy.fault = None


class Overhearing(FaultProxy):
    """Also keeps the access keys that it sees, which proves whose credentials are used."""

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self.keys: set[str] = set()
        keys, handler = self.keys, self._server.RequestHandlerClass

        class Handler(handler):
            def _body(self) -> bytes:
                keys.add(self.headers.get("Authorization", "").partition("Credential=")[2].partition("/")[0])
                return super()._body()

        self._server.RequestHandlerClass = Handler
