"""Scripts of deploy/ pass shellcheck."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHEBANGS = (b"#!/bin/sh\n", b"#!/bin/bash\n", b"#!/usr/bin/env bash\n")
SCRIPTS = sorted(
    path for path in (ROOT / "deploy").rglob("*") if path.is_file() and path.read_bytes().startswith(SHEBANGS)
)


def test_the_scripts_are_found() -> None:
    assert {"debian-packages.sh", "labda"} <= {path.name for path in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    said = subprocess.run(
        [ROOT / ".venv" / "bin" / "shellcheck", "--external-sources", script], capture_output=True, text=True,
        check=False,
    )
    assert said.returncode == 0, said.stdout
