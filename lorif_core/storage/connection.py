"""Connection settings of an object store (endpoint, region, profile, time limits), the same for s3fs and Lance.

Credentials come from the environment, a profile or a role. Each process looks them up where it uses them; they are
never stored or sent.
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
from lorif_core.storage.faults import STORE_ERRORS, explain, is_access_denied, remember_secrets

# with these limits and retries, an operation on a store that does not answer fails after about a minute
_CONNECT_TIMEOUT_SECONDS = 5
_READ_TIMEOUT_SECONDS = 6
_BOTOCORE_ATTEMPTS = 2
_S3FS_ATTEMPTS = 4  # for errors that botocore does not retry, such as a truncated body
_LANCE_LIMITS = {
    "connect_timeout": f"{_CONNECT_TIMEOUT_SECONDS}s",
    "timeout": "10s",  # of a request including its body
    "client_max_retries": "4",
    "client_retry_timeout": "25",
}
_CREDENTIALS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")


def s3_filesystem(storage: StorageConfig) -> S3FileSystem:
    """The s3fs file system for the store; calls with the same settings share one instance per process.

    Raises:
        UserError: the endpoint is not encrypted and `allow_http` is not set, or the profile does not exist.
    """
    endpoint = resolve_endpoint(storage)
    settings, region = {"endpoint_url": endpoint, "profile": storage.profile}, _region(storage)
    fs = S3FileSystem(
        client_kwargs={"region_name": region} if region else {},
        config_kwargs={
            "connect_timeout": _CONNECT_TIMEOUT_SECONDS,
            "read_timeout": _READ_TIMEOUT_SECONDS,
            "retries": {"total_max_attempts": _BOTOCORE_ATTEMPTS, "mode": "standard"},
        },
        use_listings_cache=False,  # a cached listing would hide that a file has changed
        **{key: value for key, value in settings.items() if value is not None},
    )
    fs.retries = _S3FS_ATTEMPTS
    return fs


def lance_options(storage: StorageConfig) -> dict[str, str]:
    """Storage options for Lance. Of its names for the endpoint, only `aws_endpoint` overrides the environment."""
    endpoint = resolve_endpoint(storage)
    options = {
        **_LANCE_LIMITS,
        "aws_endpoint": endpoint,
        "aws_region": _region(storage),
        "allow_http": "true" if endpoint is not None and endpoint.startswith("http://") else None,
        **_profile_credentials(storage),
    }
    return {key: value for key, value in options.items() if value is not None}


def resolve_endpoint(storage: StorageConfig) -> str | None:
    """The endpoint from the storage section, else the environment, else the profile; None means AWS itself.

    Raises:
        UserError: the endpoint is not a URL, uses plain http without `allow_http`, or contains credentials.
    """
    variables = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    name, endpoint = next(
        ((name, os.environ[name]) for name in variables if os.environ.get(name)),
        ("endpoint_url of the profile", _profile_setting(storage, "endpoint_url")),
    )
    if storage.endpoint is not None:
        name, endpoint = "storage.endpoint", storage.endpoint
    if endpoint is None:
        return None
    url = urlsplit(check_endpoint(endpoint, name))
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UserError(f"{name} = {endpoint} is not a URL; write it as https://host:port")
    allow_http = storage.allow_http or os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true"
    if url.scheme == "http" and not allow_http:
        raise UserError(f"{name} = {endpoint} is not encrypted; use https:// or set storage.allow_http=true")
    return endpoint


_known_buckets: set[tuple[str, StorageConfig]] = set()


def require_bucket(uri: str, bucket: str, storage: StorageConfig) -> None:
    """Check a bucket once per process, with a list request: its errors carry a cause, others only an HTTP status.

    Raises:
        UserError: endpoint, credentials, bucket name or region are wrong, or the bucket does not exist.
        StoreUnavailableError: the store keeps failing.
    """
    if (bucket, storage) in _known_buckets:
        return
    try:
        response = s3_filesystem(storage).call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
    except PermissionError as error:
        if isinstance(explained := explain(error, uri), UserError) and not is_access_denied(error):
            raise explained from None
        response = {"Name": bucket}  # credentials that may not list may still read or write
    except (*STORE_ERRORS, ValueError) as error:
        raise explain(error, uri) from None
    if "Name" not in response and "KeyCount" not in response:
        raise UserError(
            f"{uri}: the server at {resolve_endpoint(storage)} does not speak S3; check storage.endpoint"
        )
    actual = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region")
    configured = _region(storage)
    if actual and configured and actual != configured and resolve_endpoint(storage) is None:
        raise UserError(f"{uri} is in the region {actual}, not in {configured}; set storage.region={actual}")
    _known_buckets.add((bucket, storage))


def _region(storage: StorageConfig) -> str | None:
    """The region from the storage section, else the environment, else the profile."""
    variables = (os.environ.get("AWS_REGION"), os.environ.get("AWS_DEFAULT_REGION"))
    return next(filter(None, (storage.region, *variables)), None) or _profile_setting(storage, "region")


def _profile_setting(storage: StorageConfig, key: str) -> str | None:
    """A setting of the profile in the AWS configuration files."""
    try:
        settings = _session(storage.profile).get_scoped_config()
    except ProfileNotFound as error:
        raise explain(error, storage.profile or os.environ.get("AWS_PROFILE", "the store")) from None
    remember_secrets(settings.get(name) for name in _CREDENTIALS)
    return settings.get(key)


def _profile_credentials(storage: StorageConfig) -> dict[str, str | None]:
    """Credentials of `storage.profile`, because Lance reads only the profile named in the environment."""
    if storage.profile is None:
        return {}
    try:
        credentials = _session(storage.profile).get_credentials()
        frozen = None if credentials is None else credentials.get_frozen_credentials()
    except BotoCoreError as error:
        raise explain(error, f"the profile {storage.profile}") from None
    if frozen is None:
        raise UserError(f"the profile {storage.profile} has no credentials; add them or use another profile")
    values = (frozen.access_key, frozen.secret_key, frozen.token)
    remember_secrets(values)
    return dict(zip(_CREDENTIALS, values, strict=True))


@lru_cache(maxsize=8)
def _session(profile: str | None) -> Any:
    return botocore.session.Session(profile=profile)
