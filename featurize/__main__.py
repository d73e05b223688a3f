"""The command `featurize`; also `python -m featurize` and `spark-submit featurize/__main__.py`."""

import sys
from pathlib import Path

if not __package__:  # run by path, as by spark-submit: the packages are in the folder above
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from featurize.commands.add_column import add_column_command
from featurize.commands.backbone import backbone_command
from featurize.commands.backbones import backbones_command
from featurize.commands.describe import describe_command
from featurize.commands.export import export_command
from featurize.commands.ingest import ingest_command
from featurize.commands.options import make_app
from featurize.commands.run import run_command
from featurize.commands.serve import serve_command
from featurize.commands.similar import similar_command
from featurize.commands.sql import sql_command
from featurize.commands.upload import upload_command
from featurize.commands.versions import upgrade_command, vacuum_command

app = make_app("Images to features, on Spark.")
app.command("upload", rich_help_panel="Images")(upload_command)
app.command("ingest", rich_help_panel="Images")(ingest_command)
app.command("backbones", rich_help_panel="Features")(backbones_command)
app.command("backbone", rich_help_panel="Features")(backbone_command)
app.command("run", rich_help_panel="Features")(run_command)
app.command("add-column", rich_help_panel="Features")(add_column_command)
app.command("describe", rich_help_panel="Features")(describe_command)
app.command("similar", rich_help_panel="Query and export")(similar_command)
app.command("sql", rich_help_panel="Query and export")(sql_command)
app.command("serve", rich_help_panel="Query and export")(serve_command)
app.command("export", rich_help_panel="Query and export")(export_command)
app.command("vacuum", rich_help_panel="Upkeep")(vacuum_command)
app.command("upgrade", rich_help_panel="Upkeep")(upgrade_command)


def main() -> None:
    """Entry point of the command."""
    app()


if __name__ == "__main__":
    main()
