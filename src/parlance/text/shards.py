"""Reading a shard of a corpus in another process or on another machine, from its JSON form.

plan = [shard.to_json() for shard in corpus.shards(16 << 20)]      # here
for document in open_shard(plan[3], report): ...                    # there
"""

from collections.abc import Iterator, Mapping
from typing import Any

from parlance.core.errors import UserError
from parlance.text.documents import Document, ReadingReport, Shard
from parlance.text.readers.shards import Shard as FileShard
from parlance.text.standard_library import LibraryShard


def open_shard(record: Mapping[str, Any], report: ReadingReport) -> Iterator[Document]:
    """The documents of the shard with the JSON form `record`, counted in `report`; other keys in it are ignored.

    Raises UserError for what cannot be read, and for a shard of another version.
    """
    shard: Shard
    try:
        if record["kind"] == "files":
            shard = FileShard.from_json(record)
        else:
            shard = LibraryShard.from_json(record)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"a shard of the corpus was written by another version of Parlance ({error!r})") from error
    return shard.read(report)
