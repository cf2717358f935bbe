"""Turns errors of files and object stores into one sentence: what is wrong, where, and what to do.

The libraries have exception types for only a few causes. The S3 error code is therefore searched in the exception,
in its causes, and in its text. A library's own text is shown only if no code is recognised, and with credentials
removed, because S3 echoes signed headers and session tokens.
"""

import errno
import os
import re
from collections.abc import Iterable, Iterator
from http.client import HTTPException
from typing import Any

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

_MESSAGES = {
    "NoSuchBucket": "{uri} cannot be {done}: its bucket does not exist; create it or name another one",
    "InvalidBucketName": "{uri} does not have a valid bucket name; check the URI",
    "InvalidAccessKeyId": "{uri} cannot be {done}: the store does not know the access key; check "
    "AWS_ACCESS_KEY_ID or the profile",
    # some stores, such as Swift, also answer this for an unknown access key
    "SignatureDoesNotMatch": "{uri} cannot be {done}: the secret key does not match the access key; check "
    "AWS_SECRET_ACCESS_KEY and AWS_ACCESS_KEY_ID, or the profile",
    "ExpiredToken": "{uri} cannot be {done}: the session token has expired; get a new one and run the command "
    "again",
    "InvalidToken": "{uri} cannot be {done}: the session token is not valid; check AWS_SESSION_TOKEN or get a "
    "new one",
    "RequestTimeTooSkewed": "{uri} cannot be {done}: this machine's clock differs from the store's; set the clock",
    "PermanentRedirect": "{uri} is in another region{region}; set storage.region to the bucket's",
    "NotImplemented": "{uri} cannot be {done}: the store does not support this operation; use another store",
    "QuotaExceeded": "{uri} cannot be {done}: the store is full; free space there",
    "KMS.DisabledException": "{uri} cannot be {done}: its encryption key is disabled; enable it",
    "InvalidObjectState": "{uri} is archived; restore it from the archive first",
    "NoCredentials": "{uri} cannot be {done}: no credentials were found; set AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, set storage.profile, or run with a role that provides them",
    "PartialCredentials": "{uri} cannot be {done}: the credentials are incomplete; set both AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY",
    "ProfileNotFound": "{uri} cannot be {done}: the profile is not in the AWS configuration; check "
    "storage.profile or AWS_PROFILE",
    "SSL": "{uri} cannot be {done}: the endpoint does not speak TLS; correct storage.endpoint, or use "
    "http:// and set storage.allow_http=true",
    "NotS3": "{uri} cannot be {done}: the server at the endpoint does not speak S3; check storage.endpoint",
    "AccessDenied": "{uri} may not be {done}; give these credentials the permission, or use another location",
    "ENOTDIR": "{uri} cannot be {done}: a part of its path is a file; use another location",
    "ENOSPC": "{uri} cannot be {done}: the disk is full; free space there",
    "EROFS": "{uri} cannot be {done}: the file system is read-only; use another location",
    "EISDIR": "{uri} is a folder; name a file",
}
_ALIASES = {
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
_BUSY_CODES = {
    "SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling", "ThrottlingException",
    "RequestLimitExceeded", "BandwidthLimitExceeded", "OperationAborted", "RequestTimeoutException",
    "408", "409", "425", "429", "500", "502", "503", "504",
}  # fmt: skip
_CODE_OF_ERRNO = {
    errno.EACCES: "AccessDenied",
    errno.EPERM: "AccessDenied",
    errno.ENOTDIR: "ENOTDIR",
    errno.EEXIST: "ENOTDIR",
    errno.ENOSPC: "ENOSPC",
    errno.EDQUOT: "ENOSPC",
    errno.EROFS: "EROFS",
    errno.EISDIR: "EISDIR",
}
_CODE_OF_TYPE: tuple[tuple[type[Exception], str], ...] = (
    (ParamValidationError, "InvalidBucketName"),
    (ProfileNotFound, "ProfileNotFound"),
    (NoCredentialsError, "NoCredentials"),
    (PartialCredentialsError, "PartialCredentials"),
    (SSLError, "SSL"),
    (aiohttp.ClientSSLError, "SSL"),
)
_ERROR_PAGE = re.compile(r"(?:<\?xml[^>]*>\s*)?<Error>(.*?)(?:</Error>|$)", re.S)
_CODE_OR_MESSAGE = re.compile(r"<(?:Code|Message)>([^<]*)")
_XML_CODE = re.compile(r"<Code>(\w[\w.]*)</Code>")
_HTTP_STATUS = re.compile(r"status code:? (\d{3})")
_REGION = re.compile(r"<Region>([\w-]+)</Region>|expecting '([\w-]+)'")
_UNREACHABLE = re.compile(
    r"dns error|failed to lookup address|Name or service not known|Temporary failure in name resolution"
    r"|nodename nor servname|[Cc]onnection refused|No route to host|Network is unreachable"
)
_CONNECTION_LOST = re.compile(
    r"connection (reset|closed)|timed? ?out|error sending request|body error|broken pipe", re.I
)
_NO_CREDENTIALS = re.compile(r"credential.{0,40}(not loaded|no providers|not found)|CredentialsNotLoaded", re.I)
_NOT_XML = re.compile(
    r"unable to parse response|invalid XML|syntax error: line|no close tag|Invalid list response"
)
_NOT_TLS = re.compile(
    r"WRONG_VERSION_NUMBER|CERTIFICATE_VERIFY_FAILED|invalid peer certificate|InvalidContentType"
)
_CONNECTION_ERRORS = (
    EndpointConnectionError,
    HTTPClientError,
    ConnectionError,
    TimeoutError,
    FSTimeoutError,
    HTTPException,
    aiohttp.ClientError,
)
_PRECONDITION_CODES = ("PreconditionFailed", "412", "ConditionalRequestConflict")
_PARTICIPLE = {"read": "read", "write": "written"}
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "HF_TOKEN", "RAY_AUTH_TOKEN")
_SHORTEST_SECRET = 8  # a shorter value is a placeholder that may occur inside ordinary words
_secrets_of_profiles: set[str] = set()


