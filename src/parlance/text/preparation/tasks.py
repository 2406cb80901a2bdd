"""The steps that run once for every shard, by name, for the processes that the engine starts.

run_one = open_step(Path("corpus.preparing"), "judge")
run_one(0)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from parlance.core.artifacts import read_json
from parlance.core.config import parse_config
from parlance.text.preparation.config import PreparationConfig
from parlance.text.preparation.engine import COUNT, JUDGE
from parlance.text.preparation.work_folder import WorkFolder


def open_step(folder: Path, step: str) -> Callable[[int], dict[str, Any]]:
    """The function that runs `step` of the work in `folder` on the shard of a given index."""
    if step == COUNT:
        from parlance.text.tokenizers.shared_counting import counting_task

        return counting_task(folder)
    work = WorkFolder(folder)
    plan = read_json(work.plan)
    config = parse_config(PreparationConfig, plan["config"], where=str(work.plan))
    if step == JUDGE:
        from parlance.text.preparation.judging import Judge

        return Judge(work, config, plan).judge_shard
    from parlance.text.preparation.writing import Writer

    return Writer(work, config).write_shard
