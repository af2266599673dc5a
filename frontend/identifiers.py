"""Function names and ARNs: the forms that clients may write, and what they name.

Owns taking a name apart, the order of judgements of reference section 1.3, and building ARNs. Refuses to know which
functions exist.
"""

import re
from dataclasses import dataclass

from frontend.api.errors import ApiError, invalid_parameter

LATEST = "$LATEST"
PARTITION = "aws"
NAME_CHARACTERS_MAX = 64

_FUNCTION = re.compile(
    r"(?:arn:(?:aws[a-zA-Z-]*)?:lambda:)?"
    r"(?:(?P<region>(?:eusc-)?[a-z]{2}(?:-gov|-iso[a-z]?)?-[a-z]+-\d):)?"
    r"(?:(?P<account>\d{12}):)?(?:function:)?"
    r"(?P<name>[a-zA-Z0-9_.-]+)(?::(?P<qualifier>\$LATEST(?:\.PUBLISHED)?|[a-zA-Z0-9_-]+))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A function as a request names it. ``qualifier`` is exactly what was asked for, None when nothing was."""

    region: str
    account: str
    name: str
    qualifier: str | None

    @property
    def arn(self) -> str:
        """The ARN as asked: with the qualifier if one was given."""
        return function_arn(self.region, self.account, self.name, self.qualifier)

    @property
    def unqualified_arn(self) -> str:
        return function_arn(self.region, self.account, self.name)

    @property
    def latest(self) -> bool:
        """Whether the mutable version is meant."""
        return self.qualifier is None or self.qualifier == LATEST


def function_arn(region: str, account: str, name: str, qualifier: str | None = None) -> str:
    arn = f"arn:{PARTITION}:lambda:{region}:{account}:function:{name}"
    return arn if qualifier is None else f"{arn}:{qualifier}"


def resolve(text: str, qualifier: str | None, *, account: str, region: str, action: str) -> Target:
    """What ``text`` (any accepted form) and the ``Qualifier`` of a caller of ``account`` name.

    Raises ApiError in the order of section 1.3: another account (nobody's policy allows it: 403), another region (404),
    two different qualifiers (400). ``text`` has already passed the model's pattern.
    """
    match = _FUNCTION.fullmatch(text)
    if match is None:
        raise invalid_parameter(f"The function name {text} is not a name, a partial ARN or an ARN of a function.")
    owner = match["account"] or account
    asked_region = match["region"] or region
    name, inner = match["name"], match["qualifier"]
    if owner != account:
        raise denied(account, action, function_arn(asked_region, owner, name, inner or qualifier))
    if asked_region != region:
        raise ApiError(
            "ResourceNotFoundException",
            404,
            f"Functions from '{asked_region}' are not reachable in this region ('{region}')",
        )
    if inner is not None and qualifier is not None and inner != qualifier:
        raise invalid_parameter(
            "The derived qualifier from the function name does not match the specified qualifier."
        )
    return Target(region=region, account=account, name=name, qualifier=inner or qualifier)


def denied(account: str, action: str, resource: str) -> ApiError:
    """An account never sees another's functions: without a policy there, nothing allows it."""
    return ApiError(
        "AccessDeniedException",
        403,
        f"User: arn:{PARTITION}:iam::{account}:root is not authorized to perform: lambda:{action} on resource: "
        f"{resource} because no resource-based policy allows the lambda:{action} action",
    )
