"""What a preparation does to a corpus: `PreparationConfig`, and ready-made settings for common kinds of text.

config = preset("web")                       # as FineWeb: language, quality filters, e-mails and IPs replaced
config = PreparationConfig(near_duplicates=False)
"""

from typing import Any, Literal

from pydantic import Field, field_validator

from parlance.core.config import Config
from parlance.core.errors import UserError
from parlance.text.filters import FilterName, FiltersConfig
from parlance.text.normalisation import NormalisationConfig
from parlance.text.pii import PIIConfig

PRESETS = ("text", "web")


class PreparationConfig(Config):
    """What is taken out of a corpus, what is changed in it, and how the rest is divided."""

    text_field: str = Field(default="text", min_length=1)
    """Field or column of JSON lines, CSV and Parquet files that holds the text."""
    normalise: bool = True
    """Repair broken encodings, Unicode form, control characters and line ends."""
    normalisation: NormalisationConfig = NormalisationConfig()
    """What `normalise` does in detail."""
    min_characters: int = Field(default=16, ge=1)
    """Documents with fewer characters, white space at the ends not counted, are removed."""
    max_undecodable: float = Field(default=0.1, ge=0, le=1)
    """Documents with a larger share of replacement and control characters are removed (binary data, wrong encoding)."""
    identify_languages: bool = False
    """Guess the language of every document and note it in `metadata.language`; implied by `languages`."""
    languages: tuple[str, ...] = ()
    """Keep only documents in these languages (codes such as en, de); empty: all."""
    language_model: str | None = None
    """fastText model file that identifies languages; none: lid.176, which knows 176."""
    min_language_probability: float = Field(default=0.65, ge=0, le=1)
    """With `languages`: the least probability of the language (FineWeb: 0.65)."""
    filters: tuple[FilterName, ...] = ()
    """Quality filters, in this order: gopher-repetition, gopher-quality, c4, fineweb."""
    filter_limits: FiltersConfig = FiltersConfig()
    """Thresholds of the quality filters; the published ones by default."""
    evaluation_sets: dict[str, str] = Field(default={})
    """Files of evaluation items by name; documents that contain one of their n-grams are removed."""
    contamination_ngram: int = Field(default=13, ge=5, le=50)
    """Words in an n-gram that a document and an evaluation item may not share."""
    exact_duplicates: bool = True
    """Remove documents that differ from another one in white space at most."""
    near_duplicates: bool = True
    """Remove documents that share most of their word n-grams with another one (MinHash)."""
    duplicate_ngram: int = Field(default=5, ge=1, le=50)
    """Words in an n-gram that MinHash compares."""
    duplicate_bands: int = Field(default=14, ge=1, le=128)
    """Bands of MinHash; two documents that share one whole band are near duplicates."""
    duplicate_rows: int = Field(default=8, ge=1, le=64)
    """Minima in a band; documents of Jaccard similarity s share a band with probability 1 - (1 - s^rows)^bands."""
    repeated_span: int = Field(default=0, ge=0)
    """Cut every span of at least this many words and punctuation marks that occurred before; 0: none, usual: 50."""
    weights: dict[str, float] = Field(default={})
    """Shares of the named sources (NAME=PATH) in the bytes of the result; empty: everything is kept."""
    shuffle: bool = False
    """Put the documents into a random order, which depends on the seed and their ids alone."""
    personal_data: Literal["keep", "placeholder", "pseudonym"] = "keep"
    """Replace personal data by its category, or by a pseudonym that is the same for the same value."""
    pseudonym_key: str | None = None
    """File with the secret that pseudonyms are made with, 16 bytes or more; the same secret gives the same ones."""
    pii: PIIConfig = PIIConfig()
    """Which personal data is replaced."""
    removed_characters: int = Field(default=500, ge=0)
    """Characters of a removed text that `removed.jsonl` keeps."""
    validation_share: float = Field(default=0.04, gt=0, lt=0.2)
    """Share of the bytes for validation, which steers decisions during training."""
    test_share: float = Field(default=0.06, gt=0, lt=0.2)
    """Share of the bytes for the final test, which steers nothing."""

    @field_validator("weights")
    @classmethod
    def _weights_are_positive(cls, weights: dict[str, float]) -> dict[str, float]:
        if any(weight <= 0 for weight in weights.values()):
            raise ValueError("every weight must be above 0; leave a source out instead of weighing it 0")
        return weights


def preset(name: str) -> PreparationConfig:
    """The settings called "text" (clean, deduplicate; for texts somebody chose) or "web" (as FineWeb; for crawls).

    Both note the languages, which `PreparationConfig` alone does not.

    Raises UserError for another name.
    """
    web: dict[str, Any] = {
        "languages": ("en",),
        "filters": ("gopher-repetition", "gopher-quality", "c4", "fineweb"),
        "personal_data": "placeholder",
        "pii": PIIConfig(categories=("EMAIL", "IP")),
    }
    if name not in PRESETS:
        raise UserError(f"there is no preset {name}; choose {' or '.join(PRESETS)}")
    return PreparationConfig(identify_languages=True, **(web if name == "web" else {}))
