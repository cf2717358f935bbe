"""What goes wrong at a store, as one sentence: what is wrong, where, what to do.

The libraries have an exception type for few of the causes, so the error code of S3's answer is looked for in the
exception, in what it came from, and in its text. Raw texts are shown only where nothing is recognised, with
credentials struck out: S3 echoes signed headers, session tokens among them.
"""

import errno
import os
import re
from collections.abc import Iterable, Iterator
from http.client import HTTPException

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
)
from fsspec.exceptions import FSTimeoutError

from lorif_core.errors import LorifError, StoreUnavailableError, StoreUnreachableError, UserError

STORE_ERRORS = (OSError, BotoCoreError, ClientError, HTTPException, aiohttp.ClientError, FSTimeoutError)

_ADVICE = {
    "NoSuchBucket": "{uri} cannot be {done}: its bucket does not exist; make it, or name another",
    "InvalidBucketName": "{uri} has a name that no bucket can have; check the URI",
    "InvalidAccessKeyId": "{uri} cannot be {done}: the store does not know the access key; check "
    "AWS_ACCESS_KEY_ID or the profile",
    # which some stores, Swift among them, say of an access key that they do not know, too
    "SignatureDoesNotMatch": "{uri} cannot be {done}: the secret key is not that of the access key; check "
    "AWS_SECRET_ACCESS_KEY and AWS_ACCESS_KEY_ID, or the profile",
    "ExpiredToken": "{uri} cannot be {done}: the session token has expired; get a new one and run again",
    "InvalidToken": "{uri} cannot be {done}: the session token is not valid; check AWS_SESSION_TOKEN or get a "
    "new one",
    "RequestTimeTooSkewed": "{uri} cannot be {done}: this machine's clock is not the store's; set the clock",
    "PermanentRedirect": "{uri} is in another region{region}; set storage.region to the bucket's",
    "NotImplemented": "{uri} cannot be {done}: the store does not support what is asked of it; use another store",
    "QuotaExceeded": "{uri} cannot be {done}: the store is full; make room there",
    "KMS.DisabledException": "{uri} cannot be {done}: its encryption key is disabled; enable it",
    "InvalidObjectState": "{uri} is archived; restore it from the archive first",
    "NoCredentials": "{uri} cannot be {done}: no credentials were found; set AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, or storage.profile, or run where a role gives them",
    "PartialCredentials": "{uri} cannot be {done}: the credentials are incomplete; set both AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY",
    "ProfileNotFound": "{uri} cannot be {done}: the profile asked for is not in the AWS configuration; check "
    "storage.profile or AWS_PROFILE",
    "SSL": "{uri} cannot be {done}: the endpoint does not answer in TLS; correct storage.endpoint, or write "
    "http:// and set storage.allow_http=true",
    "NotS3": "{uri} cannot be {done}: what answers at the endpoint does not speak S3; check storage.endpoint",
    "AccessDenied": "{uri} may not be {done}; give these credentials the permission, or name another place",
    "ENOTDIR": "{uri} cannot be {done}: a part of its path is a file; name another place",
    "ENOSPC": "{uri} cannot be {done}: the disk is full; make room there",
    "EROFS": "{uri} cannot be {done}: the file system is read-only; name another place",
    "EISDIR": "{uri} is a folder; name a file",
}
_SAME = {
    "403": "AccessDenied",
    "AllAccessDisabled": "AccessDenied",
    "AccountProblem": "AccessDenied",
    "InvalidSecurity": "AccessDenied",
    "ExpiredTokenException": "ExpiredToken",
    "TokenRefreshRequired": "ExpiredToken",
    "RequestExpired": "ExpiredToken",
    "UnrecognizedClientException": "InvalidAccessKeyId",
    "AuthorizationHeaderMalformed": "PermanentRedirect",
    "IllegalLocationConstraintException": "PermanentRedirect",
    "TemporaryRedirect": "PermanentRedirect",
    "301": "PermanentRedirect",
    "307": "PermanentRedirect",
    "501": "NotImplemented",
    "405": "NotS3",
    "MethodNotAllowed": "NotImplemented",
    "507": "QuotaExceeded",
    "InsufficientCapacity": "QuotaExceeded",
    "XMinioStorageFull": "QuotaExceeded",
}
_BUSY = {
    "SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling", "ThrottlingException",
    "RequestLimitExceeded", "BandwidthLimitExceeded", "OperationAborted", "RequestTimeoutException",
    "408", "409", "425", "429", "500", "502", "503", "504",
}  # fmt: skip
_ERRNO = {
    errno.EACCES: "AccessDenied",
    errno.EPERM: "AccessDenied",
    errno.ENOTDIR: "ENOTDIR",
    errno.EEXIST: "ENOTDIR",
    errno.ENOSPC: "ENOSPC",
    errno.EDQUOT: "ENOSPC",
    errno.EROFS: "EROFS",
    errno.EISDIR: "EISDIR",
}
_TYPES: tuple[tuple[type[Exception], str], ...] = (
    (ParamValidationError, "InvalidBucketName"),
    (ProfileNotFound, "ProfileNotFound"),
    (NoCredentialsError, "NoCredentials"),
    (PartialCredentialsError, "PartialCredentials"),
    (SSLError, "SSL"),
    (aiohttp.ClientSSLError, "SSL"),
)
_ERROR_PAGE = re.compile(r"(?:<\?xml[^>]*>\s*)?<Error>(.*?)(?:</Error>|$)", re.S)
_TOLD_IN_PAGE = re.compile(r"<(?:Code|Message)>([^<]*)")
_IN_XML = re.compile(r"<Code>(\w[\w.]*)</Code>")
_IN_STATUS = re.compile(r"status code:? (\d{3})")
_REGION = re.compile(r"<Region>([\w-]+)</Region>|expecting '([\w-]+)'")
_UNREACHABLE = re.compile(
    r"dns error|failed to lookup address|Name or service not known|Temporary failure in name resolution"
    r"|nodename nor servname|[Cc]onnection refused|No route to host|Network is unreachable"
)
_HANGING_UP = re.compile(
    r"connection (reset|closed)|timed? ?out|error sending request|body error|broken pipe", re.I
)
_NO_CREDENTIALS = re.compile(r"credential.{0,40}(not loaded|no providers|not found)|CredentialsNotLoaded", re.I)
_NOT_XML = re.compile(
    r"unable to parse response|invalid XML|syntax error: line|no close tag|Invalid list response"
)
_REFUSED_CONDITION = ("PreconditionFailed", "412", "ConditionalRequestConflict")
_DONE = {"read": "read", "write": "written"}
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "HF_TOKEN", "RAY_AUTH_TOKEN")
_SHORTEST_SECRET = 8  # what is shorter is a placeholder, and may be a part of words
_secrets_of_profiles: set[str] = set()


