"""The codec against botocore's own serialiser and parser, for every operation of the model."""

import base64
import json
import random
from datetime import UTC, datetime
from typing import Any

import botocore.loaders
import botocore.model
import botocore.parsers
import botocore.serialize
import pytest

from frontend.api import codec, model, routes
from frontend.api.errors import ApiError, throttled
from frontend.api.model import Shape
from frontend.api.validation import broken

OURS = model.load()
THEIRS = botocore.model.ServiceModel(botocore.loaders.Loader().load_service_model("lambda", "service-2"), "lambda")
ROUTER = routes.Router(OURS)
MOMENT = datetime(2026, 9, 13, 14, 10, 42, tzinfo=UTC)

# One value per pattern that a generated word doesn't satisfy. A new pattern without one fails by name.
WORDS = [
    "word", "arn:aws:lambda:us-east-1:123456789012:function:name", "arn:aws:iam::123456789012:role/any", "1", "$LATEST",
    "arn:aws:kms:us-east-1:123456789012:key/abc", "/mnt/data", "o-aaaaaaaaaa", "arn:aws:s3:::bucket", "lambda:Invoke",
    "123456789012", "arn:aws:lambda:us-east-1:123456789012:layer:name:1", "subnet-1234", "sg-1234", "/function/x",
    "arn:aws:lambda:us-east-1:123456789012:code-signing-config:csc-12345678901234567", "us-east-1", "arn:aws:sqs:a:b:c",
    "arn:aws:elasticfilesystem:us-east-1:123456789012:access-point/fsap-12345678901234567", "ALL", "vpc-1", "x.fifo",
    "arn:aws:lambda:us-east-1:123456789012:capacity-provider:name", "GET", "m5.large", "/aws/lambda/name", "-1",
    "arn:aws:lambda:us-east-1:123456789012:event-source-mapping:12345678-1234-1234-1234-123456789012", "abc:9092",
    "arn:aws:lambda:us-east-1:123456789012:function:n:1/durable-execution/a/12345678-1234-1234-1234-123456789012",
    "arn:aws:lambda:us-east-1::runtime:" + "a" * 64, "arn:aws:signer:us-east-1:123456789012:/signing-profiles/a/b",
    "arn:aws:lambda:us-east-1:123456789012:layer:name", "arn:aws:secretsmanager:us-east-1:123456789012:secret:a",
    "AAAA", "https://x", "s3://x", "12345678-1234-1234-1234-123456789012", "10.0.0.0/8", "function:name", "a@b.c",
    "csc-12345678901234567", "SomeException", "lambda:GetLayerVersion",
    "arn:aws:lambda:us-east-1:123456789012:runtime/python3.11-build-1",
]


def fits(shape: Shape, word: str) -> bool:
    return not list(broken(shape, word))


def sample(shape: Shape, depth: int = 0) -> Any:
    """A value that satisfies the shape, with every member that isn't too deep."""
    match shape.kind:
        case "structure":
            names = shape.required if depth > 4 else tuple(shape.members)
            return {name: sample(shape.members[name].shape, depth + 1) for name in names}
        case "list":
            assert shape.element is not None
            count = max(1, int(shape.minimum or 0))
            return [sample(shape.element.shape, depth + 1)] * count
        case "map":
            assert shape.key is not None
            assert shape.element is not None
            return {sample(shape.key.shape): sample(shape.element.shape, depth + 1)}
        case "string":
            return word_for(shape)
        case "integer" | "long":
            return int(shape.minimum if shape.minimum is not None else 7)
        case "double" | "float":
            return (shape.minimum or 0) + 0.5
        case "boolean":
            return True
        case "blob":
            return b"\x00\xffbytes"
        case "timestamp":
            return MOMENT


def word_for(shape: Shape) -> str:
    if shape.enum:
        return shape.enum[0]
    for word in [*WORDS, "a" * 40]:
        if fits(shape, word):
            return word
    pytest.fail(f"no word satisfies {shape.name}: {shape.pattern} {shape.minimum} {shape.maximum}")


