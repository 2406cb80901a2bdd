"""The server as the `openai` package sees it: plain and streamed, alone and at once, with tools and with forms."""

import asyncio
import itertools
import json

import jsonschema
import pytest
import torch
from running import running

from parlance.inference.model import Model

openai = pytest.importorskip("openai", reason="the openai package is not installed")

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add two numbers.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"$ref": "#/$defs/digit"}},
                "required": ["a", "b"],
                "additionalProperties": False,
                "$defs": {"digit": {"type": "integer", "minimum": 0, "maximum": 9}},
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "The time."}},
]
HI = [{"role": "user", "content": "say abc"}]


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def test_models_are_listed_and_one_is_shown(client):
    assert [model.id for model in client.models.list()] == ["letters", "short", "tiny"]
    assert client.models.retrieve("tiny").object == "model"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("absent")
    assert caught.value.code == "model_not_found"


def test_a_chat_is_the_likeliest_text_and_is_counted(client):
    answer = client.chat.completions.create(model="letters", messages=HI, temperature=0, max_tokens=5)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    choice = answer.choices[0]
    # Behind the line break of the header comes "a", and so on.
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "abcde", "length")
    assert answer.usage.completion_tokens == 5
    # <|im_start|> user newline, the text, <|im_end|> newline, <|im_start|> assistant newline: bytes and special tokens
    assert answer.usage.prompt_tokens == 1 + 5 + 7 + 1 + 1 + 1 + 10
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5


def test_a_streamed_chat_is_the_whole_one_with_role_first_and_reason_last(client):
    settings = {"model": "letters", "messages": HI, "temperature": 0, "max_tokens": 8, "n": 2, "logprobs": True}
    whole = client.chat.completions.create(**settings, top_logprobs=2)
    chunks = list(
        client.chat.completions.create(**settings, top_logprobs=2, stream=True, stream_options={"include_usage": True})
    )
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == len({chunk.created for chunk in chunks}) == 1
    *rest, last = chunks
    assert last.choices == []
    assert last.usage.completion_tokens == 16 == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in rest)
    for index in (0, 1):
        mine = [chunk.choices[0] for chunk in rest if chunk.choices[0].index == index]
        assert (mine[0].delta.role, mine[0].delta.content) == ("assistant", "")
        assert [choice.finish_reason for choice in mine] == [None] * (len(mine) - 1) + ["length"]
        assert mine[-1].delta.content is None
        assert "".join(choice.delta.content or "" for choice in mine) == whole.choices[index].message.content
        tokens = [token for choice in mine if choice.logprobs for token in choice.logprobs.content]
        assert tokens == whole.choices[index].logprobs.content


def test_log_probabilities_are_those_of_the_table(client, letters):
    answer = client.chat.completions.create(
        model="letters", messages=HI, temperature=1.7, top_p=0.5, max_tokens=4, seed=1, logprobs=True, top_logprobs=3
    )
    table = letters.language_model.table.log_softmax(-1)
    before = ord("\n")
    for entry in answer.choices[0].logprobs.content:
        assert bytes(entry.bytes).decode() == entry.token
        # The model's own, whatever temperature and filters do.
        assert entry.logprob == pytest.approx(float(table[before, entry.bytes[0]]), abs=1e-5)
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(table[before].topk(3).values.tolist())
        before = entry.bytes[0]


def test_the_same_seed_gives_the_same_text_and_choices_differ(client):
    def texts(seed: int) -> list[str]:
        answer = client.completions.create(model="letters", prompt="0", max_tokens=24, temperature=2, seed=seed, n=3)
        return [choice.text for choice in answer.choices]

    assert texts(5) == texts(5) != texts(6)
    assert len(set(texts(5))) == 3
    # Choice k has seed + k, so that any of them can be had again alone.
    assert (
        client.completions.create(model="letters", prompt="0", max_tokens=24, temperature=2, seed=6).choices[0].text
        == texts(5)[1]
    )


@pytest.mark.parametrize(("stop", "text"), [("fg", "bcde"), (["xyz", "d"], "bc"), (["zz"], "bcdefghijk")])
def test_stop_strings_are_no_part_of_the_text(client, stop, text):
    settings = {"model": "letters", "prompt": "a", "max_tokens": 10, "temperature": 0, "stop": stop, "logprobs": 0}
    answer = client.completions.create(**settings)
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason) == (text, "length" if stop == ["zz"] else "stop")
    assert "".join(choice.logprobs.tokens) == text
    streamed = list(client.completions.create(**settings, stream=True))
    assert "".join(chunk.choices[0].text for chunk in streamed) == text
    assert streamed[-1].choices[0].finish_reason == choice.finish_reason


