"""The language of texts, roughly: by their script, and where that is Latin by the most frequent words of languages.

Good enough to suggest a model with; texts of one line each need a few dozen of them.
"""

import re
from collections import Counter
from collections.abc import Sequence

SCRIPTS = {
    "Japanese": "\u3040-\u30ff",  # before Chinese, whose characters it has as well
    "Chinese": "\u4e00-\u9fff",
    "Korean": "\uac00-\ud7a3",
    "Russian or a neighbour": "\u0400-\u04ff",
    "Arabic or a neighbour": "\u0600-\u06ff",
    "Hindi or a neighbour": "\u0900-\u097f",
    "Thai": "\u0e00-\u0e7f",
    "Greek": "\u0370-\u03ff",
    "Hebrew": "\u0590-\u05ff",
}
"""Characters of a script, as ranges for a regular expression's brackets, and the language that most often has it."""

WORDS = {
    "English": "the of and to is in that for with you are it this on how what can",
    "German": "der die das und ist nicht ein eine ich zu den mit wie sie auf im kann",
    "French": "le la les des est et une dans pour que vous sur pas du au avec comment",
    "Spanish": "el los las una y que es para con por se del como puedo su al no",
    "Italian": "il di che è per una sono non della con gli alla come si nel dei è",
    "Portuguese": "o os as um uma é que não para com do da dos como em por você",
    "Dutch": "het een van en niet ik dat voor zijn met op te hoe kan wordt bij aan",
    "Polish": "nie jest się na do że jak w z i czy są od dla oraz po może",
    "Swedish": "och att är det som en på för med inte av jag hur till kan ett den",
    "Turkish": "ve bir bu için ile mi nasıl da de ne daha olarak var çok gibi değil olan",
    "Vietnamese": "là của và có không được cho các một trong với những này để tôi khi người",
    "Indonesian": "yang dan di untuk dengan ini itu tidak dari pada dalam akan adalah bagaimana saya apa ke",
}
_SETS = {language: frozenset(words.split()) for language, words in WORDS.items()}
_CHARACTERS = 200_000  # that are looked at


def language(texts: Sequence[str]) -> str | None:
    """The language of most of the texts, in English; None if it is none of those known here."""
    text = " ".join(texts)[:_CHARACTERS].lower()
    letters = len(re.findall(r"[^\W\d_]", text)) or 1
    for name, characters in SCRIPTS.items():
        if len(re.findall(f"[{characters}]", text)) > letters * (0.1 if name == "Japanese" else 0.3):
            return name
    words = Counter(re.findall(r"[^\W\d_]+", text))
    shares = {name: sum(words[word] for word in known) / (words.total() or 1) for name, known in _SETS.items()}
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] > 0.06 else None
