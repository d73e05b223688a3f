"""The command `finetune`; also `python -m finetune`, and the same under `horovodrun`."""

import sys
from pathlib import Path

if not __package__:  # run by path: the folder above is where the packages are
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from featurize.commands.options import make_app
from finetune.commands.check import check_command
from finetune.commands.compact import compact_command
from finetune.commands.drift import drift_command
from finetune.commands.evaluate import evaluate_command
from finetune.commands.fit import fit_command
from finetune.commands.models import models_app
from finetune.commands.predict import predict_command
from finetune.commands.relabel import relabel_command
from finetune.commands.report import report_command
from finetune.commands.stream import stream_command
from finetune.commands.sweep import sweep_command
from finetune.commands.views import views_command

app = make_app("Features to models, on any number of ranks.")
app.command("fit")(fit_command)
app.command("evaluate")(evaluate_command)
app.command("sweep")(sweep_command)
app.command("report")(report_command)
app.command("check")(check_command)
app.command("relabel")(relabel_command)
app.command("predict")(predict_command)
app.command("stream")(stream_command)
app.command("views")(views_command)
app.command("drift")(drift_command)
app.command("compact")(compact_command)
app.add_typer(models_app, name="models")


def main() -> None:
    """Entry point of the command."""
    app()


if __name__ == "__main__":
    main()
