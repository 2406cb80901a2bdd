"""From files and folders to documents, streamed: text, JSON lines, CSV, Parquet, HTML, WARC and PDF.

What one document is:

- plain text, Markdown, source code (`TEXT_SUFFIXES`): the file; above 1 MiB pieces cut at line ends that share a group;
- `.jsonl`, `.ndjson`: a line, an object with a string `text` and, where the user has them, `id`, `source`, `metadata`;
- `.csv`, `.tsv`, `.parquet`: a row, with a column `text` and, where they exist, `id` and `source`;
- `.html`, `.htm`, `.xhtml`: the main text of the page;
- `.warc`, `.wet`: the main text of each HTML response, the text of each `conversion` record; with `url` and `date`;
- `.pdf`: the text of its pages, above 1 MiB in pieces.

All but Parquet and PDF may end in `.gz` or `.zst`. Memory holds a few blocks, one line, page or Parquet batch: it does
not grow with the corpus or with a file. Nothing is cleaned here. What goes wrong is one UserError sentence, or, with
`skip_bad`, counted, listed and skipped, where all that came before the damage is kept.

- `FileCorpus(paths)`: the documents; `.shards()`: the same, divided for processes and machines
- `Shard`, `Part`, `ReadingOptions`: what is read where, as JSON
"""

from parlance.text.readers.files import FileCorpus
from parlance.text.readers.kinds import SUFFIXES, TEXT_SUFFIXES
from parlance.text.readers.shards import Part, ReadingOptions, Shard

__all__ = ["SUFFIXES", "TEXT_SUFFIXES", "FileCorpus", "Part", "ReadingOptions", "Shard"]
