"""From what was typed on the command line to what the stages take: budgets, devices, recipes, data files or folders.

Everything raises `UserError` with one sentence where the words make no sense or the files are not there.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parlance.core.errors import UserError

if TYPE_CHECKING:
    import torch

    from parlance.alignment.reward import Reward
    from parlance.inference.constraints import Constraint
    from parlance.inference.model import Model
    from parlance.inference.sampling import SamplingConfig
    from parlance.models.ngram_smoothing import NGramTraining
    from parlance.pipeline.recipe import Recipe
    from parlance.text.preparation import PreparationConfig
    from parlance.text.tokenizers import Tokenizer
    from parlance.training.loop import Budget
    from parlance.training.pretraining_config import PretrainingConfig

STEP_NAMES = ("pretrain", "sft", "reward", "ppo")


def torch_device(name: str) -> "torch.device":
    """The device called `name`; PyTorch uses as many threads as `usable_cores` says from then on."""
    import torch

    from parlance.core.devices import select_device, usable_cores

    torch.set_num_threads(usable_cores())
    return select_device(name)


UNTIL_LOSS_SECONDS = 3600.0
"""Budget of a stage that is given only a loss to reach."""


def stage_budget(
    budget: str | None, steps: int | None, tokens: str | None = None, until_loss: float | None = None
) -> "Budget":
    """The budget of one stage: one of --budget, --steps and --tokens; --until-loss may end it earlier, and alone has an
    hour."""
    from parlance.core.config import parse_duration
    from parlance.training.loop import Budget

    given = sum(value is not None for value in (budget, steps, tokens))
    if given > 1 or (given == 0 and until_loss is None):
        raise UserError("give --budget TIME (like 3m) or --steps N, one of the two (parlance pretrain: or --tokens N)")
    seconds = UNTIL_LOSS_SECONDS if given == 0 else None if budget is None else parse_duration(budget)
    return Budget(
        steps=steps,
        seconds=seconds,
        tokens=None if tokens is None else parse_count("--tokens", tokens),
        until_loss=until_loss,
    )


_MULTIPLES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}


MOST_THINGS = 10**18
"""Counts are not above this: they are kept in 64 bits, and no text has so many tokens."""


def parse_count(option: str, text: str) -> int:
    """A number of things above zero: 5000, 20k, 1.5m, 10b. Raises UserError."""
    number, unit = (text[:-1], text[-1].lower()) if text[-1:].isalpha() else (text, "")
    try:
        value = round(float(number) * _MULTIPLES[unit])
    except (ValueError, KeyError, OverflowError):
        value = 0
    if value > MOST_THINGS:
        raise UserError(f"{option} {text}: write a number up to 10^18, like 20m or 1.5b")
    if value <= 0:
        raise UserError(f"{option} {text}: write a number above zero, like 5000, 20k, 1.5m or 10b")
    return value


def parse_steps(text: str) -> dict[str, int]:
    """ "pretrain=20,sft=10" as a dictionary."""
    steps: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition("=")
        if name not in STEP_NAMES or not number.isascii() or not number.isdigit() or int(number) == 0 or name in steps:
            raise UserError(f"--steps {text}: write it like pretrain=20,sft=10,reward=5,ppo=2")
        steps[name] = int(number)
    return steps


def recipe_of(
    *,
    sources: Sequence[str],
    demonstrations: Path | None,
    preferences: Path | None,
    recipe_file: Path | None,
    budget: str | None,
    steps: str | None,
    seed: int | None,
    device: str | None,
    skip_bad: bool,
    assignments: Sequence[str],
) -> "Recipe | None":
    """The recipe that the options of `parlance run` describe; None where no option says anything about it."""
    from parlance.core.config import override, parse_config, parse_duration
    from parlance.pipeline.recipe import Recipe, read_recipe

    if budget is not None and steps is not None:
        raise UserError("give --budget or --steps, one of the two")
    counts = None if steps is None else parse_steps(steps)
    options: dict[str, Any] = {
        "sources": tuple(sources) or None,
        "name": "own-text" if sources else None,
        "demonstrations": None if demonstrations is None else str(demonstrations),
        "preferences": None if preferences is None else str(preferences),
        "budget_seconds": None if budget is None else parse_duration(budget),
        "steps": counts,
        "seed": seed,
        "device": device,
        "skip_bad": skip_bad or None,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if recipe_file is None and not given and not assignments:
        return None
    start = Recipe() if recipe_file is None else read_recipe(recipe_file)
    if budget is not None:
        given["steps"] = None
    if counts is not None:
        given["budget_seconds"] = None
        # A stage that this run does not have needs no steps.
        with_options = parse_config(Recipe, start.model_dump() | given | {"steps": None}, where="options")
        if missing := [name for name in STEP_NAMES if name in with_options.stages() and name not in counts]:
            raise UserError(f"--steps {steps}: this run needs steps for {', '.join(missing)} too")
        given["steps"] = dict.fromkeys(set(STEP_NAMES) - set(with_options.stages()), 0) | counts
    recipe = override(parse_config(Recipe, start.model_dump() | given, where="options"), assignments)
    recipe.check()
    return recipe


def check_inputs(recipe: "Recipe") -> None:
    """Look for the device and the sources and read demonstrations and preferences once, before any work is begun: a
    mistake in them is then found at once, not after the corpus is prepared."""
    from parlance.alignment.preferences import read_rankings
    from parlance.finetuning.demonstrations import read_demonstrations
    from parlance.text.preparation.sources import named_corpora

    torch_device(recipe.device)
    named_corpora(recipe.sources, skip_bad=recipe.skip_bad)
    if recipe.skip_bad:
        return  # broken lines stop nothing, and are counted where they are used
    if recipe.demonstrations is not None:
        read_demonstrations(Path(recipe.demonstrations))
    if recipe.preferences is not None:
        read_rankings(Path(recipe.preferences))


def preparation_of(
    preset_name: str,
    *,
    filters: Sequence[str] | None,
    languages: Sequence[str] | None,
    personal_data: str | None,
    evaluation_sets: Sequence[str] | None,
    weights: Sequence[str] | None,
    text_field: str | None,
    assignments: Sequence[str],
) -> "PreparationConfig":
    """The preparation that the options of `parlance corpus prepare` describe."""
    from parlance.core.config import override, parse_config
    from parlance.text.preparation import PreparationConfig, preset

    options: dict[str, Any] = {
        "filters": filters or None,
        "languages": [code.lower() for code in languages or ()] or None,
        "personal_data": personal_data,
        "evaluation_sets": _pairs("--decontaminate", evaluation_sets) or None,
        "weights": {name: _share(name, share) for name, share in _pairs("--weight", weights).items()} or None,
        "text_field": text_field,
    }
    given = {name: value for name, value in options.items() if value is not None}
    config = parse_config(PreparationConfig, preset(preset_name).model_dump() | given, where="options")
    return override(config, assignments)


def _pairs(option: str, words: Sequence[str] | None) -> dict[str, str]:
    """NAME=VALUE words as a dictionary."""
    pairs: dict[str, str] = {}
    for word in words or ():
        name, separator, value = word.partition("=")
        if not (separator and name and value) or name in pairs:
            raise UserError(f"{option} {word}: write it as NAME=VALUE, each name once")
        pairs[name] = value
    return pairs


def _share(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--weight {name}={text}: the share is not a number") from None


def tokenizer_for(choice: str, corpus: Path, keep: Path) -> "Tokenizer":
    """The tokenizer called "byte", "bpe:4096", "char:300", "word:8192" or by its folder; one that is trained is kept in
    `keep` and read from there the next time."""
    from parlance.core.artifacts import ensure_directory
    from parlance.text.splits import read_split
    from parlance.text.tokenizers import Kind, Tokenizer, train_tokenizer

    if (keep / "tokenizer.json").exists():
        return Tokenizer.load(keep)
    kind, _, size = choice.partition(":")
    sized: dict[str, Kind] = {"bpe": "bpe", "char": "char", "word": "word"}
    if choice == "byte":
        tokenizer = train_tokenizer((), "byte")
    elif kind in sized and size.isascii() and size.isdigit():
        texts = (document.text for document in read_split(corpus, "train"))
        tokenizer = train_tokenizer(texts, sized[kind], int(size))
    elif Path(choice).is_dir():
        tokenizer = Tokenizer.load(Path(choice))
    else:
        raise UserError(
            f"--tokenizer {choice}: write byte, bpe:4096, char:300, word:8192, or the folder of a tokenizer"
        )
    tokenizer.save(ensure_directory(keep))
    return tokenizer


def demonstrations_folder(data: Path, keep: Path, *, skip_bad: bool, seed: int) -> Path:
    """A folder with train.jsonl and validation.jsonl: `data` itself, or `keep`, where a file is divided into them."""
    from parlance.pipeline.stages.user_data import make_user_demonstrations

    if (data / "train.jsonl").is_file():
        return data
    if not (keep / "train.jsonl").exists():
        make_user_demonstrations(data, None, keep, skip_bad=skip_bad, seed=seed)
    return keep


def rankings_folder(data: Path, keep: Path, *, skip_bad: bool, seed: int) -> Path:
    """A folder with train.jsonl and test.jsonl: `data` itself, or `keep`, where a file is divided into them."""
    from parlance.pipeline.stages.user_data import make_user_rankings

    if (data / "train.jsonl").is_file():
        return data
    if not (keep / "train.jsonl").exists():
        make_user_rankings(None, data, keep, skip_bad=skip_bad, seed=seed)
    return keep


def prompts_file(prompts: Path) -> Path:
    """A file of prompts, or the training part of a folder of demonstrations."""
    return prompts / "train.jsonl" if prompts.is_dir() else prompts


def reward_of(choice: str) -> "Path | Reward":
    """The folder of a reward model (or of a run that has one), or a Python function called "module:function"."""
    from parlance.alignment.reward import load_reward

    folder = Path(choice)
    if folder.is_dir():
        return folder / "reward" if (folder / "reward" / "config.json").exists() else folder
    if ":" not in choice:
        raise UserError(f"--reward {choice}: there is no such folder; name a reward model's folder or module:function")
    return load_reward(choice)


def sampling_of(
    *,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    overflow: str,
    seed: int,
    stop: Sequence[str] = (),
    assignments: Sequence[str] = (),
) -> "SamplingConfig":
    """How tokens are drawn, as the options say."""
    from parlance.core.config import override, parse_config
    from parlance.inference.sampling import SamplingConfig

    drawn = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    values = {"max_tokens": max_tokens, "overflow": overflow, "stop": tuple(stop), **drawn}
    return override(parse_config(SamplingConfig, values, where="options"), assignments)


def constraint_of(
    schema: Path | None, expression: str | None, choices: str | None, model: "Model"
) -> "Constraint | None":
    """The form that --json-schema, --regex or --choices asks for; None without any."""
    from parlance.inference.constraints import choice, json_schema, regular_expression

    if sum(given is not None for given in (schema, expression, choices)) > 1:
        raise UserError("give one of --json-schema, --regex and --choices")
    if schema is not None:
        return json_schema(_read_schema(schema), model.tokenizer, model.stop)
    if expression is not None:
        return regular_expression(expression, model.tokenizer, model.stop)
    return None if choices is None else choice(choices.split(","), model.tokenizer, model.stop)


def _read_schema(path: Path) -> "dict[str, Any] | bool":
    from parlance.core.artifacts import read_json

    schema = read_json(path)
    if not isinstance(schema, dict | bool):
        raise UserError(f"{path} is not a JSON schema: it holds no JSON object")
    return schema


def corpus_folder(folder: Path) -> Path:
    """`folder`, which must be there; whether it holds a corpus is found when it is read."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; make a corpus with `parlance corpus prepare`")
    return folder


