"""What a reader is pointed to is there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")     # relative ones
FOLDERS = [page.parent for pattern in ("[a-z]*", "[a-z]*/[a-z]*") for page in ROOT.glob(f"{pattern}/README.md")]
PAGES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(folder / "README.md" for folder in FOLDERS)]


def links(page: Path) -> list[Path]:
    return [(page.parent / target).resolve() for target in LINK.findall(page.read_text())]


def test_every_relative_link_leads_somewhere():
    assert len(PAGES) > 50
    assert [(page, target) for page in PAGES for target in links(page) if not target.exists()] == []


def test_every_readme_is_linked_from_somewhere():
    linked = {target for page in PAGES for target in links(page) if target != page}
    assert {folder / "README.md" for folder in FOLDERS} - linked == set()


def test_every_decision_is_in_their_index():
    folder = ROOT / "docs" / "decisions"
    assert set(links(folder / "README.md")) == set(folder.glob("0*.md"))
