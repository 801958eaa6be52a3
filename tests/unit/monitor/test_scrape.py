"""The metrics of many sandboxes as one answer. The sandboxes are small sockets that answer a real one's text."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from kata.metrics.exposition import label_text
from kata.metrics.table import ALL, GUEST, SANDBOX
from kata.monitor.sandboxes import Sandboxes, owners
from kata.monitor.scrape import Scraper, joined, owned
from tests.support.fakesandboxes import FakeSandbox, metrics_text


async def followed(root: Path) -> Sandboxes:
    """The sandboxes of a directory, as they are found by one look."""
    sandboxes = Sandboxes(root)
    sandboxes.look()
    return sandboxes


async def forget(sandboxes: Sandboxes, root: Path) -> None:
    tasks = list(sandboxes._followers.values())
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_each_family_is_there_once_and_each_sample_has_an_owner() -> None:
    texts = {"a": metrics_text(), "b": metrics_text()}
    labels = {name: label_text({"sandbox_id": name, "cri_name": 'with "quotes"'}) for name in texts}
    text = joined([owned(text.encode(), labels[name])[0] for name, text in texts.items()]).decode()
    heads = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(heads) == len(set(heads))
    assert set(heads) == {*SANDBOX, *GUEST}
    families = {family.name: family for family in text_string_to_metric_families(text)}
    owners = [sample.labels["sandbox_id"] for sample in families["kata_shim_threads"].samples]
    assert owners == ["a", "b"]
    assert families["kata_guest_load"].samples[0].labels["cri_name"] == 'with "quotes"'


def test_a_hostile_text_takes_nothing_from_the_others() -> None:
    hostile = "\n".join(
        [
            'kata_guest_load{sandbox_id="good",item="load1"} 666',
            'kata_guest_load{item="load1"} 1e999999',
            "# TYPE kata_guest_load counter",
            "# TYPE evil gauge\nevil 1",
            'kata_guest_load{item="' + "x" * (4 << 20) + '"} 1',
            *(f'kata_guest_vm_stat{{item="{number}"}} 1' for number in range(50_000)),
        ]
    )
    bad, dropped = owned(hostile.encode(), 'sandbox_id="bad"')
    text = joined([bad, owned(metrics_text().encode(), 'sandbox_id="good"')[0]]).decode()
    assert dropped > 44_000
    assert len(text) < 2 << 20
    loads = [line for line in text.splitlines() if line.startswith("kata_guest_load")]
    assert len(loads) == 3
    assert all('sandbox_id="good"' in line for line in loads)
    assert "evil" not in text
    list(text_string_to_metric_families(text))


async def test_a_hundred_with_a_slow_and_a_dead_one(tmp_path: Path) -> None:
    """The fakes are served by this process, so the deadline is far more than each sandbox has otherwise."""
    text = metrics_text()
    async with AsyncExitStack() as stack:
        fakes = [
            await stack.enter_async_context(FakeSandbox(tmp_path, f"box{number}@k8s.io", metrics=text))
            for number in range(100)
        ]
        fakes[40].delay = 3600
        await fakes[60].close(leave=True)
        sandboxes = await followed(tmp_path)
        assert len(sandboxes.all) == 100
        answer = (await Scraper(sandboxes.all, timeout=10).text()).decode()
        await forget(sandboxes, tmp_path)
    assert "kata_monitor_running_shim_count 100\n" in answer
    assert "kata_monitor_scrape_failed_count 2\n" in answer
    assert "kata_monitor_dropped_samples_total 0\n" in answer
    assert answer.count("\nkata_shim_threads{") == 98
    assert answer.count("\n") > 98 * 500
    assert all(f"# TYPE {name} " in answer for name in ALL)


async def test_scrapes_at_the_same_time_ask_once(tmp_path: Path) -> None:
    async with FakeSandbox(tmp_path, "box", metrics="kata_shim_threads 3\n", delay=0.2):
        sandboxes = await followed(tmp_path)
        scraper = Scraper(sandboxes.all)
        one, leaving, other = (asyncio.create_task(scraper.text()) for _ in range(3))
        await asyncio.sleep(0)
        leaving.cancel()
        assert await one == await other
        assert b"kata_monitor_scrape_count 3\n" in await one
        assert b'kata_shim_threads{sandbox_id="box"' in await one
        await forget(sandboxes, tmp_path)


async def test_an_id_of_two_namespaces_names_neither(tmp_path: Path) -> None:
    async with (
        FakeSandbox(tmp_path, "box@default"),
        FakeSandbox(tmp_path, "box@k8s.io"),
        FakeSandbox(tmp_path, "c@moby"),
    ):
        sandboxes = await followed(tmp_path)
        found = owners(sandboxes.all)
        assert [found[name].split(",")[0] for name in sorted(found)] == [
            'sandbox_id="box@default"',
            'sandbox_id="box@k8s.io"',
            'sandbox_id="c"',
        ]
        await forget(sandboxes, tmp_path)
