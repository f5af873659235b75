"""Times of replies of different lengths made comparable."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from transforms.remote.reply_length import ReplyLength


def reply(chance: random.Random, fixed_s: float, per_token_s: float, long_share: float) -> tuple[float, int]:
    tokens = 400 if chance.random() < long_share else 20
    return (fixed_s + per_token_s * tokens) * math.exp(0.2 * chance.gauss(0.0, 1.0)), tokens


@pytest.mark.parametrize("seed", range(40))
def test_long_and_short_replies_become_alike(seed: int) -> None:
    """After some hundred replies the comparable times of both lengths differ by less than a fifth, whatever a and b."""
    chance = random.Random(seed)
    fixed_s, per_token_s = chance.choice([0.05, 0.2, 1.0]), chance.choice([0.001, 0.005, 0.02])
    length, found = ReplyLength(), {20: list[float](), 400: list[float]()}
    for number in range(2000):
        rtt_s, tokens = reply(chance, fixed_s, per_token_s, 0.2)
        comparable_s = length.comparable_s(rtt_s, tokens)
        if number >= 500:
            found[tokens].append(math.log(comparable_s))
    assert abs(statistics.fmean(found[20]) - statistics.fmean(found[400])) < math.log(1.2)


def test_load_shows_and_a_change_of_mix_does_not() -> None:
    """Twice the time for all shows as twice; ten times more long replies than before show as nothing."""
    chance, length = random.Random(1), ReplyLength()

    def typical(load: float, long_share: float) -> float:
        replies = [reply(chance, 0.2, 0.005, long_share) for _ in range(1000)]
        return statistics.fmean(math.log(length.comparable_s(load * rtt_s, tokens)) for rtt_s, tokens in replies)

    typical(1.0, 0.05)
    before = typical(1.0, 0.05)
    assert typical(1.0, 0.5) == pytest.approx(before, abs=0.1)
    assert typical(2.0, 0.5) == pytest.approx(before + math.log(2.0), abs=0.1)


@pytest.mark.parametrize("tokens", [None, 0])
def test_without_tokens_a_time_is_taken_as_it_is(tokens: int | None) -> None:
    """Nothing is made of a reply that does not say how long it is."""
    assert ReplyLength().comparable_s(1.5, tokens) == 1.5


def test_lengths_that_are_all_equal_change_nothing() -> None:
    """Where all replies are as long as each other, times stay what they are."""
    length = ReplyLength()
    assert [length.comparable_s(0.5, 33) for _ in range(50)] == [0.5] * 50
