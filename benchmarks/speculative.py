"""How much faster is generation when guesses are checked several at a time? Plain and speculative in turns.

    parlance pretrain CORPUS --tokenizer bpe:4096 --budget 2m --out base
    parlance pretrain CORPUS --model ngram --order 5 --tokenizer base --out ngram
    python benchmarks/speculative.py base CORPUS/test.jsonl --draft ngram --draft prompt --out results/speculative.json

Prompts are the beginnings of held-out documents. Every round generates the same number of tokens behind each prompt,
plainly and with each drafter, in changing order. At temperature 0 the tokens must be the same; above it, the seeds are,
and the law is (tests/inference/test_speculative.py). Reported: tokens a second, the ratio to plain in the same round
(median, minimum, maximum), and how many tokens a pass of the model gave.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from parlance.inference.generation import draws
from parlance.inference.model import Model, load
from parlance.inference.sampling import SamplingConfig
from parlance.inference.speculative import Drafter, PromptLookup, drafter_of


def prompts_of(model: Model, path: Path, count: int, length: int) -> list[list[int]]:
    """The first `length` tokens of the first `count` documents that have twice as many."""
    found: list[list[int]] = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            tokens = model.tokenizer.encode(json.loads(line)["text"])
            if len(tokens) >= 2 * length:
                found.append(tokens[:length])
            if len(found) == count:
                return found
    raise SystemExit(f"{path} has {len(found)} documents of {2 * length} tokens; {count} are wanted")


class Counted:
    """A network that counts how often it is asked."""

    def __init__(self, network: Any) -> None:
        self.passes = 0
        hidden = network.hidden

        def counting(*arguments: Any, **named: Any) -> Any:
            self.passes += 1
            return hidden(*arguments, **named)

        network.hidden = counting


def generate(
    model: Model, prompt: list[int], sampling: SamplingConfig, drafter: Drafter | None
) -> tuple[list[int], float]:
    """Tokens, and seconds from the first to the last of them (a prompt is read alike in any case)."""
    tokens: list[int] = []
    started = 0.0
    for draw in draws(model.language_model, prompt, sampling, frozenset(), model.tokenizer.vocab_size, drafter=drafter):
        if not tokens:
            started = time.perf_counter()
        tokens.append(draw.token)
    return tokens, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("documents", type=Path, help="JSON lines with a text each, held out from both models")
    parser.add_argument("--draft", action="append", required=True, help="a model's folder, or prompt")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--prompt-tokens", type=int, default=120)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    model = load(options.model, "cpu")
    others = {name: None if name == "prompt" else load(name, "cpu") for name in options.draft}
    counted = Counted(model.language_model)
    prompts = prompts_of(model, options.documents, options.prompts, options.prompt_tokens)
    result: dict[str, Any] = {"model": str(options.model), "parameters": model.language_model.parameter_count()}
    for temperature in (0.0, 0.8):
        sampling = SamplingConfig(max_tokens=options.new_tokens, temperature=temperature, seed=1)

        def once(name: str, sampling: SamplingConfig = sampling) -> tuple[list[list[int]], float, float]:
            """Tokens behind each prompt, tokens a second, tokens a pass."""
            texts, seconds, before = [], 0.0, counted.passes
            for prompt in prompts:
                drafter: Drafter | None = None
                if name != "plain":
                    other = others[name]
                    drafter = (
                        PromptLookup()
                        if other is None
                        else drafter_of(other.language_model, sampling, model.tokenizer.vocab_size)
                    )
                tokens, took = generate(model, prompt, sampling, drafter)
                texts.append(tokens)
                seconds += took
            # The first token comes of reading the prompt.
            written = sum(map(len, texts)) - len(texts)
            return texts, written / seconds, written / (counted.passes - before - len(texts))

        names = ["plain", *others]
        texts = {name: once(name)[0] for name in names}  # also compiles and warms up
        rates: dict[str, list[float]] = {name: [] for name in names}
        passes: dict[str, float] = {}
        for turn in range(options.rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                _, rate, passes[name] = once(name)
                rates[name].append(rate)
        report: dict[str, Any] = {}
        for name in names:
            ratios = [rate / plain for rate, plain in zip(rates[name], rates["plain"], strict=True)]
            report[name] = {
                "tokens a second": statistics.median(rates[name]),
                "ratio": [statistics.median(ratios), min(ratios), max(ratios)],
                "tokens a pass": passes[name],
                "same tokens": sum(a == b for a, b in zip(texts[name], texts["plain"], strict=True)) / len(prompts),
            }
            median, low, high = report[name]["ratio"]
            print(
                f"temperature {temperature}  {name:40}  {report[name]['tokens a second']:8.1f} tokens/s  "
                f"ratio {median:.2f} ({low:.2f} to {high:.2f})  {passes[name]:.2f} tokens a pass  "
                f"{report[name]['same tokens']:.0%} of texts the same"
            )
        result[f"temperature {temperature}"] = report
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