@pytest.mark.parametrize("name", sorted(OURS.operations))
def test_requests_of_botocore_are_parsed_as_they_were_given(name: str) -> None:
    operation = OURS.operations[name]
    given = sample(operation.request) if operation.request else {}
    serialiser = botocore.serialize.create_serializer("rest-json", include_validation=True)
    sent = serialiser.serialize_to_request(given, THEIRS.operation_model(name))
    path, _, literal = sent["url_path"].partition("?")
    query = routes.query_pairs(literal.encode())
    for key, value in sent["query_string"].items():
        query += [(key, item) for item in (value if isinstance(value, list) else [value])]
    body = sent["body"]
    body = body.encode() if isinstance(body, str) else bytes(body)
    route = ROUTER.find(sent["method"], path.encode(), query)
    assert route is not None
    assert route.operation is operation
    headers = {key.lower(): value for key, value in sent["headers"].items()}
    assert codec.parse(operation, route.labels, query, headers, body) == given


@pytest.mark.parametrize("name", sorted(OURS.operations))
def test_our_results_are_read_by_botocore_as_they_were_given(name: str) -> None:
    operation = OURS.operations[name]
    if operation.response is None:
        assert codec.serialise(operation, {}).body in {b"", b"{}"}
        return
    if name == "InvokeWithResponseStream":
        pytest.skip("an event stream is not a document: it has an encoder of its own, when the operation is there")
    given = sample(operation.response)
    status = operation.status
    for member in operation.response.members.values():
        if member.location == "statusCode":
            given[member.name] = status
    if status == 204:
        pytest.skip("an answer without a body")
    if operation.response.payload is not None:
        given[operation.response.payload] = b"botocore reads what isn't a stream as text"
    encoded = codec.serialise(operation, given)
    headers = {key.decode(): value.decode() for key, value in encoded.headers}
    read = botocore.parsers.create_parser("rest-json").parse(
        {"status_code": encoded.status, "headers": CaseBlind(headers), "body": encoded.body},
        THEIRS.operation_model(name).output_shape,
    )
    read.pop("ResponseMetadata")
    assert readable(read) == given


class CaseBlind(dict[str, str]):
    """Header names as botocore's own dictionary treats them."""

    def __init__(self, headers: dict[str, str]) -> None:
        super().__init__({key.lower(): value for key, value in headers.items()})

    def __contains__(self, key: object) -> bool:
        return super().__contains__(str(key).lower())

    def __getitem__(self, key: str) -> str:
        return super().__getitem__(key.lower())

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(key.lower(), default)


def readable(value: Any) -> Any:
    """The payload as bytes again."""
    if isinstance(value, dict):
        return {key: readable(item) for key, item in value.items()}
    return value.encode() if isinstance(value, str) and value.startswith("botocore reads") else value


@pytest.mark.parametrize("code", sorted(OURS.errors))
def test_our_errors_are_read_by_botocore(code: str) -> None:
    shape = OURS.errors[code]
    assert shape.status is not None
    encoded = codec.serialise_error(OURS, ApiError(code, shape.status, "what was wrong", detail={"limit": 1}))
    document = json.loads(encoded.body)
    assert document["Type"] == ("User" if shape.status < 500 else "Service")
    assert document["Detail"] == {"limit": 1}
    assert {"message", "Message"} & document.keys() == {"message", "Message"} & shape.members.keys()
    headers = {key.decode(): value.decode() for key, value in encoded.headers}
    read = botocore.parsers.create_parser("rest-json").parse(
        {"status_code": encoded.status, "headers": CaseBlind(headers), "body": encoded.body},
        THEIRS.operation_model("Invoke").output_shape,
    )
    assert read["Error"] == {"Code": code, "Message": "what was wrong"}


def test_a_throttle_has_reason_and_retry_after() -> None:
    encoded = codec.serialise_error(
        OURS, throttled("ConcurrentInvocationLimitExceeded", detail={"limit": 1000}, retry_after_s=2)
    )
    assert (b"retry-after", b"2") in encoded.headers
    assert json.loads(encoded.body) == {
        "Type": "User",
        "Reason": "ConcurrentInvocationLimitExceeded",
        "message": "Rate Exceeded.",
        "Detail": {"limit": 1000},
    }


