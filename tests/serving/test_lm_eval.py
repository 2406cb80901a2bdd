"""lm-eval's `local-completions` drives the server: likelihoods are the model's own, and so are its texts."""

import math
import os

import pytest
import torch
from running import running

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
pytest.importorskip("lm_eval", reason="lm-eval is not installed")
pytest.importorskip("tenacity", reason="lm-eval's part for servers (lm-eval[api]) is not installed")

DOCUMENTS = [
    {"question": "abc", "choices": ["def", "xyz"], "answer": 0},
    {"question": "mno", "choices": ["bbb", "pqr"], "answer": 1},
    {"question": "w", "choices": ["zaz", "xyz"], "answer": 1},
    {"question": "h", "choices": ["ijk", "q"], "answer": 1},
]


def test_a_task_of_each_kind_gives_the_figures_of_the_table(letters):
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    def dataset(**_settings):
        return datasets.DatasetDict({"test": datasets.Dataset.from_list(DOCUMENTS)})

    choose = {
        "task": "choose",
        "custom_dataset": dataset,
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    write = {
        "task": "write",
        "custom_dataset": dataset,
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["t"], "max_gen_toks": 3},
        "metric_list": [{"metric": "exact_match"}],
    }
    with running({"letters": letters}) as server:
        found = simple_evaluate(
            model="local-completions",
            model_args={
                "model": "letters",
                "base_url": f"{server.url}/v1/completions",
                "tokenizer_backend": "remote",
                "num_concurrent": 2,
                "max_length": 500,
                "max_gen_toks": 8,
            },
            tasks=[choose, write],
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
            log_samples=True,
            verbosity="ERROR",
        )
    assert found["results"]["choose"]["acc,none"] == pytest.approx(0.75)  # "ijk" is likelier than "q"
    assert found["results"]["write"]["exact_match,none"] == pytest.approx(0.75)
    table = letters.language_model.table.log_softmax(-1)
    assert len(found["samples"]["choose"]) == len(DOCUMENTS)
    for sample in found["samples"]["choose"]:
        document = sample["doc"]
        for choice, ((log_prob, greedy),) in zip(document["choices"], sample["resps"], strict=True):
            text = (document["question"] + choice).encode()
            start = len(document["question"])
            pairs = [(text[i - 1], text[i]) for i in range(start, len(text))]
            assert log_prob == pytest.approx(math.fsum(float(table[a, b]) for a, b in pairs), abs=1e-4)
            assert greedy == all(int(torch.argmax(table[a])) == b for a, b in pairs)
