"""A key-encryption key in AWS KMS, asked with boto3 (extra ``aws``).

Written ``id:aws-kms://region/key`` in the key list; ``key`` is a key id, ``alias/name``, or an ARN. KMS is told at each
unwrapping which key it has to be, so an alias that is moved to another key opens nothing more. The credentials are
boto3's own business: a role of the machine or pod, a profile, variables. What is wrapped is KMS's ciphertext, bound to
ring and data key id by its encryption context, which CloudTrail shows.

Promise: what KMS says of a ciphertext is an :class:`EnvelopeError`, everything else is :class:`KeyServiceUnavailable`
in one sentence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, Self

from tokenfleet_client.envelope import Ring, not_wrapped_by
from tokenfleet_client.errors import KeyMaterialError, KeyServiceUnavailable

SCHEME: Final = "aws-kms"
TIMEOUT_SECONDS: Final = 5.0
_ADDRESS: Final = re.compile(r"aws-kms://(?P<region>[a-z0-9-]+)/(?P<key>[A-Za-z0-9:/_-]+)")
_OF_THE_CIPHERTEXT: Final = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})


@dataclass(frozen=True, slots=True)
class AwsKmsKey:
    """One symmetric key of one region."""

    key_id: str
    region: str
    name: str

    @classmethod
    def parse(cls, key_id: str, url: str) -> Self:
        """Read ``aws-kms://region/key``. Raises :class:`KeyMaterialError`, also when the extra is not installed."""
        found = _ADDRESS.fullmatch(url)
        if found is None:
            raise KeyMaterialError(
                f"key {key_id!r} must be written {key_id}:aws-kms://region/key, with a key id, alias/name or ARN"
            )
        from importlib.util import find_spec

        if find_spec("boto3") is None:
            raise KeyMaterialError(f"key {key_id!r} is in AWS KMS: install tokenfleet with its extra 'aws'")
        return cls(key_id, found["region"], found["key"])

    def wrap(self, data_key: bytes, ring: Ring, data_key_id: int) -> bytes:
        """Return KMS's ciphertext of ``data_key``. Raises :class:`KeyServiceUnavailable`."""
        answer = self._ask("encrypt", Plaintext=data_key, EncryptionContext=_context(ring, data_key_id))
        if answer is None:
            raise self._unavailable("did not wrap the data key")
        return bytes(answer["CiphertextBlob"])

    def unwrap(self, wrapped: bytes, ring: Ring, data_key_id: int) -> bytes:
        """Return the data key. Raises :class:`EnvelopeError` and :class:`KeyServiceUnavailable`."""
        answer = self._ask("decrypt", CiphertextBlob=wrapped, EncryptionContext=_context(ring, data_key_id))
        if answer is None:
            raise not_wrapped_by(self.key_id, ring, data_key_id)
        return bytes(answer["Plaintext"])

    def is_outdated(self, wrapped: bytes) -> bool:
        """Answer False: KMS rotates behind one key, and does not show it."""
        return False

    def _ask(self, operation: str, **arguments: Any) -> Any:
        """Return KMS's answer; None when it refuses the ciphertext."""
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        config = Config(
            connect_timeout=TIMEOUT_SECONDS,
            read_timeout=TIMEOUT_SECONDS,
            retries={"total_max_attempts": 2, "mode": "standard"},
        )
        try:
            client = boto3.session.Session(region_name=self.region).client("kms", config=config)
            return getattr(client, operation)(KeyId=self.name, **arguments)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", "unknown"))
            if code in _OF_THE_CIPHERTEXT:
                return None
            raise self._unavailable(f"refuses kms:{operation.capitalize()} ({code})") from error
        except BotoCoreError as error:
            raise self._unavailable(f"cannot be asked ({type(error).__name__})") from error

    def _unavailable(self, what: str) -> KeyServiceUnavailable:
        return KeyServiceUnavailable(f"AWS KMS in {self.region}, which keeps key {self.key_id!r}, {what}")


def _context(ring: Ring, data_key_id: int) -> dict[str, str]:
    return {"tokenfleet:ring": ring.value, "tokenfleet:data-key": str(data_key_id)}
