"""Fetches from stand-ins that break off, lie, stall and send too much."""

from __future__ import annotations

import asyncio
import threading

import pytest

from adapters.errors import PickleRefused
from service.errors import (
    HatrackError,
    SourceDamaged,
    SourceFailed,
    SourceNotFound,
    SourceTimeout,
    TooLarge,
    TooManyFetches,
)
from service.registry.sources.fetch import MAX_README_BYTES, FetchRequest
from service.registry.sources.http import ATTEMPTS
from service.registry.sources.weights import PIECE_BYTES, Progress
from tests.support.sources import FileServer, Hub, Seen, sha256
from tests.unit.service.registry.sources.conftest import CONFIG, README, WEIGHTS, Fetching

WEIGHTS_PATH = "/voices/brand/adapter_model.safetensors"


def start_of(seen: Seen) -> int:
    """Where the range begins that was asked for; 0 if none was."""
    return int((seen.range or "bytes=0-").removeprefix("bytes=").removesuffix("-"))


async def test_the_two_files_and_the_readme_come_and_nothing_else_is_asked_for(
    from_web: Fetching, web: FileServer
) -> None:
    fetched = await from_web.fetch(f"{web.url}/voices/brand")
    assert (fetched.config, fetched.readme, bytes(from_web.written)) == (CONFIG, README, WEIGHTS)
    assert [path.rpartition("/")[2] for path in web.paths()] == [
        "adapter_config.json",
        "README.md",
        "adapter_model.safetensors",
    ]
    assert from_web.leftovers() == []
    assert from_web.progress[-1] == Progress("adapter_model.safetensors", len(WEIGHTS), len(WEIGHTS))


async def test_what_was_fetched_is_recorded(from_web: Fetching, web: FileServer) -> None:
    record = (await from_web.fetch(f"{web.url}/voices/brand/")).record
    assert record.pop("fetched_at") > 1_700_000_000
    assert record == {
        "url": f"{web.url}/voices/brand",
        "revision": None,
        "sha256": sha256(WEIGHTS),
        "bytes": len(WEIGHTS),
        "checked_by": None,
    }


async def test_a_broken_connection_is_gone_on_from_where_it_broke(from_web: Fetching, web: FileServer) -> None:
    web.faults.cuts = [400_000, 400_000]
    await from_web.fetch(f"{web.url}/voices/brand")
    assert bytes(from_web.written) == WEIGHTS
    asked = [seen for seen in web.seen if seen.path == WEIGHTS_PATH]
    first, second = start_of(asked[1]), start_of(asked[2])
    assert (asked[0].range, len(asked)) == (None, 3)
    assert 0 < first <= 400_000
    assert first < second <= first + 400_000
    assert asked[1].headers["if-range"] == web.faults.etag(WEIGHTS)


async def test_a_file_that_has_changed_meanwhile_is_begun_anew(from_web: Fetching, web: FileServer) -> None:
    other = bytes(8) + b"{" + b"other" * 260_000

    def change(step: Progress) -> None:
        if 0 < step.bytes < len(WEIGHTS):
            web.files[WEIGHTS_PATH] = other

    web.faults.cuts = [400_000]
    await from_web.fetch(f"{web.url}/voices/brand", on_progress=change)
    assert bytes(from_web.written) == other
    assert start_of(web.seen[-1]) > 0


@pytest.mark.parametrize("etag", [lambda _content: None, lambda _content: 'W/"1"'])
async def test_without_a_strong_validator_or_a_digest_two_parts_are_never_put_together(
    from_web: Fetching, web: FileServer, etag: object
) -> None:
    web.faults.etag = etag  # type: ignore[assignment]
    web.faults.cuts = [400_000]
    await from_web.fetch(f"{web.url}/voices/brand")
    assert [seen.range for seen in web.seen if seen.path == WEIGHTS_PATH] == [None, None]
    assert bytes(from_web.written) == WEIGHTS


async def test_with_a_digest_the_rest_is_asked_for_without_a_validator(from_web: Fetching, web: FileServer) -> None:
    web.faults.etag = lambda _content: None
    web.faults.cuts = [400_000]
    await from_web.fetch(f"{web.url}/voices/brand", sha256=sha256(WEIGHTS))
    assert start_of(web.seen[-1]) > 0
    assert "if-range" not in web.seen[-1].headers


