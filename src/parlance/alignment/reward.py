"""What a reward is: prompts and responses in, one number each out; and how a Python function becomes one.

    # my_rewards.py:   def short(prompts, responses, **columns): return [-float(len(r)) for r in responses]
    reward = load_reward("my_rewards:short")
    reward(["Say hi."], ["Hi."])         # [-3.0]

A trained reward model and a Python function both fit `Reward`, so every method that optimises a policy takes either.
"""

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from parlance.core.errors import UserError


class Reward(Protocol):
    """Scores responses; larger is better."""

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], **columns: Sequence[Any]) -> list[float]:
        """One finite number a response. `columns` are further fields of the prompts' records, one list item each."""
        ...


class FunctionReward:
    """A user's Python function as a `Reward`: calls it and checks what comes back."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        """Raises UserError where `function` cannot take (prompts, responses)."""
        self.name, self.function = name, function
        try:
            signature = inspect.signature(function)
            signature.bind([], [])
        except (TypeError, ValueError) as error:
            raise UserError(
                f"reward {name} cannot be called as function(prompts, responses, **columns): {error}"
            ) from error
        parameters = signature.parameters.values()
        self._takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
        self._takes = {parameter.name for parameter in list(parameters)[2:]}

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], **columns: Sequence[Any]) -> list[float]:
        """See `Reward`; columns the function does not name are kept from it unless it has `**columns`.

        Raises UserError where the function fails or does not return one finite number a response.
        """
        taken = columns if self._takes_all else {name: columns[name] for name in columns if name in self._takes}
        try:
            scores = [float(score) for score in self.function(list(prompts), list(responses), **taken)]
        except Exception as error:  # the user's code may raise anything
            raise UserError(f"reward {self.name} failed: {type(error).__name__}: {error}") from error
        if len(scores) != len(responses):
            raise UserError(f"reward {self.name} returned {len(scores)} scores for {len(responses)} responses")
        for index, score in enumerate(scores):
            if not math.isfinite(score):
                raise UserError(f"reward {self.name} returned {score} for response {index}; scores must be finite")
        return scores


def load_reward(specification: str) -> FunctionReward:
    """The function called "module:function", imported from the Python path or the current folder.

    Raises UserError where the text has another form, the module or function is not found, or it cannot be called.
    """
    module_name, separator, function_name = specification.partition(":")
    if not (separator and module_name and function_name):
        raise UserError(f"reward {specification!r}: write it as module:function, like my_rewards:short")
    folder = str(Path.cwd())
    sys.path.insert(0, folder)  # a console script has its own folder there, not the user's
    try:
        importlib.invalidate_caches()
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs the user's code
        raise UserError(f"reward {specification}: cannot import {module_name} ({error})") from error
    finally:
        sys.path.remove(folder)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"reward {specification}: {module_name} has no function {function_name}")
    return FunctionReward(specification, function)
