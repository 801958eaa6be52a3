"""CNI's configurations, and what a chain of plugins is told. Plugins here are shell scripts; elsewhere real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kata.errors import FailedPrecondition, InvalidArgument, NotFound
from kata.runtime.network import cni
from kata.runtime.network.cni import ConfList

#: Writes down what it is told, and answers with an address.
PLUGIN = """\
#!/bin/sh
cat >$0.$CNI_COMMAND.input
echo "$(basename $0) $CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME" >>$(dirname $0)/calls
[ -e $0.fails ] && {{ echo '{{"code": 7, "msg": "no", "details": "more"}}'; exit 1; }}
[ $CNI_COMMAND = ADD ] && echo '{{"ips": [{{"address": "10.0.0.{number}/24"}}], "dns": {{"nameservers": ["1.1.1.1"]}}}}'
exit 0
"""


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    directory = tmp_path / "plugins"
    directory.mkdir()
    for number, name in enumerate(("first", "second"), 1):
        (directory / name).write_text(PLUGIN.format(number=number))
        (directory / name).chmod(0o755)
    return directory


NETWORK = ConfList("net", "1.0.0", ({"type": "first", "mtu": 1400}, {"type": "second"}))


def calls(plugins: Path) -> list[str]:
    return (plugins / "calls").read_text().splitlines()


def test_a_chain_adds_forwards_and_deletes_backwards(plugins: Path, tmp_path: Path) -> None:
    record, netns = tmp_path / "record", tmp_path / "netns"
    netns.touch()
    added = cni.add(NETWORK, "box", str(netns), record, (str(plugins),))
    assert added == cni.Added(("10.0.0.2",), ("1.1.1.1",))
    first = json.loads((plugins / "first.ADD.input").read_text())
    assert first == {"type": "first", "mtu": 1400, "name": "net", "cniVersion": "1.0.0"}
    second = json.loads((plugins / "second.ADD.input").read_text())
    assert second["prevResult"]["ips"] == [{"address": "10.0.0.1/24"}]
    netns.unlink()
    cni.delete(record)
    cni.delete(record)
    where = f"{netns} eth0"
    assert calls(plugins) == [
        f"first ADD box {where}", f"second ADD box {where}", "second DEL box  eth0", "first DEL box  eth0"
    ]  # fmt: skip
    assert json.loads((plugins / "first.DEL.input").read_text())["prevResult"]["ips"] == [{"address": "10.0.0.2/24"}]


def test_what_a_plugin_says_is_told_and_all_is_deleted(plugins: Path, tmp_path: Path) -> None:
    (plugins / "second.fails").touch()
    record = tmp_path / "record"
    with pytest.raises(FailedPrecondition, match="CNI plugin second, ADD of box to network net: no: more"):
        cni.add(NETWORK, "box", "/gone", record, (str(plugins),))
    with pytest.raises(FailedPrecondition, match="DEL of box"):
        cni.delete(record)
    assert record.exists(), "for the next try"
    (plugins / "second.fails").unlink()
    cni.delete(record)
    assert [line.split()[:2] for line in calls(plugins)][-2:] == [["second", "DEL"], ["first", "DEL"]]


def test_a_plugin_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=f"plugin not found in {tmp_path}"):
        cni.add(NETWORK, "box", "/gone", tmp_path / "record", (str(tmp_path),))


def test_networks_by_their_names(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        cni.find("net", tmp_path / "nothing")
    assert "has no networks" in str(caught.value.hint)
    (tmp_path / "20-b.conf").write_text('{"name": "single", "type": "macvlan"}')
    (tmp_path / "30-b.conflist").write_text('{"name": "net", "plugins": [{"type": "late"}]}')
    (tmp_path / "10-a.conflist").write_text('{"name": "net", "cniVersion": "1.0.0", "plugins": [{"type": "early"}]}')
    (tmp_path / "00-broken.conflist").write_text("{")
    (tmp_path / "notes.txt").write_text("x")
    assert cni.find("net", tmp_path) == ConfList("net", "1.0.0", ({"type": "early"},)), "the first file counts"
    assert cni.find("single", tmp_path).plugins == ({"name": "single", "type": "macvlan"},)
    with pytest.raises(NotFound) as caught:
        cni.find("other", tmp_path)
    assert "net, single" in str(caught.value.hint) or "single, net" in str(caught.value.hint)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"name": "x"}', '{"name": "x", "plugins": []}', '{"name": "x", "type": "../sh"}',
             '{"name": "x", "plugins": [1]}', '{"name": "x", "plugins": [{"type": 1}]}'],
)  # fmt: skip
def test_what_is_no_configuration(text: str) -> None:
    with pytest.raises(InvalidArgument, match="malformed network configuration"):
        cni.parse(text)


@pytest.mark.parametrize("said", ["{", "[1]", '["ab"]', "[" * 100_000, "9" * 5000])
def test_what_is_no_result(said: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        cni.result(said)


def test_no_result_is_one() -> None:
    assert cni.result(" \n") == {}
    assert cni.result('{"ips": []}') == {"ips": []}
