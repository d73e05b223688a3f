"""Searches, guided by coverage, for bytes that Firn does not expect; needs the package atheris (`make fuzz`).

    python tests/fuzz/search.py [TARGET ...] [--seconds 600]

What is found is written to the working directory as `crash-...`: mend it, and put it into tests/fuzz/corpus/TARGET.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=600, help="of each target")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if options.only:
        search(options.only, rest)
    from fuzz.targets import TARGETS

    failed = 0
    for target in options.targets or TARGETS:
        print(f"fuzz: {target}, {options.seconds} s", flush=True)
        limits = [f"-max_total_time={options.seconds}", "-rss_limit_mb=4096", "-timeout=30", "-max_len=65536"]
        command = [sys.executable, __file__, "--only", target, *limits]
        failed += subprocess.run(command, check=False).returncode != 0
    return int(failed > 0)


def search(target: str, arguments: list[str]) -> None:
    """Searches in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=["featurize", "finetune", "PIL", "json"]):
        from fuzz import targets
    with tempfile.TemporaryDirectory(prefix="firn-corpus-") as folder:
        for number, content in enumerate(targets.seeds(target)):
            Path(folder, f"seed-{number}").write_bytes(content)
        known = HERE / "corpus" / target
        known.mkdir(parents=True, exist_ok=True)
        atheris.Setup([sys.argv[0], *arguments, folder, str(known)], targets.TARGETS[target])
        atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
