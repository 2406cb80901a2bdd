"""What a report puts first: the run in a few sentences, and its results beside their goals.

A result is judged only where its goal is in the files too: the time budget, the loss predicted before training, the
best count-based model, the best baseline of the reward model, and the fine-tuned model. With an interval, a goal is met
or missed by the whole interval and unclear where the limit lies inside it.

    for goal in goals(run): print(goal.measure, goal.result, goal.goal, goal.verdict)
"""

from dataclasses import dataclass
from typing import Any, Literal

from parlance.core import formatting as form
from parlance.core.formatting import interval, mapping, number, text
from parlance.pipeline.report_files import RunFiles
from parlance.pipeline.report_sections import best_models, simulated

Verdict = Literal["met", "missed", "unclear"]


@dataclass(frozen=True)
class Goal:
    """One line of the table of results."""

    measure: str
    result: str
    goal: str
    verdict: Verdict
    remark: str = ""
    """Words after the verdict."""


def headline(run: RunFiles) -> list[str]:
    """One to four sentences: what was made of what, how good it is, what alignment changed."""
    summary, model = run.get("summary.json"), mapping(run.get("summary.json").get("model"))
    sentences = []
    parameters, seconds = number(model.get("parameters")), number(summary.get("seconds"))
    if parameters is not None:
        source = _training_text(run)
        made = f"a language model of {form.magnitude(parameters)} parameters"
        made += f" from {source}" if source else ""
        sentences.append(f"This run made {made}" + (f" in {form.duration(seconds)}." if seconds is not None else "."))
    ours, baseline = best_models(run)
    if ours:
        against = f", against {form.decimal(baseline[1])} for {_article(baseline[0])}" if baseline else ""
        sentences.append(f"It predicts held-out text at {form.decimal(ours[1])} bits per byte{against}.")
    policy = run.get("evaluation/policy.json")
    rate = interval(policy.get("win_rate"))
    if rate:
        share = form.with_interval(rate, "percent")
        sentences.append(f"After alignment it wins {share} of prompts against the fine-tuned model, {_judge(policy)}.")
    return sentences


def goals(run: RunFiles) -> list[Goal]:
    """Results that have a goal to stand beside."""
    rows = [_time_goal(run), _loss_goal(run), _baseline_goal(run), _reward_goal(run), *_policy_goals(run)]
    return [row for row in rows if row is not None]


def _time_goal(run: RunFiles) -> Goal | None:
    summary = run.get("summary.json")
    seconds, budget = number(summary.get("seconds")), number(summary.get("budget_seconds"))
    if seconds is None or budget is None:
        return None
    verdict: Verdict = "met" if seconds <= budget else "missed"
    return Goal("Time of the whole run", form.duration(seconds), f"at most {form.duration(budget)}", verdict)


def _loss_goal(run: RunFiles) -> Goal | None:
    document = run.get("base/prediction.json")
    reached, low, high = (number(document.get(key)) for key in ("reached_loss", "low", "high"))
    if reached is None or low is None or high is None:
        return None
    verdict: Verdict = "met" if low <= reached <= high else "missed"
    remark = ", lower than predicted" if reached < low else ""
    result = f"{form.decimal(reached)} nats per token"
    goal = f"predicted {form.decimal(low)} to {form.decimal(high)}"
    return Goal("Validation loss of the base model", result, goal, verdict, remark)


def _baseline_goal(run: RunFiles) -> Goal | None:
    ours, baseline = best_models(run)
    if ours is None or baseline is None:
        return None
    verdict: Verdict = "met" if ours[1] < baseline[1] else "missed"
    goal = f"below {form.decimal(baseline[1])} ({baseline[0]})"
    return Goal("Held-out text", f"{form.decimal(ours[1])} bits per byte", goal, verdict)


def _reward_goal(run: RunFiles) -> Goal | None:
    document = run.get("evaluation/reward_model.json")
    accuracy = interval(document.get("accuracy"))
    found = [(name, interval(value)) for name, value in mapping(document.get("baselines")).items()]
    baselines = [(value[0], name) for name, value in found if value is not None]
    if accuracy is None or not baselines:
        return None
    best, name = max(baselines)
    goal = f"above {form.percent(best)} ({name})"
    return Goal("Reward model, held-out pairs", form.with_interval(accuracy, "percent"), goal, _above(accuracy, best))


def _policy_goals(run: RunFiles) -> list[Goal | None]:
    document = run.get("evaluation/policy.json")
    policies, rate = mapping(document.get("policies")), interval(document.get("win_rate"))
    before, after = (interval(mapping(policies.get(name)).get("labeller_score")) for name in ("sft", "ppo"))
    rows: list[Goal | None] = []
    if before and after:
        goal = f"above {form.decimal(before[0])} (fine-tuned)"
        # The fine-tuned score has its own interval: both ends count.
        verdict = _above(after, before[2] if before[2] is not None and after[0] > before[0] else before[0])
        rows.append(Goal("Simulated labeller's score after PPO", form.with_interval(after), goal, verdict))
    if rate:
        shown = form.with_interval(rate, "percent")
        rows.append(Goal("Wins against the fine-tuned model", shown, f"above {form.percent(0.5)}", _above(rate, 0.5)))
    return rows


def _above(value: tuple[float, float | None, float | None], limit: float) -> Verdict:
    """Whether a value lies above a limit with its whole interval; without interval, by itself."""
    middle, low, high = value
    if (middle if low is None else low) > limit:
        return "met"
    return "missed" if (middle if high is None else high) <= limit else "unclear"


def _training_text(run: RunFiles) -> str | None:
    """ "1.06 MB of text", by the training split of the card."""
    amount = number(mapping(mapping(run.get("corpus/card.json").get("splits")).get("train")).get("bytes"))
    return None if amount is None else f"{form.size(amount)} of text"


def _article(name: str) -> str:
    return f"the {name} model" if "gram" in name.lower() and "model" not in name.lower() else name


def _judge(document: dict[str, Any]) -> str:
    """Who decides what a win is, for the middle of a sentence."""
    if (text(document.get("labeller")) or "").startswith("the reward model"):
        return "as the reward model judges, which PPO itself optimises"
    return f"as {'a simulated' if simulated(document) else 'the'} labeller judges"
