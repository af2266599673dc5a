"""Keys that everybody knows: refused where others than this host can reach the endpoint.

Owns the list. Refuses to know where keys are kept.
"""

from collections.abc import Iterable

from chassis.addresses import is_loopback

from .keys import AccessKey

WELL_KNOWN_KEY_IDS = frozenset({
    "AKIAIOSFODNN7EXAMPLE", "AKIAI44QH8DHBEXAMPLE", "ASIAIOSFODNN7EXAMPLE", "AKIDEXAMPLE", "test",
})
WELL_KNOWN_SECRETS = frozenset({
    "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "je7MtGbClwBF/2Zp9Utk/h3yCo8nvbEXAMPLEKEY",
    "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "test", "testing", "secret", "dummy", "fake", "foo", "bar", "x", "xxx",
    "password", "localstack", "minioadmin", "mock", "none", "accesskey", "secretkey", "secret_key",
})


class WellKnownSecret(Exception):
    """A key that everybody knows would be served on an address that others can reach."""


def refuse_well_known(listen: str, keys: Iterable[AccessKey]) -> None:
    """Raise WellKnownSecret if a listed key is public knowledge and ``listen`` (host:port) isn't on loopback."""
    if is_loopback(listen):
        return
    for key in keys:
        if is_well_known(key):
            raise WellKnownSecret(
                f"access key {key.key_id} of account {key.account} has a well-known id or secret, and {listen} "
                "can be reached by others: listen on 127.0.0.1, or delete that key and make a new one"
            )


def is_well_known(key: AccessKey) -> bool:
    return (
        key.key_id in WELL_KNOWN_KEY_IDS
        or key.secret.lower() in {secret.lower() for secret in WELL_KNOWN_SECRETS}
        or key.secret in {key.key_id, key.account}
        or key.secret.endswith("EXAMPLEKEY")
    )