@pytest.mark.parametrize("fault", ["ignores_ranges", "shifts_ranges"])
async def test_a_server_that_answers_with_another_part_does_no_harm(
    from_web: Fetching, web: FileServer, fault: str
) -> None:
    web.faults.cuts = [400_000]
    setattr(web.faults, fault, 7)
    await from_web.fetch(f"{web.url}/voices/brand")
    assert bytes(from_web.written) == WEIGHTS


async def test_what_a_cancelled_fetch_has_brought_is_used_by_the_next(from_web: Fetching, web: FileServer) -> None:
    released, url = threading.Event(), f"{web.url}/voices/brand"
    web.faults.stalls, web.faults.stall_at = released, 300_000
    arrived = asyncio.Event()

    async def first() -> None:
        async with from_web.start() as fetcher:
            request = FetchRequest(
                "default", fetcher.parse(url), None, lambda _config: None, lambda step: step.bytes and arrived.set()
            )
            await fetcher.fetch(request, lambda _piece: None)

    task = asyncio.create_task(first())
    await arrived.wait()
    task.cancel()
    await asyncio.wait({task})
    released.set()
    web.faults.stalls = None
    kept = from_web.leftovers()
    await from_web.fetch(url)
    assert bytes(from_web.written) == WEIGHTS
    assert from_web.leftovers() == []
    assert kept == [".json", ".part"]
    assert PIECE_BYTES <= start_of(web.seen[-1]) <= 300_000


async def test_another_project_does_not_see_what_has_come(from_web: Fetching, web: FileServer) -> None:
    web.faults.cuts = [400_000]
    web.faults.statuses = []
    url = f"{web.url}/voices/brand"

    def break_off(step: Progress) -> None:
        if step.bytes:
            web.faults.statuses = [404]

    with pytest.raises(SourceNotFound):
        await from_web.fetch(url, project="one", on_progress=break_off)
    assert from_web.leftovers() == [".json", ".part"]
    await from_web.fetch(url, project="two")
    assert web.seen[-1].range is None


async def test_a_whole_file_that_was_not_handed_over_is_not_fetched_again(from_web: Fetching, web: FileServer) -> None:
    url = f"{web.url}/voices/brand"

    def no_room(_piece: bytes) -> None:
        raise OSError("no room")

    async with from_web.start() as fetcher:
        request = FetchRequest("default", fetcher.parse(url), None, lambda _config: None, lambda _step: None)
        with pytest.raises(OSError, match="no room"):
            await fetcher.fetch(request, no_room)
    await from_web.fetch(url)
    assert web.seen[-1].range == f"bytes={len(WEIGHTS) - 1}-"
    assert bytes(from_web.written) == WEIGHTS


# what is refused


async def test_a_wrong_digest_leaves_nothing(from_web: Fetching, web: FileServer) -> None:
    with pytest.raises(SourceDamaged) as caught:
        await from_web.fetch(f"{web.url}/voices/brand", sha256="0" * 64)
    assert (caught.value.param, bytes(from_web.written), from_web.leftovers()) == ("source.sha256", b"", [])


async def test_weights_that_the_hub_did_not_promise_leave_nothing(from_hub: Fetching, hub: Hub) -> None:
    hub.cdn.faults.flips = True
    with pytest.raises(SourceDamaged, match="SHA-256"):
        await from_hub.fetch("hf://acme/voice")
    assert (bytes(from_hub.written), from_hub.leftovers()) == (b"", [])


async def test_a_config_that_the_hub_did_not_promise_ends_the_fetch(from_hub: Fetching, hub: Hub) -> None:
    hub.digests["adapter_config.json"] = "0" * 40
    with pytest.raises(SourceDamaged, match=r"adapter_config\.json .* Git hash"):
        await from_hub.fetch("hf://acme/voice")
    assert hub.cdn.seen == []


async def test_a_config_that_cannot_be_served_spares_the_weights(from_hub: Fetching, hub: Hub) -> None:
    def refuse(config: bytes) -> None:
        raise ValueError(config.decode())

    with pytest.raises(ValueError, match="LORA"):
        await from_hub.fetch("hf://acme/voice", check_config=refuse)
    assert hub.cdn.seen == []


