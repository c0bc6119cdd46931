"""Random questions of a SQuAD file, the same ones every time."""

import random
from typing import Any

SEED = 1


def draw_questions(squad: dict[str, Any], count: int, longest: int | None = None) -> dict[str, Any]:
    """`count` random questions (all, if there are fewer) as an ordinary SQuAD file; they keep their paragraphs and order.

    The list of all (article, paragraph, question) is shuffled with `random.Random(1)`, and the first are taken.

    Args:
        squad: content of an official file.
        longest: draw among the questions of so many of the longest contexts (in characters; ties: the first), not of all.
    """
    paragraphs = [
        (number, place) for number, article in enumerate(squad["data"]) for place in range(len(article["paragraphs"]))
    ]
    if longest is not None:
        length = {(a, p): len(squad["data"][a]["paragraphs"][p]["context"]) for a, p in paragraphs}
        chosen = set(sorted(paragraphs, key=lambda place: -length[place])[:longest])
        paragraphs = [place for place in paragraphs if place in chosen]
    places = [(a, p, q) for a, p in paragraphs for q in range(len(squad["data"][a]["paragraphs"][p]["qas"]))]
    random.Random(SEED).shuffle(places)
    return _kept(squad, set(places[:count]))


def count_questions(squad: dict[str, Any]) -> int:
    """Questions in a SQuAD file."""
    return sum(len(paragraph["qas"]) for article in squad["data"] for paragraph in article["paragraphs"])


def _kept(squad: dict[str, Any], places: set[tuple[int, int, int]]) -> dict[str, Any]:
    articles = []
    for a, article in enumerate(squad["data"]):
        paragraphs = []
        for p, paragraph in enumerate(article["paragraphs"]):
            questions = [question for q, question in enumerate(paragraph["qas"]) if (a, p, q) in places]
            if questions:
                paragraphs.append({"context": paragraph["context"], "qas": questions})
        if paragraphs:
            articles.append({"title": article.get("title", ""), "paragraphs": paragraphs})
    return {"version": squad.get("version", "1.1"), "data": articles}
