"""How an object store is reached: endpoint, region, profile and time limits, the same for s3fs and for Lance.

Credentials come from the environment, a profile or a role, are looked up where they are used, and are never part
of anything that is stored or sent.
"""

import os
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import botocore.session
from botocore.exceptions import BotoCoreError, ProfileNotFound
from s3fs import S3FileSystem

from lorif_core.config import StorageConfig, check_endpoint
from lorif_core.errors import UserError
from lorif_core.storage.faults import STORE_ERRORS, explain, remember_secrets

# a request that meets silence is given up after this; a whole operation after about a minute
_SECONDS_TO_CONNECT = 5
_SECONDS_OF_SILENCE = 6
_TRIES_OF_BOTOCORE = 2
_TRIES_OF_S3FS = 4  # of what botocore does not try again, such as a body that is cut off
_LANCE_LIMITS = {
    "connect_timeout": f"{_SECONDS_TO_CONNECT}s",
    "timeout": "10s",  # of a request with its body
    "client_max_retries": "4",
    "client_retry_timeout": "25",
}
_CREDENTIALS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")


def s3_filesystem(storage: StorageConfig) -> S3FileSystem:
    """The file system of a store; instances are shared within the process.

    Raises:
        UserError: the endpoint is not encrypted and `allow_http` is not set, or the profile does not exist.
    """
    endpoint = endpoint_of(storage)
    settings = {"endpoint_url": endpoint, "profile": storage.profile}
    fs = S3FileSystem(
        client_kwargs={"region_name": storage.region} if storage.region else {},
        config_kwargs={
            "connect_timeout": _SECONDS_TO_CONNECT,
            "read_timeout": _SECONDS_OF_SILENCE,
            "retries": {"total_max_attempts": _TRIES_OF_BOTOCORE, "mode": "standard"},
        },
        use_listings_cache=False,  # a cached listing would hide that a file has changed
        **{key: value for key, value in settings.items() if value is not None},
    )
    fs.retries = _TRIES_OF_S3FS
    return fs


def lance_options(storage: StorageConfig) -> dict[str, str]:
    """The same for Lance; of its spellings of the endpoint only `aws_endpoint` beats the environment."""
    endpoint = endpoint_of(storage)
    options = {
        **_LANCE_LIMITS,
        "aws_endpoint": endpoint,
        "aws_region": storage.region or _of_profile(storage, "region"),
        "allow_http": "true" if endpoint is not None and endpoint.startswith("http://") else None,
        **_credentials_of_profile(storage),
    }
    return {key: value for key, value in options.items() if value is not None}


def endpoint_of(storage: StorageConfig) -> str | None:
    """The endpoint of the storage section, else of the environment, else of the profile; None is AWS itself.

    Raises:
        UserError: it is not a URL, is not encrypted though `allow_http` is not set, or carries credentials.
    """
    variables = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    name, endpoint = next(
        ((name, os.environ[name]) for name in variables if os.environ.get(name)),
        ("endpoint_url of the profile", _of_profile(storage, "endpoint_url")),
    )
    if storage.endpoint is not None:
        name, endpoint = "storage.endpoint", storage.endpoint
    if endpoint is None:
        return None
    place = urlsplit(check_endpoint(endpoint, name))
    if place.scheme not in ("http", "https") or not place.hostname:
        raise UserError(f"{name} = {endpoint} is not a URL; write it as https://host:port")
    http_is_fine = storage.allow_http or os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true"
    if place.scheme == "http" and not http_is_fine:
        raise UserError(f"{name} = {endpoint} is not encrypted; use https:// or set storage.allow_http=true")
    return endpoint


_known_buckets: set[tuple[str, StorageConfig]] = set()


def require_bucket(uri: str, bucket: str, storage: StorageConfig) -> None:
    """Look at a bucket once per process, with a request whose errors have a cause: others have only a number.

    Raises:
        UserError: endpoint, credentials, bucket name or region are wrong, or there is no such bucket.
        StoreUnavailableError: the store keeps failing.
    """
    if (bucket, storage) in _known_buckets:
        return
    try:
        answer = s3_filesystem(storage).call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
    except PermissionError as error:
        if isinstance(refusal := explain(error, uri), UserError) and "may not be" not in str(refusal):
            raise refusal from None
        answer = {"Name": bucket}  # whoever may not list may still read or write what is asked for
    except (*STORE_ERRORS, ValueError) as error:
        raise explain(error, uri) from None
    if "Name" not in answer and "KeyCount" not in answer:
        raise UserError(f"{uri}: what answers at {storage.endpoint} does not speak S3; check storage.endpoint")
    found = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region")
    asked = storage.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if found and asked and found != asked and endpoint_of(storage) is None:
        raise UserError(f"{uri} is in the region {found}, not in {asked}; set storage.region={found}")
    _known_buckets.add((bucket, storage))


def _of_profile(storage: StorageConfig, key: str) -> str | None:
    """A setting of the profile in the AWS configuration files."""
    try:
        settings = _session(storage.profile).get_scoped_config()
    except ProfileNotFound as error:
        raise explain(error, storage.profile or os.environ.get("AWS_PROFILE", "the store")) from None
    remember_secrets(settings.get(name) for name in _CREDENTIALS)
    return settings.get(key)


def _credentials_of_profile(storage: StorageConfig) -> dict[str, str | None]:
    """Credentials of a profile that was asked for: Lance looks only at the one in the environment."""
    if storage.profile is None:
        return {}
    try:
        found = _session(storage.profile).get_credentials()
        frozen = None if found is None else found.get_frozen_credentials()
    except BotoCoreError as error:
        raise explain(error, f"the profile {storage.profile}") from None
    if frozen is None:
        raise UserError(f"the profile {storage.profile} has no credentials; add them to it, or name another")
    values = (frozen.access_key, frozen.secret_key, frozen.token)
    remember_secrets(values)
    return dict(zip(_CREDENTIALS, values, strict=True))


@lru_cache(maxsize=8)
def _session(profile: str | None) -> Any:
    return botocore.session.Session(profile=profile)
