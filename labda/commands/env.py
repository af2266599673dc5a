"""``labda env``: ``eval "$(labda env)"`` makes any AWS client use the cluster."""

import argparse
import shlex
import sys

from labda.refusal import Status
from labda.state import State


def arguments(parser: argparse.ArgumentParser) -> None:
    del parser  # nothing but --state


def run(options: argparse.Namespace) -> int:
    for name, value in variables(options.state).items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
    return Status.OK


def variables(state: State) -> dict[str, str]:
    """Endpoint, region and root credentials, as AWS's clients read them. Raises Refusal when no cluster runs."""
    cluster, credentials = state.cluster(), state.credentials()
    found = {
        "AWS_ENDPOINT_URL": cluster["endpoint"],
        "AWS_REGION": cluster["region"],
        "AWS_DEFAULT_REGION": cluster["region"],
        "AWS_ACCESS_KEY_ID": credentials.key_id,
        "AWS_SECRET_ACCESS_KEY": credentials.secret,
        # A session token of a real account would spoil the signature.
        "AWS_SESSION_TOKEN": "",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    if cluster.get("authority"):
        found["AWS_CA_BUNDLE"] = cluster["authority"]
    return found