@pytest.mark.parametrize("declared", [True, False])
async def test_weights_over_the_bound_are_refused_and_leave_nothing(
    from_web: Fetching, web: FileServer, declared: bool
) -> None:
    from_web.settings["max_adapter_mib"] = 0.25
    web.faults.no_length = not declared
    with pytest.raises(TooLarge, match="HATRACK_MAX_ADAPTER_MIB"):
        await from_web.fetch(f"{web.url}/voices/brand")
    assert (bytes(from_web.written), from_web.leftovers()) == (b"", [])


async def test_a_config_over_its_bound_is_refused_and_such_a_readme_left_out(
    from_web: Fetching, web: FileServer
) -> None:
    web.files["/voices/brand/README.md"] = b"x" * (MAX_README_BYTES + 1)
    assert (await from_web.fetch(f"{web.url}/voices/brand")).readme is None
    web.files["/voices/brand/adapter_config.json"] = b"x" * (1024 * 1024 + 1)
    with pytest.raises(TooLarge, match=r"adapter_config\.json"):
        await from_web.fetch(f"{web.url}/voices/brand")


async def test_a_pickle_is_refused_by_its_first_bytes(from_web: Fetching, web: FileServer) -> None:
    web.files[WEIGHTS_PATH] = b"\x80\x02" + bytes(700_000)
    with pytest.raises(PickleRefused):
        await from_web.fetch(f"{web.url}/voices/brand")
    assert from_web.leftovers() == []


@pytest.mark.parametrize(
    ("status", "error"), [(404, SourceNotFound), (403, SourceNotFound), (400, SourceFailed), (500, SourceFailed)]
)
async def test_what_a_status_means(from_web: Fetching, web: FileServer, status: int, error: type[HatrackError]) -> None:
    web.faults.statuses = [status] * ATTEMPTS
    with pytest.raises(error):
        await from_web.fetch(f"{web.url}/voices/brand")


async def test_a_status_that_passes_is_waited_for(from_web: Fetching, web: FileServer) -> None:
    web.faults.statuses = [503, 429]
    assert (await from_web.fetch(f"{web.url}/voices/brand")).config == CONFIG


async def test_compressed_bytes_are_refused(from_web: Fetching, web: FileServer) -> None:
    web.faults.headers = {"content-encoding": "gzip"}
    with pytest.raises(SourceFailed, match="gzip"):
        await from_web.fetch(f"{web.url}/voices/brand")


async def test_a_server_that_stalls_is_given_up_and_what_came_is_kept(from_web: Fetching, web: FileServer) -> None:
    released = threading.Event()
    web.faults.stalls, web.faults.stall_at = released, 0
    try:
        with pytest.raises(SourceFailed, match="times in a row"):
            await from_web.fetch(f"{web.url}/voices/brand", stall_s=0.2)
    finally:
        released.set()


async def test_the_whole_may_take_only_so_long(from_web: Fetching, web: FileServer) -> None:
    released = threading.Event()
    web.faults.stalls, web.faults.stall_at = released, 100_000
    try:
        with pytest.raises(SourceTimeout, match="go on"):
            await from_web.fetch(f"{web.url}/voices/brand", total_s=0.5)
    finally:
        released.set()


async def test_nobody_listens(from_web: Fetching) -> None:
    from_web.settings["sources"] = ("http://127.0.0.1:9",)
    with pytest.raises(SourceFailed, match="cannot be reached"):
        await from_web.fetch("http://127.0.0.1:9/voices/brand")


async def test_no_more_at_once_than_the_bound(from_web: Fetching, web: FileServer) -> None:
    released, url = threading.Event(), f"{web.url}/voices/brand"
    web.faults.stalls, web.faults.stall_at = released, 1000
    async with from_web.start() as fetcher:
        arrived = asyncio.Event()

        def request(project: str, digit: str) -> FetchRequest:
            return FetchRequest(
                project, fetcher.parse(url), digit * 64, lambda _config: None, lambda _step: arrived.set()
            )

        tasks = [asyncio.create_task(fetcher.fetch(request("one", digit), bytes)) for digit in "ab"]
        await arrived.wait()
        with pytest.raises(TooManyFetches):
            await fetcher.fetch(request("one", "c"), bytes)
        released.set()
        web.faults.stalls = None
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [SourceDamaged, SourceDamaged]
        own = FetchRequest("one", fetcher.parse(url), sha256(WEIGHTS), lambda _config: None, lambda _step: None)
        assert (await fetcher.fetch(own, bytes)).record["checked_by"] == "request"
