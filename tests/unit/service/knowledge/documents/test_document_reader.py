"""The process that reads: killed when it hangs, bounded in memory, replaced when it ends."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from service.knowledge.documents.blocks import DocumentError
from service.knowledge.embedder.document_reader import DocumentReader, ReaderEnded
from tests.unit.service.knowledge.documents.pdfs import make_pdf

HANGS = "import sys, time; sys.stdin.readline(); time.sleep(600)"
DIES = "import os, sys; sys.stdin.readline(); os._exit(1)"
DIES_ANSWERING = "import os, sys; sys.stdin.readline(); os.write(1, b'{\"blo'); os._exit(1)"
EATS = (
    "from unittest.mock import patch; import service.knowledge.documents.__main__ as m\n"
    "def greedy(path, kind): return bytearray(m.MEMORY_BYTES)\n"
    "with patch.object(m, 'read', greedy): m.main()"
)


@pytest.fixture
async def reader() -> AsyncIterator[DocumentReader]:
    one = DocumentReader()
    yield one
    await one.close()


async def test_one_reader_reads_many(reader: DocumentReader, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one\n\ntwo")
    (tmp_path / "b").write_bytes(make_pdf([["Boots."]]))
    assert [block.text for block in await reader.blocks(tmp_path / "a", "a.txt")] == ["one", "two"]
    pid = reader.pid
    assert [block.text for block in await reader.blocks(tmp_path / "b", "b.pdf")] == ["page 1", "Boots."]
    (tmp_path / "c").write_bytes(b"\xff")
    with pytest.raises(DocumentError, match="not text"):
        await reader.blocks(tmp_path / "c", "c.txt")
    with pytest.raises(DocumentError, match="its bytes cannot be read"):
        await reader.blocks(tmp_path / "absent", "a.txt")
    assert reader.pid == pid
    assert pid is not None
    assert psutil.Process(pid).nice() > 0


async def test_one_that_hangs_is_killed(tmp_path: Path) -> None:
    reader = DocumentReader(timeout_s=0.3, program=(sys.executable, "-c", HANGS))
    with pytest.raises(DocumentError, match=r"longer than 0\.3 s"):
        await reader.blocks(tmp_path / "a", "a.txt")
    assert reader.pid is None


@pytest.mark.parametrize("program", [DIES, DIES_ANSWERING])
async def test_one_that_dies_says_nothing_about_the_document(tmp_path: Path, program: str) -> None:
    reader = DocumentReader(program=(sys.executable, "-c", program))
    for _ in range(2):
        with pytest.raises(ReaderEnded):
            await reader.blocks(tmp_path / "a", "a.txt")
    await reader.close()


async def test_memory_is_bounded(tmp_path: Path) -> None:
    reader = DocumentReader(program=(sys.executable, "-c", EATS))
    (tmp_path / "a").write_text("x")
    with pytest.raises(DocumentError, match="of memory"):
        await reader.blocks(tmp_path / "a", "a.txt")
    await reader.close()