def explain(error: Exception, uri: str, doing: str = "read") -> LorifError:
    """An error of a store, or of a library that reaches it, as one of ours.

    Args:
        error: one of `STORE_ERRORS`, or what Lance raises; one of ours comes back unchanged.
        uri: where.
        doing: `read` or `write`.

    Returns:
        UserError for what the user can set right, StoreUnreachableError where nothing answers at the endpoint,
        StoreUnavailableError for a store that fails or hangs up, LorifError for anything else.
    """
    if isinstance(error, LorifError):
        return error
    chain = list(_chain(error))
    text = " ".join(str(link) for link in chain)
    code = _code(chain, text)
    if code in _ADVICE:
        sentence = _ADVICE[code].format(uri=uri, done=_DONE[doing], region=_region(chain, text))
        return LorifError(sentence) if code in ("ENOSPC", "QuotaExceeded") else UserError(sentence)
    if isinstance(error, FileNotFoundError) or code in ("404", "NoSuchKey"):
        return UserError(f"{uri} does not exist")
    if _is_unreachable(chain, text):
        return StoreUnreachableError(
            f"{uri} cannot be {_DONE[doing]}: nothing answers at the endpoint; check storage.endpoint and the "
            f"network"
        )
    if code in _BUSY or _hangs_up(chain, text):
        return StoreUnavailableError(
            f"{uri} cannot be {_DONE[doing]}: the store keeps {_symptom(code, text)}, after several tries; run "
            f"again when it is well, nothing is lost"
        )
    return LorifError(f"{uri} cannot be {_DONE[doing]}: {one_line(error)}")


