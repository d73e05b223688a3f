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
app.command("fit", rich_help_panel="Train")(fit_command)
app.command("evaluate", rich_help_panel="Train")(evaluate_command)
app.command("report", rich_help_panel="Train")(report_command)
app.command("sweep", rich_help_panel="Train")(sweep_command)
app.command("check", rich_help_panel="Data")(check_command)
app.command("relabel", rich_help_panel="Data")(relabel_command)
app.command("predict", rich_help_panel="Label new images")(predict_command)
app.command("stream", rich_help_panel="Label new images")(stream_command)
app.command("views", rich_help_panel="Label new images")(views_command)
app.command("compact", rich_help_panel="Label new images")(compact_command)
app.command("drift", rich_help_panel="Watch")(drift_command)
app.add_typer(models_app, name="models", rich_help_panel="Watch")


def main() -> None:
    """Entry point of the command."""
    app()


if __name__ == "__main__":
    main()