def explain(error: Exception, uri: str, action: str = "read") -> LorifError:
    """Convert an error of a store, or of a library that accesses it, to a LorifError with a clear message.

    Args:
        error: one of `STORE_ERRORS` or an error of Lance; a LorifError is returned unchanged.
        uri: the file, folder or object that was accessed.
        action: `read` or `write`.

    Returns:
        UserError for a mistake that the user can correct, StoreUnreachableError if nothing answers at the
        endpoint, StoreUnavailableError for a store that fails or closes connections, LorifError for anything else.
    """
    if isinstance(error, LorifError):
        return error
    chain, text = _causes(error)
    code = _code(chain, text)
    done = _PARTICIPLE[action]
    if code in _MESSAGES:
        sentence = _MESSAGES[code].format(uri=uri, done=done, region=_region(chain, text))
        return LorifError(sentence) if code in ("ENOSPC", "QuotaExceeded") else UserError(sentence)
    if isinstance(error, FileNotFoundError) or code in ("404", "NoSuchKey"):
        return UserError(f"{uri} does not exist")
    if _is_unreachable(chain, text):
        return StoreUnreachableError(
            f"{uri} cannot be {done}: nothing answers at the endpoint; check storage.endpoint and the network"
        )
    if code in _BUSY_CODES or _is_connection_lost(chain, text):
        return StoreUnavailableError(
            f"{uri} cannot be {done}: after several attempts the store still {_symptom(code, text)}; nothing is "
            f"lost, run the command again when the store works"
        )
    return LorifError(f"{uri} cannot be {done}: {one_line(error)}")


def is_precondition_failure(error: Exception) -> bool:
    """Whether a store refused a conditional put because the object exists or is being written.

    s3fs raises FileExistsError only if the response names the condition, as AWS does.
    """
    codes = {str(response.get("Error", {}).get("Code", "")) for response in _responses(_causes(error)[0])}
    return isinstance(error, FileExistsError) or not codes.isdisjoint(_PRECONDITION_CODES)


