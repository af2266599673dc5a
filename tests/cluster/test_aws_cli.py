"""The AWS CLI from PyPI, with what ``labda env`` prints and nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.cluster import ROLE, RUNTIME, archive

AWS = Path(sys.executable).parent / "aws"


@pytest.fixture
def aws(cluster, tmp_path):
    """Runs ``aws lambda ...`` in a home that knows no other account."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **cluster.environment()}

    def run(*arguments: str):
        return subprocess.run(
            [AWS, "--output", "json", "lambda", *arguments], env=environment, capture_output=True, text=True,
            timeout=60, check=False, stdin=subprocess.DEVNULL,
        )

    return run


def test_create_wait_invoke_list_delete(aws, tmp_path):
    (tmp_path / "code.zip").write_bytes(archive({"app.py": "def handler(event, context):\n    return event\n"}))
    made = aws("create-function", "--function-name", "from-cli", "--runtime", RUNTIME, "--role", ROLE,
               "--handler", "app.handler", "--zip-file", f"fileb://{tmp_path / 'code.zip'}")
    assert made.returncode == 0, made.stderr
    try:
        assert aws("wait", "function-active-v2", "--function-name", "from-cli").returncode == 0
        ran = aws("invoke", "--function-name", "from-cli", "--cli-binary-format", "raw-in-base64-out",
                  "--payload", '{"a": 1}', str(tmp_path / "out.json"))
        if ran.returncode != 0 and "cli-binary-format" in ran.stderr:  # version 1 of the CLI takes text as it is
            ran = aws("invoke", "--function-name", "from-cli", "--payload", '{"a": 1}', str(tmp_path / "out.json"))
        assert ran.returncode == 0, ran.stderr
        assert json.loads(ran.stdout)["StatusCode"] == 200
        assert json.loads((tmp_path / "out.json").read_text()) == {"a": 1}
        listed = json.loads(aws("list-functions").stdout)["Functions"]
        assert "from-cli" in [found["FunctionName"] for found in listed]
        assert json.loads(aws("get-account-settings").stdout)["AccountLimit"]["ConcurrentExecutions"] == 1000
    finally:
        assert aws("delete-function", "--function-name", "from-cli").returncode == 0


def test_an_error_reads_as_on_aws(aws):
    said = aws("get-function", "--function-name", "nothing")
    assert said.returncode != 0
    assert "ResourceNotFoundException" in said.stderr
    assert "Function not found: arn:aws:lambda:us-east-1:000000000000:function:nothing" in said.stderr
