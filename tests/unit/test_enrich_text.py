"""Texts are brought into one form, freed of what nobody wrote, measured and cut."""

from __future__ import annotations

import itertools
import random
import unicodedata

import pytest

from transforms.enrich.boilerplate import without_boilerplate
from transforms.enrich.language import UNKNOWN, detect_language
from transforms.enrich.normalize import normalize
from transforms.enrich.sentiment import sentiment_of
from transforms.enrich.tokens import GAP, count_tokens, cut_middle, fit, tokens_of
from transforms.enrich.urgency import urgency_of

LANGUAGES = ("en", "de", "fr", "es", "it", "nl", "pl", "pt", "ja")
ALPHABET = "ab é e\u0301 \u200b\u200d\u00ad\u202e\ufeff\U000e0041\x00\x07\r\n\t\u2028\u00a0👩💻ش日本-!?.,[]0123456789"


def texts(seed: int, count: int, alphabet: str = ALPHABET) -> list[str]:
    """Texts of any characters, the same for a seed."""
    chance = random.Random(seed)
    return ["".join(chance.choices(alphabet, k=chance.randrange(60))) for _ in range(count)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cafe\u0301", "café"),
        ("pass\u200bword\u00ad", "password"),
        ("pay\u200dpal", "paypal"),
        ("👩\u200d💻", "👩\u200d💻"),
        ("\u202eabc\u202c", "abc"),
        ("hi\U000e0069\U000e0067 there", "hi there"),
        ("a\x00b\x07", "ab"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("  a \t b\u00a0c  \n  d ", "a b c\nd"),
        ("a\n\n\n\n\nb", "a\n\nb"),
        ("", ""),
    ],
)
def test_normalize(text: str, expected: str) -> None:
    """Characters that hide go, white space and line ends become plain, and letters are composed."""
    assert normalize(text) == expected


@pytest.mark.parametrize("seed", range(5))
def test_normalize_is_idempotent(seed: int) -> None:
    """What is normal stays as it is, is in NFC, and holds no control or format character but joiners, line feeds."""
    for text in texts(seed, 400):
        once = normalize(text)
        assert normalize(once) == once == unicodedata.normalize("NFC", once)
        assert not [
            char for char in once if unicodedata.category(char) in {"Cc", "Cf"} and char not in "\n\u200c\u200d"
        ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It broke.\n\nKind regards,\nAmelia Hart\n12 High Street", "It broke."),
        ("Es ist kaputt.\n\nMit freundlichen Grüßen\nJana", "Es ist kaputt."),
        ("Il manque deux tasses.\nCordialement,\nCamille", "Il manque deux tasses."),
        ("It broke.\n-- \nAmelia Hart\nChief of everything", "It broke."),
        ("It broke.\n\nSent from my iPhone", "It broke."),
        ("Kaputt.\n\nVon meinem iPhone gesendet", "Kaputt."),
        ("[EXTERNAL]\nIt broke.", "It broke."),
        ("It broke.\n\nThis e-mail and its attachments are confidential and intended\nfor one.", "It broke."),
        ("Thanks", "Thanks"),
        ("Thanks,\nbut where is it?", "Thanks,\nbut where is it?"),
        ("Best lamp I ever had", "Best lamp I ever had"),
        (
            "Danke\n" + "\n".join(f"line {number}" for number in range(20)),
            "Danke\n" + "\n".join(f"line {n}" for n in range(20)),
        ),
    ],
)
def test_boilerplate(text: str, expected: str) -> None:
    """Signatures, notices and warnings go; a closing that does not end the text, or is all of it, stays."""
    assert without_boilerplate(text) == expected


@pytest.mark.parametrize("seed", range(3))
def test_boilerplate_never_takes_everything(seed: int) -> None:
    """A text with a letter or digit still has one."""
    pieces = [
        "Kind regards,",
        "-- ",
        "hello",
        "Sent from my iPhone",
        "",
        "DISCLAIMER: all",
        "[EXTERNAL] x",
        "Merci",
        "ok?",
    ]
    chance = random.Random(seed)
    for _ in range(300):
        text = "\n".join(chance.choices(pieces, k=chance.randrange(1, 8)))
        if any(char.isalnum() for char in text):
            assert any(char.isalnum() for char in without_boilerplate(text)), text


@pytest.mark.parametrize(
    ("text", "count"), [("", 0), ("word", 1), ("words", 2), ("a b", 2), ("2026", 2), ("日本語", 3), ("né!", 3)]
)
def test_count_tokens(text: str, count: int) -> None:
    """Four letters, three above ASCII or digits, a sign or a character of Japanese are a token."""
    assert count_tokens(text) == count


@pytest.mark.parametrize("seed", range(5))
def test_cut_middle_keeps_the_budget_and_the_ends(seed: int) -> None:
    """What is cut has at most the tokens allowed beside the gap, begins and ends as the text did; what fits is untouched."""
    for text in texts(seed, 200):
        for most in (0, 1, 2, 7, 30):
            cut = cut_middle(text, most)
            if count_tokens(text) <= most:
                assert cut == text
                continue
            head, _, tail = cut.partition(GAP.strip()) if most else ("", "", "")
            assert count_tokens(head) + count_tokens(tail) <= most
            assert text.lstrip().startswith(head.strip()) or not head.strip()
            assert text.rstrip().endswith(tail.strip())


