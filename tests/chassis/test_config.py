"""Configuration files: round trip, and errors that name field, value and what is allowed."""

from dataclasses import dataclass, field

import pytest

from chassis.certificates import TlsFiles
from chassis.config import ConfigFault, NodeConfig, dump, load


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    node: NodeConfig
    beat_s: float = 0.25
    grace_s: float = 3.0
    peers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.beat_s * 3 >= self.grace_s:
            raise ValueError(f"beat_s ({self.beat_s}) must be less than a third of grace_s ({self.grace_s})")


NODE = NodeConfig(
    service="worker", node='odd "name"\n', az="az1", host="h", listen="127.0.0.1:0", placement=("a:1", "b:2"),
    tls=TlsFiles(authority="a", certificate="b", key="c"),
)


def test_dump_and_load_are_inverse(tmp_path):
    sample = Sample(node=NODE, peers={"counting-az1": "127.0.0.1:5", "x.y": "z"})
    path = tmp_path / "c.toml"
    path.write_text(dump(sample))
    assert load(Sample, path) == sample


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda text: text.replace("beat_s = 0.25", 'beat_s = "soon"'), "beat_s is 'soon', float is needed"),
        (lambda text: text.replace("beat_s = 0.25", "beat_s = 2"), "less than a third of grace_s"),
        (lambda text: text.replace("beat_s", "beats"), "beats is not a setting"),
        (lambda text: text.replace('host = "h"', ""), "node.host is missing"),
        (lambda text: text.replace('["a:1", "b:2"]', '["a:1", 2]'), r"node.placement\[1\] is 2"),
        (lambda text: text + "=", "is not TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, edit, says):
    path = tmp_path / "c.toml"
    path.write_text(edit(dump(Sample(node=NODE))))
    with pytest.raises(ConfigFault, match=says):
        load(Sample, path)
