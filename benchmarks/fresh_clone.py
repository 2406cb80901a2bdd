"""What a new user waits for: clone into an empty folder, `make run`, `make test`, `parlance --help`.

    python benchmarks/fresh_clone.py [--skip-tests]

Needs git and network access for the installation. Prints wall times, the largest resident memory of any process, and
the run's own results; writes `benchmarks/results/fresh_clone.json`. Run it on an otherwise idle machine.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HELP_RUNS = 7


def timed(command: list[str], folder: Path, log: Path) -> float:
    """Seconds a command takes; stops with its last lines where it fails."""
    start = time.perf_counter()
    with log.open("w") as file:
        code = subprocess.run(command, cwd=folder, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    seconds = time.perf_counter() - start
    if code:
        raise SystemExit(f"{' '.join(command)} failed:\n" + "\n".join(log.read_text().splitlines()[-20:]))
    return seconds


def main() -> None:
    """Clone, run, test, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skip-tests", action="store_true", help="measure the main job only")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        clone = folder / "parlance"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        result: dict[str, object] = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": platform.platform(),
            "cores": len(os.sched_getaffinity(0)),
            "make_run_seconds": timed(["make", "run"], clone, folder / "run.log"),
        }
        # The largest of all descendants so far: installation, the job, its compilers.
        result["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        run = clone / "runs" / "demo"
        result["summary"] = json.loads((run / "summary.json").read_text())
        result["prediction"] = json.loads((run / "base" / "prediction.json").read_text())
        for name in ("language_modelling", "reward_model", "policy"):
            result[name] = json.loads((run / "evaluation" / f"{name}.json").read_text())
        program = str(clone / ".venv" / "bin" / "parlance")
        times = [timed([program, "--help"], clone, folder / "help.log") for _ in range(HELP_RUNS)]
        result["help_seconds"] = {"min": min(times), "median": statistics.median(times), "max": max(times)}
        if not arguments.skip_tests:
            result["make_test_seconds"] = timed(["make", "test"], clone, folder / "test.log")
            result["tests"] = (folder / "test.log").read_text().splitlines()[-1]
    output = ROOT / "benchmarks" / "results" / "fresh_clone.json"
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