def test_cut_middle_refuses_a_negative_budget() -> None:
    """A budget below zero is a mistake."""
    with pytest.raises(ValueError, match="negative"):
        cut_middle("a", -1)


def test_fit_drops_what_matters_least() -> None:
    """The greatest rank goes first and whole, the last of a rank before the first; rank 0 is cut, never dropped by rank."""
    parts = [("one two three four", 0), ("a b c", 1), ("d e f", 2), ("g h", 2)]
    total = sum(count_tokens(text) for text, _ in parts)
    assert fit(parts, total) == [count_tokens(text) for text, _ in parts]
    assert fit(parts, total - 1)[1:] == [3, 3, 0]
    assert fit(parts, total - 3)[1:] == [3, 0, 0]
    assert fit(parts, count_tokens(parts[0][0])) == [count_tokens(parts[0][0]), 0, 0, 0]
    assert fit(parts, 2) == [2, 0, 0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_fit_keeps_the_budget(seed: int) -> None:
    """Whatever the parts, what may stay is within the budget and within each part."""
    chance = random.Random(seed)
    for _ in range(300):
        parts = [(text, chance.randrange(4)) for text in texts(chance.random(), chance.randrange(1, 6))]  # type: ignore[arg-type]
        most = chance.randrange(80)
        kept = fit(parts, most)
        assert sum(kept) <= most or sum(count_tokens(text) for text, _ in parts) <= most
        assert all(0 <= count <= count_tokens(text) for count, (text, _) in zip(kept, parts, strict=True))


def test_tokens_cover_what_is_not_white() -> None:
    """The tokens of a text are in order, do not overlap, and hold all of it but white space."""
    for text in texts(11, 200):
        spans = tokens_of(text)
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))
        assert "".join(text[start:end] for start, end in spans) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Where is my order ORD-48213? It should have come on Monday.", "en"),
        ("Wo bleibt meine Bestellung? Sie sollte am Montag kommen.", "de"),
        ("Où est ma commande ? Elle devait arriver lundi.", "fr"),
        ("¿Dónde está mi pedido? Tenía que llegar el lunes.", "es"),
        ("Gdzie jest moja paczka? Miała przyjść w poniedziałek.", "pl"),
        ("注文した商品がまだ届きません。", "ja"),
        ("ORD-48213", UNKNOWN),
        ("[EMAIL_1] 12345 https://example.com/a", UNKNOWN),
        ("", UNKNOWN),
        ("👍", UNKNOWN),
    ],
)
def test_detect_language(text: str, code: str) -> None:
    """A sentence has its language; numbers, links and placeholders have none."""
    assert detect_language(text, LANGUAGES).code == code


@pytest.mark.parametrize(
    ("text", "language", "sign", "source"),
    [
        ("I am furious, this is terrible service!", "en", -1, "vader"),
        ("Thank you so much, it is perfect", "en", 1, "vader"),
        ("Ich bin enttäuscht, die Lampe ist kaputt!", "de", -1, "lexicon"),
        ("Merci beaucoup, c'est parfait", "fr", 1, "lexicon"),
        ("最悪です。壊れていました", "ja", -1, "lexicon"),
        ("Wo ist sie?", "de", 0, "lexicon"),
        ("Jag är arg", "sv", 0, "none"),
    ],
)
def test_sentiment(text: str, language: str, sign: int, source: str) -> None:
    """VADER scores English, the list eight languages more, and a language without words scores 0 from none."""
    found = sentiment_of(text, language)
    assert (found.source, (found.score > 0) - (found.score < 0)) == (source, sign)
    assert -1 <= found.score <= 1


def test_a_stem_counts_only_where_a_word_begins() -> None:
    """A stem inside another word says nothing; exclamation marks make what is said stronger."""
    assert sentiment_of("der Annullierungsgrund", "de").score == 0  # nul is French
    assert sentiment_of("annuler", "fr").score == 0
    assert sentiment_of("kaputt!!!", "de").score < sentiment_of("kaputt", "de").score < 0


@pytest.mark.parametrize(
    ("text", "language", "sentiment", "contacts", "level", "signs"),
    [
        ("Where is it?", "en", 0.0, 0, "low", ()),
        ("I need it today", "en", 0.0, 0, "normal", ("words",)),
        (
            "Urgent: the wedding is tomorrow, I will call my lawyer",
            "en",
            -0.6,
            1,
            "high",
            ("words", "negative", "contacts"),
        ),
        ("Das ist dringend, heute noch!!!", "de", -0.7, 0, "high", ("words", "negative", "shouting")),
        ("It has not come", "en", -0.6, 1, "normal", ("negative", "contacts")),
        ("Yesterday it was fine", "en", 0.0, 9, "normal", ("contacts",)),
    ],
)
def test_urgency(text: str, language: str, sentiment: float, contacts: int, level: str, signs: tuple[str, ...]) -> None:
    """The level follows from the sum of the signs, and the signs are named."""
    found = urgency_of(text, language, sentiment, contacts)
    assert (found.level, found.signs) == (level, signs)
    assert 0 <= found.score <= 1
