"""Each task's answer is right by another way of computing it, and a seed gives the same text for ever."""

import re
from collections import Counter
from hashlib import sha256
from itertools import islice
from random import Random

import pytest

from thoughtbubbles.training.synthetic import TASKS, Segment, Task, segment, segments


def drawn(task: Task) -> list[tuple[int, str, str]]:
    """n, question without its letter, and answer of many segments."""
    random = Random(1)
    found = []
    for n in list(range(1, 17)) * 5:
        made = segment(task, n, random)
        question, answer = made.text[1:-1].split("=")
        assert made.n == n
        assert made.text[made.answer :] == answer + "."
        found.append((n, question, answer))
    return found


def test_copies_and_noise() -> None:
    assert all(question == answer and len(answer) == n for n, question, answer in drawn("copy"))
    noise = drawn("noise")
    assert all(len(question) == len(answer) == n for n, question, answer in noise)
    assert len({question for _, question, _ in noise} & {answer for n, _, answer in noise if n > 3}) == 0


def test_sums() -> None:
    for n, question, answer in drawn("sums"):
        assert len(question) == n
        assert sum(digit * question.count(str(digit)) for digit in range(5)) % 5 == int(answer)


def test_lookups() -> None:
    for n, question, answer in drawn("lookups"):
        table, keys = question.split(":")
        assert len(keys) == n
        assert sorted(table[::2]) == list("abcdefgh")
        assert sum(int(table[2 * table[::2].index(key) + 1]) for key in keys) % 5 == int(answer)


def test_permutations_are_those_of_five_and_all_are_reached() -> None:
    swaps = dict(zip("abcdefghij", ["01", "02", "03", "04", "12", "13", "14", "23", "24", "34"], strict=True))
    reached = set()
    for n, question, answer in drawn("permutations"):
        assert len(question) == n
        at = {place: place for place in "01234"}  # what is where, as an inverse of the row
        for letter in question:
            moved = dict(zip(swaps[letter], reversed(swaps[letter]), strict=True))
            at = {digit: moved.get(place, place) for digit, place in at.items()}
        assert answer == "".join(sorted(at, key=lambda digit: at[digit]))
        reached.add(answer)
    assert len(reached) > 40


def test_hops_follow_a_circle_of_seventeen() -> None:
    for n, question, answer in drawn("hops"):
        table, path = question.split(":")
        following = {table[i]: table[i + 1] for i in range(0, len(table), 2)}
        assert len(following) == 17
        assert path[1:] == ">" * n
        node, seen = path[0], {path[0]}
        for _ in range(n):
            node = following[node]
            assert node not in seen
            seen.add(node)
        assert node == answer


def test_tasks_and_difficulties_are_equally_likely() -> None:
    some = list(islice(segments(3, range(1, 9)), 9600))
    counts = Counter((each.task, each.n) for each in some)
    assert len(counts) == 6 * 8
    assert all(abs(count - 200) < 5 * 200**0.5 for count in counts.values())


def test_a_seed_gives_the_same_text_for_ever() -> None:
    text = "".join(each.text for each in islice(segments(0, range(1, 9)), 1000))
    assert re.fullmatch(r"([cxslph][a-z0-4:>]+=[a-z0-4]+\.)+", text)
    assert text != "".join(each.text for each in islice(segments(1, range(1, 9)), 1000))
    assert sha256(text.encode()).hexdigest()[:16] == "a6a2ac6e4cc5454c"


@pytest.mark.parametrize("task", TASKS)
def test_a_difficulty_below_one_is_refused(task: Task) -> None:
    with pytest.raises(ValueError, match="n must be at least 1, not 0"):
        segment(task, 0, Random(0))


def test_a_segment_knows_where_its_answer_begins() -> None:
    made = segment("permutations", 3, Random(0))
    assert isinstance(made, Segment)
    assert made.text[made.answer - 1] == "="
