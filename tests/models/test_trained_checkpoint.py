"""A model that others trained: stories260K of llama2.c, opened from its own files, tells the story its page prints."""

import pytest
import torch

from parlance.inference.generation import generate_batch, stream
from parlance.inference.sampling import SamplingConfig
from parlance.models.checkpoints import load_model, save_model
from parlance.models.llama2c import read_llama2c, write_llama2c
from parlance.text.tokenizers.importing import import_tokenizer

START = 1
"""The token that begins and ends every story."""


@pytest.mark.data
def test_the_story_is_the_one_its_authors_printed(data_folder):
    folder = data_folder / "stories260K"
    model = read_llama2c(folder / "stories260K.bin")
    tokenizer = import_tokenizer(folder / "tok512.bin")
    page = (folder / "stories260K.md").read_text()
    begin = page.index("Once upon a time")
    story = page[begin : page.index("```", begin)].strip()
    greedy = SamplingConfig(max_tokens=256, temperature=0.0)  # the steps that the page's program takes
    for tokens in (
        list(stream(model, [START], greedy, stop={START})),
        generate_batch(model, [[START]], greedy, stop={START})[0].tokens,
    ):
        assert tokenizer.decode(tokens) == story


@pytest.mark.data
def test_it_goes_through_other_formats_unchanged(data_folder, tmp_path):
    """As a checkpoint folder, and back to the bytes of the file it was (rotary tables aside, which are no weights)."""
    path = data_folder / "stories260K" / "stories260K.bin"
    model = read_llama2c(path)
    save_model(tmp_path / "folder", model, end_of_text=START, pad=0)
    again = load_model(tmp_path / "folder")
    assert all(torch.equal(parameter, again.get_parameter(name)) for name, parameter in model.named_parameters())
    write_llama2c(tmp_path / "again.bin", again)
    weights = 28 + 4 * model.parameter_count()
    assert (tmp_path / "again.bin").read_bytes()[:weights] == path.read_bytes()[:weights]