def is_access_denied(error: Exception) -> bool:
    """Whether the credentials are valid but lack a permission."""
    return _code(*_causes(error)) == "AccessDenied"


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks and credentials, cut to 300 characters."""
    return " ".join(without_secrets(str(error)).split())[:300]


def without_secrets(text: str) -> str:
    """Remove credentials from a text. S3 error pages quote the request, so only their code and message remain."""
    text = _ERROR_PAGE.sub(lambda page: ": ".join(_CODE_OR_MESSAGE.findall(page[1])), text)
    secrets = {os.environ.get(name, "") for name in _SECRETS} | _secrets_of_profiles
    for value in sorted(secrets, key=len, reverse=True):
        if len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    return text


def remember_secrets(values: Iterable[str | None]) -> None:
    """Register credentials of a profile, so that `without_secrets` removes them too."""
    _secrets_of_profiles.update(value for value in values if value)


def _causes(error: BaseException) -> tuple[list[Exception], str]:
    """The error followed by its causes, and their texts in one string."""
    chain = list(_chain(error))
    return chain, " ".join(str(link) for link in chain)


def _chain(error: BaseException | None) -> Iterator[Exception]:
    seen: set[int] = set()
    while isinstance(error, Exception) and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or getattr(error, "kwargs", {}).get("error")


def _responses(chain: list[Exception]) -> list[dict[str, Any]]:
    return [link.response for link in chain if isinstance(link, ClientError)]


def _code(chain: list[Exception], text: str) -> str | None:
    """The S3 error code, the HTTP status, or a code of this module; None if the error has none of them."""
    for kind, code in _CODE_OF_TYPE:
        if any(isinstance(link, kind) for link in chain):
            return code
    codes = [str(response.get("Error", {}).get("Code", "")) for response in _responses(chain)]
    codes += _XML_CODE.findall(text) + _HTTP_STATUS.findall(text)
    if _NO_CREDENTIALS.search(text):
        codes.append("NoCredentials")
    if _NOT_XML.search(text):
        codes.append("NotS3")
    if _NOT_TLS.search(text):
        codes.append("SSL")
    numbers = [link.errno for link in chain if isinstance(link, OSError)]
    codes += [_CODE_OF_ERRNO[number] for number in numbers if number in _CODE_OF_ERRNO]
    if match := re.search(r"\(os error (\d+)\)", text):
        codes.append(_CODE_OF_ERRNO.get(int(match[1]), ""))
    codes += ["AccessDenied" for link in chain if isinstance(link, PermissionError)]
    codes = [_ALIASES.get(code, code) for code in codes]
    return next((code for code in codes if code in _MESSAGES or code in _BUSY_CODES), codes[0] if codes else None)


def _region(chain: list[Exception], text: str) -> str:
    """The region that the store names, with a leading comma for the message; empty if it names none."""
    details = [response.get("Error", {}) for response in _responses(chain)]
    regions = [str(detail["Region"]) for detail in details if "Region" in detail]
    regions += [match[1] or match[2] for match in _REGION.finditer(text)]
    return f", {regions[0]}" if regions else ""


def _is_unreachable(chain: list[Exception], text: str) -> bool:
    """Whether no connection was made. botocore raises the same type for resets, so the cause decides."""
    if _UNREACHABLE.search(text):
        return True
    connectors = [link for link in chain if isinstance(link, aiohttp.ClientConnectorError)]
    return any(isinstance(link.os_error, ConnectionRefusedError) for link in connectors)


def _is_connection_lost(chain: list[Exception], text: str) -> bool:
    return any(isinstance(link, _CONNECTION_ERRORS) for link in chain) or bool(_CONNECTION_LOST.search(text))


def _symptom(code: str | None, text: str) -> str:
    if code in _BUSY_CODES:
        return f"answers {code}"
    return "does not answer in time" if re.search(r"timed? ?out", text, re.I) else "closes the connection"
