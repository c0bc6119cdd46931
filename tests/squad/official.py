"""The rules of the official SQuAD scripts (evaluate-v1.1.py, evaluate-v2.0.py) as plain loops, written from their description.

Imports nothing of ours: an oracle for `squad_eval.scores`.
"""

import string


def normalised_words(text: str) -> list[str]:
    """Lower case; punctuation away; a, an, the away; split at white space."""
    kept = ""
    for character in text.lower():
        if character not in string.punctuation:
            kept += character
    words, word = [], ""
    for character in kept + " ":
        if character.isalnum() or character == "_":
            word += character
            continue
        if word not in ("a", "an", "the"):
            words.append(word)
        else:
            words.append(" ")
        words.append(character)
        word = ""
    return "".join(words).split()


def exact(prediction: str, answer: str) -> int:
    return 1 if normalised_words(prediction) == normalised_words(answer) else 0


def overlap_f1(prediction: str, answer: str, empty_texts_agree: bool) -> float:
    predicted, expected = normalised_words(prediction), normalised_words(answer)
    if empty_texts_agree and (not predicted or not expected):
        return 1.0 if predicted == expected else 0.0
    left, common = list(expected), 0
    for word in predicted:
        if word in left:
            left.remove(word)
            common += 1
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(expected)
    return 2 * precision * recall / (precision + recall)


def version_1(questions: list[tuple[str, list[str]]]) -> tuple[float, float]:
    """Exact match and F1 in percent of (prediction, right answers)."""
    sums = [0.0, 0.0]
    for prediction, answers in questions:
        sums[0] += max(exact(prediction, answer) for answer in answers)
        sums[1] += max(overlap_f1(prediction, answer, False) for answer in answers)
    return 100 * sums[0] / len(questions), 100 * sums[1] / len(questions)


def version_2(questions: list[tuple[str, list[str], float]], threshold: float) -> dict[str, float]:
    """All values of the v2.0 script for (prediction, right answers, odds of no answer)."""
    raw = []
    for prediction, answers, _ in questions:
        golds = [answer for answer in answers if normalised_words(answer)] or [""]
        raw.append((max(exact(prediction, g) for g in golds), max(overlap_f1(prediction, g, True) for g in golds)))
    final = []
    for scores, (_, answers, odds) in zip(raw, questions, strict=True):
        final.append((float(not answers),) * 2 if odds > threshold else scores)
    result: dict[str, float] = {}
    everyone = list(range(len(questions)))
    groups = {"": everyone}
    groups["HasAns_"] = [i for i in everyone if questions[i][1]]
    groups["NoAns_"] = [i for i in everyone if not questions[i][1]]
    for prefix, members in groups.items():
        if len(members):
            result[f"{prefix}exact"] = 100 * sum(final[i][0] for i in members) / len(members)
            result[f"{prefix}f1"] = 100 * sum(final[i][1] for i in members) / len(members)
            result[f"{prefix}total"] = len(members)
    for column, name in enumerate(("exact", "f1")):
        result[f"best_{name}"], result[f"best_{name}_thresh"] = best_threshold([r[column] for r in raw], questions)
    return result


def best_threshold(scores: list[float], questions: list[tuple[str, list[str], float]]) -> tuple[float, float]:
    current = best = float(sum(1 for _, answers, _ in questions if not answers))
    threshold = 0.0
    for index in sorted(range(len(questions)), key=lambda i: questions[i][2]):
        prediction, answers, odds = questions[index]
        if answers:
            current += scores[index]
        elif prediction:
            current -= 1
        if current > best:
            best, threshold = current, odds
    return 100 * best / len(questions), threshold
