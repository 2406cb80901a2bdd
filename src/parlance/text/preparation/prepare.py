"""Raw documents -> a prepared corpus on disk: normalised, filtered, deduplicated, divided; whole or not at all.

The result is one folder:

- `train.jsonl`, `validation.jsonl`, `test.jsonl`: documents, one a line;
- `removed.jsonl`: what was taken out, each with id, source, reason, the figure that decided, and how the text begins;
- `card.json`: sources, licences, documents and bytes after every step, languages, duplicates, personal data, the
  splits, the configuration; `datasheet.html` shows it to people.

Steps: judge every shard (normalise, filter, decontaminate, fingerprint); find duplicates; decide where each document
goes (mixture, division by group), and which of its spans repeat; write every shard; join the shards. Each is
checkpointed in `OUT.preparing`, from which a killed preparation resumes. Memory holds some megabytes of text a worker,
some 100 bytes a document, and the ids of duplicates. The same documents, configuration and seed give the same bytes,
whatever the runner and the number of workers.

    card = prepare_corpus(FileCorpus([Path("books")]), Path("runs/demo/corpus"))
    for document in read_split(Path("runs/demo/corpus"), "train"): ...
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parlance.core.artifacts import (
    atomic_directory,
    ensure_directory,
    os_errors,
    read_json,
    write_json,
    write_text,
)
from parlance.core.config import differences
from parlance.core.errors import Interrupted, UserError
from parlance.core.interrupts import StopRequest, stop_requests
from parlance.core.progress import Progress
from parlance.text.documents import Corpus, ReadingReport, ShardedCorpus
from parlance.text.preparation.card import make_card
from parlance.text.preparation.config import PreparationConfig
from parlance.text.preparation.datasheet import render_datasheet
from parlance.text.preparation.decisions import decide
from parlance.text.preparation.duplicates import find_duplicates, find_repeated_spans
from parlance.text.preparation.engine import JUDGE, STOPPED, WRITE, Engine
from parlance.text.preparation.judging import Tally, open_redactor
from parlance.text.preparation.work_folder import WorkFolder, growing
from parlance.text.preparation.writing import Outcome, join_shards
from parlance.text.readers import FileCorpus
from parlance.text.splits import SPLITS

SHARD_BYTES = 8 << 20
"""Stored bytes of a shard, about: what one task reads, and what a killed preparation loses at most for each worker."""


def prepare_corpus(
    corpus: Corpus | Mapping[str, Corpus],
    out: Path,
    config: PreparationConfig | None = None,
    *,
    seed: int = 0,
    engine: Engine | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Prepare `corpus`, or several named ones, into the folder `out` and return its card.

    `seed` decides which groups are held out, what a mixture draws, the order of a shuffled corpus, and the
    permutations of MinHash. `engine` says where the work is done (None: this machine). With `resume`, a preparation of
    the same corpus that was killed goes on; without it, its remains are an error.

    An `out` that holds a prepared corpus is replaced. Raises UserError where `out` is another non-empty folder, where
    the corpus is empty, where the filters leave nothing, and where what is resumed was begun differently; Interrupted
    where the user stops it.
    """
    config, out = config or PreparationConfig(), Path(out).resolve()
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "card.json").is_file())):
        raise UserError(f"{out} exists and is not a prepared corpus; choose another folder, or remove it first")
    named = dict(corpus) if isinstance(corpus, Mapping) else {"": corpus}
    if config.weights and set(config.weights) != set(named):
        raise UserError(
            f"the weights are for {', '.join(sorted(config.weights))}, the named sources are "
            f"{', '.join(sorted(named)) or 'none'}; give each source a name and a weight"
        )
    _check(config)
    engine = engine or Engine()
    work = WorkFolder.beside(out)
    plan = _begin(work, named, config, seed, resume=resume)
    try:
        with os_errors("write", work.path), work.lock(), stop_requests() as stop:
            card = _prepare(work, plan, list(named), out, config, seed, engine, stop)
    except UserError as error:
        # A preparation that can never succeed leaves nothing behind; one that a full disk or a broken record has
        # stopped half-way keeps what is done.
        if not (isinstance(error.__cause__, OSError) or work.tally(JUDGE, 0).exists()) or isinstance(
            error, _HopelessError
        ):
            shutil.rmtree(work.path, ignore_errors=True)
        raise
    shutil.rmtree(work.path)
    return card