def test_a_bias_bans_and_forces(client):
    settings = {"model": "letters", "prompt": "a", "max_tokens": 3, "temperature": 0}
    assert client.completions.create(**settings, logit_bias={str(ord("b")): -100}).choices[0].text[0] != "b"
    assert client.completions.create(**settings, logit_bias={str(ord("q")): 100}).choices[0].text == "qqq"


def test_echo_scores_the_prompt(client, letters):
    answer = client.completions.create(model="letters", prompt="abxé", max_tokens=0, echo=True, logprobs=2)
    choice = answer.choices[0]
    table = letters.language_model.table.log_softmax(-1)
    data = "abxé".encode()
    assert choice.text == "abxé"
    assert choice.finish_reason == "length"
    assert choice.logprobs.tokens == ["a", "b", "x", "bytes:\\xc3", "bytes:\\xa9"]
    assert choice.logprobs.text_offset == [0, 1, 2, 3, 3]
    expected = [float(table[a, b]) for a, b in itertools.pairwise(data)]
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.token_logprobs[1:] == pytest.approx(expected, abs=1e-5)
    assert choice.logprobs.top_logprobs[1]["b"] == pytest.approx(expected[0], abs=1e-5)
    assert answer.usage.completion_tokens == 0
    more = client.completions.create(model="letters", prompt=list(data), max_tokens=1, echo=True, logprobs=1).choices[0]
    assert more.logprobs.token_logprobs[1:5] == pytest.approx(expected, abs=1e-5)
    assert len(more.logprobs.tokens) == 6


def test_several_prompts_and_the_best_of_several(client):
    settings = {"model": "letters", "temperature": 1.5, "seed": 3, "max_tokens": 6}
    answer = client.completions.create(prompt=["a", "m"], n=2, **settings)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    alone = client.completions.create(prompt="m", n=2, **settings)
    assert [choice.text for choice in answer.choices[2:]] == [choice.text for choice in alone.choices]
    four = client.completions.create(prompt="m", n=4, logprobs=0, **settings).choices
    likelihood = {choice.text: sum(choice.logprobs.token_logprobs) / 6 for choice in four}
    best = client.completions.create(prompt="m", best_of=4, **settings)
    assert [choice.text for choice in best.choices] == [max(likelihood, key=likelihood.__getitem__)]


@pytest.mark.parametrize("model", ["letters", "tiny"])
def test_a_required_tool_is_called_with_arguments_of_its_schema(client, model):
    for seed in range(3):
        answer = client.chat.completions.create(
            model=model, messages=HI, tools=TOOLS, tool_choice="required", seed=seed, max_tokens=150
        )
        choice = answer.choices[0]
        (call,) = choice.message.tool_calls
        assert call.id.startswith("call_")
        assert call.function.name in ("add", "now")
        if choice.finish_reason == "length":  # a random model may write digits for ever
            continue
        assert choice.finish_reason == "tool_calls"
        arguments = json.loads(call.function.arguments)
        function = next(tool["function"] for tool in TOOLS if tool["function"]["name"] == call.function.name)
        jsonschema.validate(arguments, function.get("parameters", {"type": "object", "maxProperties": 0}))


def test_a_streamed_call_has_id_and_name_first(client):
    settings = {
        "model": "letters",
        "messages": HI,
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "add"}},
        "seed": 4,
        "max_tokens": 150,
    }
    whole = client.chat.completions.create(**settings).choices[0].message.tool_calls[0]
    chunks = list(client.chat.completions.create(**settings, stream=True))
    deltas = [delta for chunk in chunks for delta in chunk.choices[0].delta.tool_calls or []]
    assert (deltas[0].type, deltas[0].function.name, deltas[0].function.arguments) == ("function", "add", "")
    assert deltas[0].id
    assert all(delta.id is None and delta.function.name is None for delta in deltas[1:])
    assert "".join(delta.function.arguments for delta in deltas) == whole.function.arguments


def test_an_answer_follows_a_json_schema_and_any_json_is_an_object(client):
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "odd": {"type": "boolean"}},
        "required": ["colour", "odd"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema, "strict": True}}
    for model in ("letters", "tiny"):
        answer = client.chat.completions.create(
            model=model, messages=HI, response_format=form, seed=1, max_tokens=100
        ).choices[0]
        assert answer.finish_reason == "stop"
        jsonschema.validate(json.loads(answer.message.content), schema)
    free = client.chat.completions.create(
        model="letters", messages=HI, response_format={"type": "json_object"}, max_tokens=40, temperature=0
    )
    assert free.choices[0].message.content.lstrip().startswith("{")


