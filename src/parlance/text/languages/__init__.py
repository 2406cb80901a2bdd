"""Language identification: `LanguageIdentifier`, and a reader of fastText's classifier files.

LanguageIdentifier().identify("Der Hund schläft unter dem Tisch.")
"""

from parlance.text.languages.identification import MIN_LETTERS, UNDETERMINED, LanguageIdentifier, default_model

__all__ = ["MIN_LETTERS", "UNDETERMINED", "LanguageIdentifier", "default_model"]
