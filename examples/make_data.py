"""Cut the demo's data out of larger files: random SQuAD questions and random QNLI rows, always the same ones.

    python examples/make_data.py dev-v1.1.json QNLI/dev.tsv examples/data

Every question keeps its paragraph and its article's title; rows and questions keep their order.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

QUESTIONS = 400
ROWS = 400
SEED = 0


def cut_squad(source: dict[str, Any], count: int, seed: int) -> dict[str, Any]:
    """`count` random questions of an official SQuAD file, in the same form."""
    identifiers = [q["id"] for a in source["data"] for p in a["paragraphs"] for q in p["qas"]]
    chosen = set(random.Random(seed).sample(identifiers, count))
    articles = []
    for article in source["data"]:
        paragraphs = [
            {"context": paragraph["context"], "qas": [q for q in paragraph["qas"] if q["id"] in chosen]}
            for paragraph in article["paragraphs"]
        ]
        paragraphs = [paragraph for paragraph in paragraphs if paragraph["qas"]]
        if paragraphs:
            articles.append({"title": article["title"], "paragraphs": paragraphs})
    return {"version": source.get("version", "1.1"), "data": articles}


def cut_tsv(text: str, count: int, seed: int) -> str:
    """The header and `count` random rows of a tab-separated file."""
    header, *rows = text.rstrip("\n").split("\n")
    chosen = sorted(random.Random(seed).sample(range(len(rows)), count))
    return "\n".join([header, *(rows[index] for index in chosen)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("squad", type=Path, help="official SQuAD v1.1 JSON")
    parser.add_argument("qnli", type=Path, help="QNLI dev.tsv as GLUE distributes it")
    parser.add_argument("output", type=Path, help="folder for squad-dev-slice.json and qnli-dev-slice.tsv")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    squad = cut_squad(json.loads(options.squad.read_text(encoding="utf-8")), QUESTIONS, SEED)
    text = json.dumps(squad, ensure_ascii=False, indent=1)
    (options.output / "squad-dev-slice.json").write_text(text + "\n", encoding="utf-8")
    qnli = cut_tsv(options.qnli.read_text(encoding="utf-8"), ROWS, SEED)
    (options.output / "qnli-dev-slice.tsv").write_text(qnli, encoding="utf-8")


if __name__ == "__main__":
    main()
