"""English spellings that the general rules of `filters.words` would divide wrongly.

Contractions become two or three words (do n't, they 'll 've), with the apostrophe or without it, and a list of
abbreviations, clipped words and emoticons stays whole. The choice is that of spaCy's English tokenizer, version 3.8, so
that word counts agree with tools that use it; odd members (`id` is I'd, `wed` is we'd) are part of that.
"""

import functools
from collections.abc import Iterator

# Written without apostrophes these are words of their own.
_NO_CONTRACTIONS = frozenset(
    word
    for lower in ("ill", "its", "hell", "shell", "shed", "were", "well", "whore")
    for word in (lower, lower.title())
)
_SUFFIXES = {
    "i you he she it we they": ("'ll", "'ll 've", "'d", "'d 've"),
    "i": ("'m", "'m a"),
    "i you we they": ("'ve",),
    "you we they": ("'re",),
    "he she it": ("'s",),
    "who what when where why how there that this these those": ("'ll", "'ll 've", "'d", "'d 've"),
    "who what when where why how there that this": ("'s",),
    "who what when where why how there these those": ("'re", "'ve"),
    "ca could do does did had may might must need ought sha should wo would": ("n't", "n't 've"),
    "could might must should would not": ("'ve",),
    "ai are is was were have has dare": ("n't",),
}
_ABBREVIATIONS = (
    "Mt. Ak. Ala. Apr. Ariz. Ark. Aug. Calif. Colo. Conn. Dec. Del. Feb. Fla. Ga. Ia. Id. Ill. Ind. Jan. Jul. "
    "Jun. Kan. Kans. Ky. La. Mar. Mass. Mich. Minn. Miss. N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nebr. Nev. Nov. Oct. "
    "Okla. Ore. Pa. S.C. Sep. Sept. Tenn. Va. Wash. Wis. a.m. Adm. Bros. co. Co. Corp. D.C. Dr. e.g. E.g. E.G. "
    "Gen. Gov. i.e. I.e. I.E. Inc. Jr. Ltd. Md. Messrs. Mo. Mont. Mr. Mrs. Ms. p.m. Ph.D. Prof. Rep. Rev. Sen. "
    "St. vs. v.s. C++ and/or w/o ä. ö. ü."
)
_CLIPPED = (
    "'S 's 're 'd 'll 'em 'nuff 'Cause 'cause 'cos 'Cos 'coz 'Coz 'cuz 'Cuz 'bout ma'am Ma'am o'clock O'clock "
    "lovin' Lovin' havin' Havin' doin' Doin' goin' Goin' nothin' Nothin' nuthin' Nuthin' ol' Ol' somethin' "
    "Somethin' ' ''"
)
_EMOTICONS = (
    r":) :-) :)) :-)) :))) :-))) (: (-: =) (= :] :-] [: [-: [= =] :o) (o: :} :-} 8) 8-) (-8 ;) ;-) (; (-; :( :-( "
    r":(( :-(( :((( :-((( ): )-: =( >:( :') :'-) :'( :'-( :/ :-/ =/ =| :| :-| ]= =[ :1 :P :-P :p :-p :O :-O :o :-o "
    r":0 :-0 :() >:o :* :-* :3 :-3 =3 :> :-> :X :-X :x :-x :D :-D ;D ;-D =D xD XD xDD XDD 8D 8-D ^_^ ^__^ ^___^ "
    r">.< >.> <.< ._. ;_; -_- -__- v.v V.V v_v V_V o_o o_O O_o O_O 0_o o_0 0_0 o.O O.o O.O o.o 0.0 o.0 0.o @_@ <3 "
    r"<33 <333 </3 (^_^) (-_-) (._.) (>_<) (*_*) (¬_¬) ಠ_ಠ ಠ︵ಠ (ಠ_ಠ) ¯\(ツ)/¯ (╯°□°）╯︵┻━┻ ><(((*> \") \t \n <space>"
)


@functools.cache
def divided() -> dict[str, tuple[str, ...]]:
    """Spellings that are several words, and these."""
    table: dict[str, tuple[str, ...]] = {}
    for words in _contractions():
        spelling = "".join(words)
        bare = tuple(word.replace("'", "") for word in words)
        if "".join(bare) not in _NO_CONTRACTIONS and words[0] not in ("let", "Let", "c'm", "C'm") and words[-1] != "'y":
            table["".join(bare)] = bare
        table[spelling] = words
        table[spelling.replace("'", "’")] = tuple(word.replace("'", "’") for word in words)
    for hour in range(1, 13):
        for half in ("a.m.", "am", "p.m.", "pm"):
            table[f"{hour}{half}"] = (str(hour), half)
    return table


@functools.cache
def whole() -> frozenset[str]:
    """Spellings that are one word although the rules would divide them."""
    clipped = {form for word in _CLIPPED.split() for form in (word, word.replace("'", "’"))} | {"‘S", "‘s"}
    letters = {f"{chr(letter)}." for letter in range(ord("a"), ord("z") + 1)}
    emoticons = {form for word in _EMOTICONS.split() for form in (word, word.replace("'", "’"))}
    return frozenset(clipped | letters | emoticons | set(_ABBREVIATIONS.split()) | {"—"})


def _contractions() -> Iterator[tuple[str, ...]]:
    for stems, endings in _SUFFIXES.items():
        for stem in stems.split():
            for ending in endings:
                yield (stem, *ending.split())
                yield (stem.title(), *ending.split())
    for words in ("how 'd 'y", "can not", "gon na", "got ta", "let 's", "c'm on"):
        first, *rest = words.split()
        yield (first, *rest)
        yield (first[0].upper() + first[1:], *rest)
    yield ("y'", "all")
