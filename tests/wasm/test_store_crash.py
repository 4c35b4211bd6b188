"""A writer that is killed leaves the old version or the new one, whole."""

import random
from itertools import zip_longest
from pathlib import Path

from sgl_router.wasm.store import PluginStore
from tests.wasm.uploader import Uploader, content, kill_uploads, number_of, settings

UPLOADS = 200
"""`benchmarks/kill_uploads.py` makes a thousand."""


def test_killed_at_any_point(tmp_path: Path) -> None:
    with Uploader(tmp_path / "store", "plugin") as uploader:
        tally = kill_uploads(uploader, UPLOADS, random.Random(1))
    assert not tally.violations, tally.violations
    assert tally.within > 10, f"too few kills fell within an upload: {tally}"
    store = PluginStore(tmp_path / "store")
    last = tally.uploads + 1
    store.put("plugin", content(last), settings(last), now_ms=last)
    (plugin,), _ = store.list()
    named = {version.sha256 for version in (plugin.current, plugin.previous) if version is not None}
    modules = {path.stem for path in (tmp_path / "store" / "modules").glob("*.wasm")}
    assert modules == named, "the next upload removes what dead writers have left"


def test_two_processes_write_and_a_third_reads(tmp_path: Path) -> None:
    store = PluginStore(tmp_path / "store")
    count, offset = 25, 1_000_000
    with (
        Uploader(store.folder, "shared") as one,
        Uploader(store.folder, "shared") as other,
    ):
        one.start(1, count)
        other.start(offset, count)
        ended = 0
        for words in (words for pair in zip_longest(one.words(), other.words()) for words in pair):
            ended += words == ["ended", "0"]
            assert store.list()[1] == []
            if (loaded := store.load("shared")) is not None:
                plugin, wasm = loaded
                assert wasm == content(number_of(plugin.current))
    assert ended == 2
    (plugin,), complaints = store.list()
    assert not complaints
    assert number_of(plugin.current) in (count, offset + count - 1)
    assert plugin.previous is not None
    for version in (plugin.current, plugin.previous):
        assert store.read_module(version.sha256) == content(number_of(version))
    assert len(list((store.folder / "modules").iterdir())) == 2