def standard_input() -> str:
    """All of standard input; bytes that are not UTF-8 become U+FFFD."""
    from parlance.text.documents import decode_utf8

    text = decode_utf8(sys.stdin.buffer.read())[0]
    if not text.strip():
        raise UserError("there is no text on standard input")
    return text


def prompt_text(prompt: str) -> str:
    """The prompt as typed, or all of standard input for "-"."""
    return standard_input() if prompt == "-" else prompt


def text_file(path: Path) -> str:
    """The text of a file; bytes that are not UTF-8 become U+FFFD."""
    from parlance.text.documents import decode_utf8

    try:
        return decode_utf8(path.read_bytes())[0]
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot read {path}: {reason[0].lower()}{reason[1:]}") from error


def training_for(
    model: str, order: int | None, assignments: Sequence[str], preset: str = "standard"
) -> "PretrainingConfig | NGramTraining | None":
    """The settings for `--model`, with --preset, --order and --set applied; None: there are none (exact)."""
    from parlance.core.config import override
    from parlance.training.pretraining_config import check

    if model in ("exact", "ngram") and preset != "standard":
        raise UserError(f"--preset {preset} is for networks; --model {model} is counted")
    if model == "exact":
        if order is not None or assignments:
            raise UserError("--model exact takes no --order and no --set: it keeps the whole text")
        return None
    if model == "ngram":
        from parlance.models.ngram_smoothing import NGramTraining

        if order is not None and any(assignment.startswith("order=") for assignment in assignments):
            raise UserError("--order and --set order= say the same: give one of them")
        base = NGramTraining() if order is None else NGramTraining(order=order)
        return override(base, assignments)
    config = override(pretraining_for(model, preset), assignments)
    check(config)
    return config


def pretraining_for(model: str, preset: str = "standard") -> "PretrainingConfig":
    """The settings of a preset for a kind of network, or for the YAML file that describes one."""
    from parlance.core.config import parse_config
    from parlance.training import presets
    from parlance.training.architectures import ARCHITECTURES, read_model_file
    from parlance.training.pretraining_config import PretrainingConfig

    for kind in ARCHITECTURES:
        if model == kind:
            return presets.preset(preset, kind)
    if not model.endswith((".yaml", ".yml")):
        raise UserError(f"--model {model} is not one of {', '.join(ARCHITECTURES)}, ngram, exact, nor a .yaml file")
    kind, fields = read_model_file(Path(model))
    sizes = {name: fields.pop(name) for name in ("layers", "width", "context_length") if name in fields}
    values = presets.preset(preset, kind).model_dump()
    values |= sizes | {"model": values["model"] | fields}
    return parse_config(PretrainingConfig, values, where=model)