def _check(config: PreparationConfig) -> None:
    """Raise UserError for settings that some worker would refuse later."""
    open_redactor(config)
    if config.languages or config.identify_languages:
        from parlance.text.languages import LanguageIdentifier

        known = LanguageIdentifier(Path(config.language_model) if config.language_model else None).languages
        if unknown := sorted(set(config.languages) - set(known)):
            raise UserError(f"the language model does not know {', '.join(unknown)}; it knows {', '.join(known)}")


class _HopelessError(UserError):
    """The corpus itself makes its preparation impossible."""


def _prepare(
    work: WorkFolder,
    plan: dict[str, Any],
    names: list[str],
    out: Path,
    config: PreparationConfig,
    seed: int,
    engine: Engine,
    stop: StopRequest,
) -> dict[str, Any]:
    """The steps of a preparation that has a plan."""
    shards = len(plan["shards"])
    # 1. Judge every shard.
    _run_step(work, engine, JUDGE, plan)
    tally, report = _judged(work, plan)
    _refuse_nothing(tally, report)
    # 2. Find what repeats.
    find_duplicates(work, config, engine, shards)
    _stop_where_asked(stop)
    # 3. Decide where everything goes, and what of it repeats.
    decide(work, config, names, shards, has_long=tally.has_long)
    if config.repeated_span:
        find_repeated_spans(work, config, shards)
    _stop_where_asked(stop)
    # 4. Write every shard, and join them.
    _run_step(work, engine, WRITE, plan)
    outcome = Outcome()
    for index in range(shards):
        written = work.read_tally(WRITE, index)
        tally.merge(written["tally"])
        outcome.merge(written["outcome"])
    if not all(outcome.bytes[split] for split in SPLITS):
        raise _HopelessError(
            "the corpus is too small to be divided into training, validation and test data; give more text"
        )
    with atomic_directory(out) as folder:
        groups = join_shards(work, folder, shards, shuffle=config.shuffle)
        _append_unread(folder / "removed.jsonl", report)
        card = make_card(
            tally=tally,
            outcome=outcome,
            report=report,
            groups=groups,
            decided=read_json(work.decided),
            config=config,
            seed=seed,
        )
        write_json(folder / "card.json", card)
        write_text(folder / "datasheet.html", render_datasheet(card))
    return card


def _stop_where_asked(stop: StopRequest) -> None:
    if stop.requested:
        raise Interrupted(STOPPED)


def _begin(
    work: WorkFolder, named: Mapping[str, Corpus], config: PreparationConfig, seed: int, *, resume: bool
) -> dict[str, Any]:
    """Make or reopen the work folder; returns the content of its `plan.json`."""
    if work.plan.exists() and not resume:
        raise UserError(
            f"{work.path} holds an unfinished preparation; pass --resume to finish it, or remove that folder to begin "
            "anew"
        )
    if not work.plan.exists():
        shutil.rmtree(work.path, ignore_errors=True)  # what is there without a plan was begun by a killed process
        ensure_directory(work.path)
    try:
        return _planned(work, named, config, seed)
    except BaseException:
        if not work.plan.exists():
            shutil.rmtree(work.path, ignore_errors=True)
        raise


def _planned(work: WorkFolder, named: Mapping[str, Corpus], config: PreparationConfig, seed: int) -> dict[str, Any]:
    """The plan, which is stored unless it is already; then it must be the same."""
    shards: list[dict[str, Any]] = []
    report = ReadingReport()
    for place, (name, corpus) in enumerate(named.items()):
        sharded = corpus if isinstance(corpus, ShardedCorpus) else _copied(work, place, corpus)
        mine = sharded.shards(SHARD_BYTES)
        shards += [shard.to_json() | {"origin": name} for shard in mine]
        report.merge(sharded.report)
    plan = {
        "config": config.model_dump(mode="json"),
        "seed": seed,
        "shards": shards,
        "walk": report.to_json(full=True),
        "files": _files(shards, config),
    }
    if work.plan.exists():
        if fields := differences(_comparable(read_json(work.plan)), _comparable(plan)):
            names = ", ".join(dict.fromkeys(_NAMES.get(field.partition(".")[0], field) for field in fields))
            raise UserError(
                f"{work.path} was begun differently ({names}); resume it with the same sources and options, or remove "
                "that folder to begin anew"
            )
        write_text(work.plan, json.dumps(plan))  # only --skip-bad may have changed
        return plan
    if config.evaluation_sets:
        from parlance.text.decontamination import OverlapIndex, load_evaluation_set

        sets = [load_evaluation_set(name, Path(path)) for name, path in sorted(config.evaluation_sets.items())]
        OverlapIndex(sets, n=config.contamination_ngram).save(ensure_directory(work.evaluation))
    write_text(work.plan, json.dumps(plan))  # in ASCII: names of files need not be UTF-8
    return plan