def parse(name: str, body: Any, **labels: str) -> dict[str, Any]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return codec.parse(OURS.operations[name], labels, [], {}, raw)


def create(**changes: Any) -> dict[str, Any]:
    return {
        "FunctionName": "f",
        "Role": "arn:aws:iam::123456789012:role/r",
        "Code": {"ZipFile": base64.b64encode(b"zip").decode()},
        **changes,
    }


FAILED = "failed to satisfy constraint:"
SENTENCES: list[tuple[dict[str, Any], str]] = [
    ({"Timeout": 901}, f"Value '901' at 'timeout' {FAILED} Member must have value less than or equal to 900"),
    ({"MemorySize": 64}, f"Value '64' at 'memorySize' {FAILED} Member must have value greater than or equal to 128"),
    (
        {"Handler": "a b"},
        rf"Value 'a b' at 'handler' {FAILED} Member must satisfy regular expression pattern: [^\s]+",
    ),
    (
        {"PackageType": "Tar"},
        f"Value 'Tar' at 'packageType' {FAILED} Member must satisfy enum value set: [Zip, Image]",
    ),
    (
        {"Architectures": ["x86"]},
        (
            f"Value '[x86]' at 'architectures' {FAILED} "
            "Member must satisfy constraint: [Member must satisfy enum value set: [x86_64, arm64]]"
        ),
    ),
    (
        {"Tags": {"a" * 129: "v"}},
        (
            f"Value '{{{'a' * 129}=v}}' at 'tags' {FAILED} Map keys must satisfy constraint: "
            "[Member must have length less than or equal to 128, Member must have length greater than or equal to 1, "
            r"Member must satisfy regular expression pattern: ([\p{L}\p{Z}\p{N}_.:/=+\-@]*)]"
        ),
    ),
    (
        {"Environment": {"Variables": {"1A": "secret"}}},
        (
            f"Value at 'environment.variables' {FAILED} Map keys must satisfy constraint: "
            "[Member must satisfy regular expression pattern: [a-zA-Z]([a-zA-Z0-9_])+]"
        ),
    ),
    ({"EphemeralStorage": {}}, f"Value null at 'ephemeralStorage.size' {FAILED} Member must not be null"),
    (
        {"SnapStart": {"ApplyOn": "Always"}},
        (
            f"Value 'Always' at 'snapStart.applyOn' {FAILED} "
            "Member must satisfy enum value set: [PublishedVersions, None]"
        ),
    ),
]


@pytest.mark.parametrize(("changes", "sentence"), SENTENCES, ids=[next(iter(c)) for c, _ in SENTENCES])
def test_violations_have_aws_sentences(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse("CreateFunction", create(**changes))
    assert (caught.value.code, caught.value.status) == ("ValidationException", 400)
    assert caught.value.message == f"1 validation error detected: {sentence}"


def test_several_violations_are_counted_and_joined() -> None:
    with pytest.raises(ApiError) as caught:
        parse("CreateFunction", create(Timeout=0, Role=None))
    message = caught.value.message or ""
    assert message.startswith("2 validation errors detected: Value null at 'role' failed")
    assert "; Value '0' at 'timeout' failed" in message


def test_letters_of_all_scripts_are_allowed_in_tags_and_controls_are_not() -> None:
    assert parse("CreateFunction", create(Tags={"größe": "大 1"}))["Tags"] == {"größe": "大 1"}
    with pytest.raises(ApiError):
        parse("CreateFunction", create(Tags={"a\n": "b"}))


@pytest.mark.parametrize(
    ("sent", "kept"),
    [(1.9, 1), (-0.5, 0), (2**40, 2**31 - 1), (1e300, 2**31 - 1)],
)
def test_numbers_are_cut_and_saturate(sent: float, kept: int) -> None:
    parsed = parse("PutFunctionConcurrency", {"ReservedConcurrentExecutions": sent}, FunctionName="f")
    assert parsed["ReservedConcurrentExecutions"] == kept


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Timeout": "3"}, "STRING_VALUE can not be converted to an Integer"),
        ({"Handler": 3}, "NUMBER_VALUE can not be converted to a String"),
        ({"Publish": "yes"}, "STRING_VALUE can not be converted to a Boolean"),
        ({"Timeout": {"a": 1}}, "Start of structure or map found where not expected."),
        ({"Layers": "x"}, "STRING_VALUE can not be converted to a List"),
        ({"Code": {"ZipFile": "%%%"}}, "A blob of the request is not base64"),
    ],
)
def test_wrong_types_are_serialization_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse("CreateFunction", create(**changes))
    assert (caught.value.code, caught.value.message) == ("SerializationException", message)


