"""Raw documents -> a prepared corpus: filtered, deduplicated, divided, in shards that any number of workers share.

- `prepare`: `prepare_corpus(corpus, out, config)`, `read_split(folder, split)`
- `config`: `PreparationConfig`, `preset("text" | "web")`
- `engine`: `Engine(runner, workers=)`, where the work is done: this machine, or a Ray cluster
- `judging`, `duplicates`, `decisions`, `writing`: the four steps; `card`, `datasheet`: what they did
"""

from parlance.text.preparation.config import PreparationConfig, preset
from parlance.text.preparation.prepare import prepare_corpus
from parlance.text.splits import read_split

__all__ = ["PreparationConfig", "prepare_corpus", "preset", "read_split"]