_NAMES = {"files": "changed files", "shards": "the sources", "walk": "the sources", "config": "the options"}
"""What the parts of a plan are called in messages."""


def _files(shards: list[dict[str, Any]], config: PreparationConfig) -> dict[str, list[int]]:
    """Size and time of the last change (ns) of all files that are read."""
    paths = {part["path"] for shard in shards for part in shard.get("parts", ())} | set(config.evaluation_sets.values())
    paths |= {str(Path(shard["root"]) / name) for shard in shards for name in shard.get("names", ())}
    stats = {path: Path(path).stat() for path in sorted(paths) if Path(path).exists()}
    return {path: [stat.st_size, stat.st_mtime_ns] for path, stat in stats.items()}


def _comparable(plan: dict[str, Any]) -> dict[str, Any]:
    """A plan without what may change between two processes: bad records that stopped one can be skipped by the next."""
    shards = [
        shard | ({"options": shard["options"] | {"skip_bad": False}} if "options" in shard else {})
        for shard in plan["shards"]
    ]
    return plan | {"shards": shards}


def _copied(work: WorkFolder, place: int, corpus: Corpus) -> ShardedCorpus:
    """A corpus that exists in memory only, on disk, where it can be divided."""
    path = work.input(place)
    if not path.exists():
        with growing(path) as copy, copy.open("w", encoding="utf-8", errors="replace", newline="\n") as file:
            for document in corpus:
                file.write(json.dumps(document.to_json(), ensure_ascii=False) + "\n")
    return FileCorpus([path])


def _run_step(work: WorkFolder, engine: Engine, step: str, plan: dict[str, Any]) -> None:
    """Run `step` on the shards for which it is not done yet."""
    shards = plan["shards"]
    left = [index for index in range(len(shards)) if not work.tally(step, index).exists()]
    done = sum(shards[index]["bytes"] for index in range(len(shards))) - sum(shards[index]["bytes"] for index in left)
    total = sum(shard["bytes"] for shard in shards)
    with Progress(step, total=total, unit="bytes", done=done) as progress:
        for result in engine.run(work.path, step, left):
            progress.update(shards[result["shard"]]["bytes"])


def _judged(work: WorkFolder, plan: dict[str, Any]) -> tuple[Tally, ReadingReport]:
    """What judging did, and what reading met, over all shards."""
    tally, report = Tally(), ReadingReport.from_json(plan["walk"])
    for index in range(len(plan["shards"])):
        judged = work.read_tally(JUDGE, index)
        tally.merge(judged["tally"])
        report.merge(ReadingReport.from_json(judged["report"]))
    return tally, report


def _refuse_nothing(tally: Tally, report: ReadingReport) -> None:
    """Raise UserError where there are no documents, or none is left."""
    if not tally.documents:
        skipped = ", ".join(f"{count} {reason}" for reason, count in report.skipped.most_common(5))
        left_out = f" (not read: {skipped})" if skipped else ""
        raise _HopelessError(f"the corpus has no documents{left_out}; name files or folders that contain text")
    if tally.documents == sum(tally.removed.values()):
        causes = ", ".join(f"{count} {reason}" for reason, count in tally.reasons.most_common(5))
        raise _HopelessError(
            f"the filters left nothing of the corpus's {tally.documents} documents ({causes}); give more text, or "
            "loosen these filters"
        )


def _append_unread(path: Path, report: ReadingReport) -> None:
    """Add what was not read at all to the list of removed documents."""
    with path.open("a", encoding="utf-8", errors="replace", newline="\n") as file:
        for name, reason in report.left_out:
            record = {"id": name, "source": name, "reason": f"not read: {reason}", "figure": None, "text": ""}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