@pytest.mark.parametrize(("changes", "field"), [
    ({"Timeout": "3"}, "Timeout"), ({"Code": {"ZipFile": "%%%"}}, "Code.ZipFile"), ({"Layers": [3]}, "Layers"),
    ({"Environment": {"Variables": {"KEY": 3}}}, "Environment.Variables.KEY"), ({"Tags": {"a": []}}, "Tags.a"),
], ids=str)
def test_a_wrong_type_is_told_with_its_field(changes: dict[str, Any], field: str) -> None:
    """AWS's message names none."""
    with pytest.raises(ApiError) as caught:
        parse("CreateFunction", create(**changes))
    assert caught.value.detail == {"field": field}


def test_a_wrong_type_in_the_query_is_told_with_its_field() -> None:
    with pytest.raises(ApiError) as caught:
        codec.parse(OURS.operations["ListFunctions"], {}, [("MaxItems", "many")], {}, b"")
    assert (caught.value.code, caught.value.detail) == ("SerializationException", {"field": "MaxItems"})


@pytest.mark.parametrize(("changes", "field"), [
    ({"Description": "\ud800"}, "Description"), ({"Environment": {"Variables": {"KEY": "a\udfff"}}},
    "Environment.Variables.KEY"), ({"Tags": {"a": "\ud800"}}, "Tags.a"), ({"Tags": {"\ud800": "a"}}, "Tags.?"),
], ids=ascii)
def test_half_a_surrogate_pair_is_no_character(changes: dict[str, Any], field: str) -> None:
    """JSON has escapes for it; kept, no answer could be written that has it."""
    with pytest.raises(ApiError) as caught:
        parse("CreateFunction", create(**changes))
    assert (caught.value.code, caught.value.detail) == ("SerializationException", {"field": field})


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_body_that_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse("CreateFunction", body)
    assert caught.value.code == "InvalidRequestContentException"


def test_an_unknown_member_of_a_result_is_a_bug() -> None:
    with pytest.raises(KeyError):
        codec.serialise(OURS.operations["GetFunctionConcurrency"], {"Invented": 1})


def test_base64_is_at_least_as_strict_as_the_librarys_strict_mode() -> None:
    rng = random.Random(11)
    refused = 0
    for _ in range(5000):
        text = "".join(rng.choices("AZaz09+/==-\n ", k=rng.randrange(13)))
        try:
            found = codec.from_json(OURS.shapes["Blob"], text)
        except ApiError:
            refused += 1
        else:
            assert found == base64.b64decode(text, validate=True), text
    assert 0 < refused < 5000
    for size in range(20):
        data = rng.randbytes(size)
        assert codec.from_json(OURS.shapes["Blob"], base64.b64encode(data).decode()) == data


@pytest.mark.parametrize("more", ["AAA", "AA\nA", "AA==AAAA", "A===", "=AAA", "AAAA%AAA"])
def test_a_large_blob_is_decoded_in_steps_and_as_strictly(more: str) -> None:
    step = "A" * codec.BLOB_STEP
    data = random.Random(12).randbytes(2 * codec.BLOB_STEP + 1)
    assert codec.from_json(OURS.shapes["Blob"], base64.b64encode(data).decode()) == data
    for text in (step + more, step[:-len(more)] + more, step[:-len(more)] + more + "AAAA"):
        try:
            expected = base64.b64decode(text, validate=True)
        except ValueError:
            with pytest.raises(ApiError):
                codec.from_json(OURS.shapes["Blob"], text)
        else:
            assert codec.from_json(OURS.shapes["Blob"], text) == expected
