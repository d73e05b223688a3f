"""The report as plain text: each kind of mistake on a line, and the scores below."""

from featurize.foreign_text import printable
from finetune.reports.judge import Judgement
from finetune.scores.metrics import evaluate_probabilities, most_confused

_SCORES = ("accuracy", "top5_accuracy", "precision", "recall", "f1", "log_loss", "rows")


def plain_report(judged: Judgement) -> str:
    """Lines such as ``Examples labeled as 4 classified by model as 9: 15 times``, most frequent first, then the scores."""
    evaluation = evaluate_probabilities(judged.probabilities, judged.label_index, judged.classes)
    pairs = most_confused(evaluation.confusion_matrix, evaluation.classes, n=max(1, evaluation.confusion_matrix.size))
    lines = [
        f"Examples labeled as {pair.true_label} classified by model as {pair.predicted_label}: {_times(pair.count)}"
        for pair in pairs
    ]
    scores = {name: getattr(evaluation, name) for name in _SCORES}
    width = max(map(len, _SCORES))
    lines += [""] if lines else ["No mistakes.", ""]
    lines += [f"{name:<{width}}  {value if name == 'rows' else format(value, '.4f')}" for name, value in scores.items()]
    return "\n".join(map(printable, lines)) + "\n"


def _times(count: int) -> str:
    return "1 time" if count == 1 else f"{count} times"
