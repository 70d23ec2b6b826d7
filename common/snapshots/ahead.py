"""Single files that somebody waits for while all the rest comes back: each is fetched by itself, and written at once.

A pack brings it in any case, but stands in line with others and is as long as thousands of files. So its chunk alone is
asked for, over a connection of its own. What does not come about here is no failure: the pack is still to come.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator
from contextlib import suppress

from common.errors import ObjectMissing, ObjectStoreError
from common.snapshots.keys import Keys
from common.snapshots.manifest import Chunk, Manifest, pack_key
from common.snapshots.pack import open_chunk
from common.snapshots.plan import Plan, files_of
from common.snapshots.scan import Stamp
from common.snapshots.transfer import Endpoint
from common.snapshots.tree import Tree
from common.snapshots.wire import Wire

FILES_MAX, BYTES_MAX = 64, 8 << 20
"""Of one path that is asked for: a directory of more than that comes faster by its packs."""
ANSWER_S = 5.0
"""For one chunk; the restore stands still meanwhile."""


class Ahead:
    """`tree` is ready for new files."""

    def __init__(self, manifest: Manifest, plan: Plan, tree: Tree, keys: Keys, endpoint: Endpoint) -> None:
        self.written: set[int] = set()
        """Numbers of files: nobody writes them again, for their user may have."""
        self._manifest = manifest
        self._plan = plan
        self._tree = tree
        self._keys = keys
        self._wire = Wire(endpoint, attempts=1, answer_s=ANSWER_S)
        self._looked_at: set[bytes] = set()

    def bring(
        self, paths: Iterable[bytes], there: Container[bytes], in_work: Collection[str]
    ) -> Iterator[tuple[int, Stamp]]:  # fmt: skip
        """Number and stamp of each file that is there now. Those at the paths `there` were before, and those of the
        packs `in_work` may be at any moment: they are left alone."""
        for path in paths:
            if path not in self._looked_at:
                self._looked_at.add(path)
                for chunk, numbers in self._chunks_of(path, there, in_work).items():
                    yield from self._write(chunk, numbers)

    def close(self) -> None:
        self._wire.close()

    def _chunks_of(self, path: bytes, there: Container[bytes], in_work: Collection[str]) -> dict[str, list[int]]:
        """Of the files at or below the path that one chunk makes whole, if they are few; others come by their packs."""
        chunks = self._manifest.chunks
        found: dict[str, list[int]] = {}
        for number in files_of(path, self._plan):
            file = self._plan.files[number]
            is_open = file.at_once and bool(file.extents) and file.entry.path not in there
            if is_open and chunks[file.extents[0].chunk].pack not in in_work:
                found.setdefault(file.extents[0].chunk, []).append(number)
        is_much = sum(map(len, found.values())) > FILES_MAX or sum(chunks[name].stored for name in found) > BYTES_MAX
        return {} if is_much else found

    def _write(self, name: str, numbers: list[int]) -> Iterator[tuple[int, Stamp]]:
        chunk = self._manifest.chunks[name]
        # a chunk that is not as promised is the pack's to tell, which ends the restore
        with suppress(ObjectStoreError, ObjectMissing, ValueError):
            plain = memoryview(open_chunk(name, chunk, self._manifest.packs[chunk.pack], self._get(chunk), self._keys))
            for number in numbers:
                file = self._plan.files[number]
                pieces = [(extent.at, plain[extent.start : extent.start + extent.length]) for extent in file.extents]
                self.written.add(number)
                yield number, self._tree.write(file.entry, pieces)

    def _get(self, chunk: Chunk) -> bytes:
        return self._wire.get(pack_key(self._manifest.prefix, chunk.pack), chunk.offset, chunk.stored)