def test_forms_beyond_the_openai_api(client):
    def answer(form: dict[str, object]) -> str:
        return (
            client.chat.completions.create(
                model="letters", messages=HI, seed=2, max_tokens=50, extra_body={"response_format": form}
            )
            .choices[0]
            .message.content
        )

    assert answer({"type": "choice", "choices": ["yes", "no"]}) in ("yes", "no")
    assert answer({"type": "regex", "pattern": "x{3}[01]"}) in ("xxx0", "xxx1")


def test_many_at_once_give_what_each_gives_alone(server):
    async def all_texts() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def one(number: int) -> str:
                stream = await client.chat.completions.create(
                    model="tiny", messages=[{"role": "user", "content": f"{number}"}], max_tokens=12, seed=number,
                    stream=True,
                )  # fmt: skip
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*map(one, range(12)))

    together = asyncio.run(all_texts())
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        for number in (0, 5, 11):
            alone = client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": f"{number}"}], max_tokens=12, seed=number
            )
            assert together[number] == alone.choices[0].message.content


def test_embeddings_have_length_one_in_both_encodings(client):
    texts = ["one", "two words", "one"]
    plain = client.embeddings.create(model="tiny", input=texts, encoding_format="float")
    packed = client.embeddings.create(model="tiny", input=texts)  # the client asks for base64 and unpacks it
    first = torch.tensor([entry.embedding for entry in plain.data])
    assert first.shape == (3, 32)
    assert torch.allclose(first, torch.tensor([entry.embedding for entry in packed.data]), atol=1e-7)
    assert torch.allclose(first.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.equal(first[0], first[2])
    short = client.embeddings.create(model="tiny", input="one", dimensions=4, encoding_format="float")
    cut = first[0, :4] / first[0, :4].norm()
    assert torch.allclose(torch.tensor(short.data[0].embedding), cut, atol=1e-5)
    assert plain.usage.prompt_tokens == 3 + 9 + 3
    with pytest.raises(openai.BadRequestError, match="no activations"):
        client.embeddings.create(model="letters", input="one")


class Caller:
    """A language model that opens a tool call, and then writes whatever comes."""

    vocab_size, context_length = 260, None
    script = b"Well: <tool_call>\n"

    def __init__(self) -> None:
        self.noise = torch.randn(64, 260, generator=torch.Generator().manual_seed(1)) * 3

    def forward(self, tokens, state=0):
        said = (state or 0) + tokens.shape[1]
        logits = self.noise[torch.arange(said - tokens.shape[1], said) % 64].clone()
        # The prompt ends with the line break of the assistant's header, and the script is what follows it.
        for place, token in enumerate(tokens[0].tolist()):
            self.begun = said - tokens.shape[1] + place + 1 if token == 258 else self.begun
            step = said - tokens.shape[1] + place + 1 - self.begun - len("assistant\n")
            if 0 <= step < len(self.script):
                logits[place, self.script[step]] = 100.0
        return logits[None], said

    begun = 0


def test_a_call_that_the_model_chooses_follows_the_schema_too(letters):
    model = Model(Caller(), letters.tokenizer, letters.folder)
    start = letters.tokenizer.special_id("<|im_start|>")
    assert start == 258
    with (
        running({"caller": model}) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        for seed in range(4):
            settings = {"model": "caller", "messages": HI, "tools": TOOLS, "seed": seed, "max_tokens": 300}
            choice = client.chat.completions.create(**settings).choices[0]
            assert choice.message.content == "Well: "
            (call,) = choice.message.tool_calls
            function = next(tool["function"] for tool in TOOLS if tool["function"]["name"] == call.function.name)
            if choice.finish_reason == "tool_calls":
                jsonschema.validate(json.loads(call.function.arguments), function.get("parameters", {}))
            deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**settings, stream=True)]
            written = [part for delta in deltas for part in delta.tool_calls or []]
            assert "".join(part.function.arguments for part in written) == call.function.arguments
            assert "".join(delta.content or "" for delta in deltas) == "Well: "
        plain = client.chat.completions.create(
            model="caller", messages=HI, max_tokens=30, tools=TOOLS, tool_choice="none"
        )
        assert plain.choices[0].message.content.startswith("Well: <tool_call>")
        assert server.idle()