def is_refused_condition(error: Exception) -> bool:
    """Whether a store refused a conditional put because an object is there, or is just being written.

    s3fs says FileExistsError only where the answer names the condition, as that of AWS does.
    """
    answers = [link.response for link in _chain(error) if isinstance(link, ClientError)]
    codes = {str(answer.get("Error", {}).get("Code", "")) for answer in answers}
    return isinstance(error, FileExistsError) or not codes.isdisjoint(_REFUSED_CONDITION)


def one_line(error: Exception) -> str:
    """An error's message without line breaks and credentials, cut to what a sentence can carry."""
    return " ".join(without_secrets(str(error)).split())[:300]


def without_secrets(text: str) -> str:
    """A text of a library without credentials. S3's error pages quote the request: code and message are left."""
    text = _ERROR_PAGE.sub(lambda page: ": ".join(_TOLD_IN_PAGE.findall(page[1])), text)
    secrets = {os.environ.get(name, "") for name in _SECRETS} | _secrets_of_profiles
    for value in sorted(secrets, key=len, reverse=True):
        if len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    return text


def remember_secrets(values: Iterable[str | None]) -> None:
    """Strike the credentials of a profile out of every text, as those of the environment are."""
    _secrets_of_profiles.update(value for value in values if value)


def _chain(error: BaseException | None) -> Iterator[Exception]:
    """An error and what it came from."""
    seen: set[int] = set()
    while isinstance(error, Exception) and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or getattr(error, "kwargs", {}).get("error")


def _code(chain: list[Exception], text: str) -> str | None:
    """S3's error code, or its HTTP status, or a name of our own; None if there is none to be found."""
    for kind, name in _TYPES:
        if any(isinstance(link, kind) for link in chain):
            return name
    answers = [link.response for link in chain if isinstance(link, ClientError)]
    found = [str(answer.get("Error", {}).get("Code", "")) for answer in answers]
    found += _IN_XML.findall(text) + _IN_STATUS.findall(text)
    if _NO_CREDENTIALS.search(text):
        found.append("NoCredentials")
    if _NOT_XML.search(text):
        found.append("NotS3")
    if re.search(
        r"WRONG_VERSION_NUMBER|CERTIFICATE_VERIFY_FAILED|invalid peer certificate|InvalidContentType", text
    ):
        found.append("SSL")
    found += [_ERRNO[link.errno] for link in chain if isinstance(link, OSError) and link.errno in _ERRNO]
    if match := re.search(r"\(os error (\d+)\)", text):
        found.append(_ERRNO.get(int(match[1]), ""))
    found += ["AccessDenied" for link in chain if isinstance(link, PermissionError)]
    names = [_SAME.get(code, code) for code in found]
    return next((name for name in names if name in _ADVICE or name in _BUSY), names[0] if names else None)


def _region(chain: list[Exception], text: str) -> str:
    """The region that the store has named, as it stands in a sentence; empty if it has not."""
    answers = [link.response.get("Error", {}) for link in chain if isinstance(link, ClientError)]
    named = [str(answer["Region"]) for answer in answers if "Region" in answer]
    named += [known[1] or known[2] for known in _REGION.finditer(text)]
    return f", {named[0]}" if named else ""


def _is_unreachable(chain: list[Exception], text: str) -> bool:
    """Whether there was no connection at all; botocore says so of resets too, so the cause decides."""
    if _UNREACHABLE.search(text):
        return True
    connectors = [link for link in chain if isinstance(link, aiohttp.ClientConnectorError)]
    return any(isinstance(link.os_error, ConnectionRefusedError) for link in connectors)


def _hangs_up(chain: list[Exception], text: str) -> bool:
    kinds = (
        EndpointConnectionError,
        HTTPClientError,
        ConnectionError,
        TimeoutError,
        FSTimeoutError,
        HTTPException,
    )
    return any(isinstance(link, (*kinds, aiohttp.ClientError)) for link in chain) or bool(_HANGING_UP.search(text))


def _symptom(code: str | None, text: str) -> str:
    if code in _BUSY:
        return f"refusing with {code}"
    return "not answering in time" if re.search(r"timed? ?out", text, re.I) else "hanging up"
